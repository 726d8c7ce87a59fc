"""A TCP relay between one client and one server that does one harm to the bytes under way.

    client ──TCP──> Stream "up"   ──Unix socket──> server
    client <──TCP── Stream "down" <──Unix socket── server

A fault strikes when, after so many bytes of its direction have passed, another byte or the end of the stream comes;
or at once. What strikes is in FAULTS. Everything runs on the event loop that made the relay.

A Unix socket has delivered what was written as soon as the call returns: so `arm()`, called by the server between two
writes, knows exactly where in the stream it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Literal, cast

Direction = Literal["up", "down"]

#: Seconds for which "delay" holds what comes.
DELAY = 0.1

#: "throttle" lets so many bytes pass at a time, and so many seconds later the next ones.
THROTTLED_BYTES, THROTTLED_SECONDS = 1024, 0.002

#: "split" makes a segment of each byte, but only of the first ones after it has struck: of the others, of so many.
SPLIT_BYTES, SPLIT_REST = 400, 997

_APPLICATION_DATA = 23  # of TLS records; with TLS 1.3, whatever is encrypted (RFC 8446 section 5.2)


class Stream(asyncio.Protocol):
    """One direction. What is received at its beginning is sent at its end, unless a fault has it otherwise.

    ``taken``   bytes that have come
    ``passed``  ... and been passed on
    """

    def __init__(self, relay: Relay) -> None:
        self.taken = self.passed = 0
        self._relay = relay
        self.sink: asyncio.Transport | None = None
        self._strike_at: int | None = None
        self._after_records: Callable[[bytes], int | None] | None = None
        self._seen = b""
        self.on_next: Callable[[], None] | None = None
        """Called once, when something comes."""
        self.give: Callable[[bytes | None], None] = self._pass_on
        """What becomes of the bytes that come; None is the end of the stream."""

    # ---- where the fault strikes

    def arm(self, offset: int) -> None:
        """Strike when `offset` more bytes have passed."""
        self._strike_at = self.taken + offset

    def arm_behind_handshake(self, offset: int) -> None:
        """The same, counted from the end of the first encrypted record: in TLS 1.3, the client's Finished."""

        def find_end(seen: bytes) -> int | None:
            end = _end_of_first_encrypted_record(seen)
            return None if end is None else end + offset

        self._after_records = find_end

    def _where(self, data: bytes) -> int | None:
        """The absolute position of the strike, so far as it is known once `data` has come."""
        if self._after_records is not None:
            self._seen += data
            if (position := self._after_records(self._seen)) is not None:
                self._strike_at, self._after_records = position, None
        return self._strike_at

    # ---- what comes (asyncio)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._relay.other(self).sink = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._notice()
        strike_at = self._where(data)
        room = len(data) if strike_at is None else strike_at - self.taken
        self.taken += len(data)
        if room < len(data):
            if room:
                self.give(data[:room])
            self._relay.strike(self)
            data = data[room:]
        self.give(data)

    def eof_received(self) -> bool:
        self._notice()
        if self._strike_at is not None and self._strike_at <= self.taken:
            self._relay.strike(self)
        self.give(None)
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.give(None)

    def _notice(self) -> None:
        if self.on_next is not None:
            on_next, self.on_next = self.on_next, None
            on_next()

    def struck(self) -> None:
        """The fault has struck: it will not again."""
        self._strike_at = self._after_records = None

    # ---- what becomes of it

    def _pass_on(self, data: bytes | None) -> None:
        if self.sink is None or self.sink.is_closing():
            return
        if data is None:
            self.sink.write_eof()
        else:
            self.passed += len(data)
            self.sink.write(data)

    def swallow(self) -> None:
        """Pass nothing on any more, and tell nobody."""
        self.give = lambda data: None

    def end(self) -> None:
        """Pass nothing on any more but the end of the stream."""
        self._pass_on(None)
        self.swallow()

    def flip_one_bit(self, bit: int) -> None:
        """Change a bit of the next byte."""

        def give(data: bytes | None) -> None:
            self.give = self._pass_on
            self._pass_on(data and bytes((data[0] ^ 1 << bit,)) + data[1:])

        self.give = give

    def pace(self, first: float, pause: float, sizes: Callable[[int], int]) -> None:
        """Pass on pieces, of `sizes(how much has passed since)` bytes: the first one `first` seconds after it has come,
        each other one `pause` seconds later.
        """
        waiting: deque[bytes | None] = deque()
        begun = self.passed
        loop = asyncio.get_running_loop()

        def give(data: bytes | None) -> None:
            waiting.append(data)
            if len(waiting) == 1:
                loop.call_later(first, send)

        def send() -> None:
            data = waiting.popleft()
            size = sizes(self.passed - begun)
            if data is not None and len(data) > size:
                waiting.appendleft(data[size:])
                data = data[:size]
            self._pass_on(data)
            if waiting:
                loop.call_later(pause, send)

        self.give = give


class Relay:
    """One connection's two streams, and the one fault that befalls them.

    ``struck_at``  when it has; monotonic clock
    """

    def __init__(self, fault: str, bit: int, on_strike: Callable[[], None]) -> None:
        self.struck_at: float | None = None
        self._on_strike = on_strike
        self._fault = fault
        self._bit = bit
        self._server: socket.socket
        self.up = Stream(self)
        self.down = Stream(self)

    async def join(self, client: socket.socket, path: str) -> None:
        """Connect the client, which has been accepted, with the server at a Unix socket."""
        loop = asyncio.get_running_loop()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.setblocking(False)
        self._server.connect(path)
        await loop.create_unix_connection(lambda: self.down, sock=self._server)
        await loop.connect_accepted_socket(lambda: self.up, client)

    def arm(self, direction: Direction, offset: int) -> None:
        """Strike when `offset` more bytes of the direction have passed, those counted that the server has written."""
        self.drain()
        self._stream(direction).arm(offset)

    def arm_answer(self, direction: Direction, offset: int) -> None:
        """The same, counted from the moment when something comes from the other side."""
        self.other(self._stream(direction)).on_next = lambda: self.arm(direction, offset)

    def drain(self) -> bool:
        """Take in what the server has written so far; False if the connection with it is gone."""
        source = self.up.sink
        with contextlib.suppress(BlockingIOError):
            while source is not None and not source.is_closing() and (data := self._server.recv(65536)):
                self.down.data_received(data)
        return source is not None and not source.is_closing()

    def strike(self, stream: Stream | Direction) -> None:
        """Have the fault befall a direction, from now on."""
        stream = self._stream(stream) if isinstance(stream, str) else stream
        self.struck_at = monotonic()
        self._on_strike()
        stream.struck()
        FAULTS[self._fault](self, stream)

    def _stream(self, direction: Direction) -> Stream:
        return self.up if direction == "up" else self.down

    def other(self, stream: Stream) -> Stream:
        """The other direction."""
        return self.up if stream is self.down else self.down

    # ---- the faults

    def abort(self) -> None:
        """Close both connections at once."""
        for stream in (self.up, self.down):
            stream.swallow()
            if stream.sink is not None:
                stream.sink.abort()

    def do_nothing(self, stream: Stream) -> None:
        """For comparison."""

    def delay(self, stream: Stream) -> None:
        """Hold what comes for a while, once."""
        stream.pace(DELAY, 0, lambda passed: 65536)

    def throttle(self, stream: Stream) -> None:
        """Pass on a little at a time."""
        stream.pace(0, THROTTLED_SECONDS, lambda passed: THROTTLED_BYTES)

    def split(self, stream: Stream) -> None:
        """Make many segments of one."""
        stream.pace(0, 0, lambda passed: 1 if passed < SPLIT_BYTES else SPLIT_REST)

    def cut(self, stream: Stream) -> None:
        """End both streams, towards both sides."""
        for each in (self.up, self.down):
            each.swallow()
            if each.sink is not None:
                each.sink.close()

    def reset(self, stream: Stream) -> None:
        """Reset both connections."""
        if self.down.sink is not None:
            client: socket.socket = self.down.sink.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def black_hole(self, stream: Stream) -> None:
        """Pass nothing on any more, either way, and keep both connections."""
        self.up.swallow()
        self.down.swallow()

    def stall(self, stream: Stream) -> None:
        """The same in one direction."""
        stream.swallow()

    def half_close(self, stream: Stream) -> None:
        """End this direction; the other one goes on."""
        stream.end()

    def corrupt(self, stream: Stream) -> None:
        """Change one bit."""
        stream.flip_one_bit(self._bit)


FAULTS: dict[str, Callable[[Relay, Stream], None]] = {
    "nothing": Relay.do_nothing,
    "delay": Relay.delay,
    "throttle": Relay.throttle,
    "split": Relay.split,
    "cut": Relay.cut,
    "reset": Relay.reset,
    "black-hole": Relay.black_hole,
    "stall": Relay.stall,
    "half-close": Relay.half_close,
    "corrupt": Relay.corrupt,
}


def _end_of_first_encrypted_record(stream: bytes) -> int | None:
    """Where it ends in a TLS stream, once its header has come."""
    position = 0
    while position + 5 <= len(stream):
        kind, length = stream[position], int.from_bytes(stream[position + 3 : position + 5], "big")
        position += 5 + length
        if kind == _APPLICATION_DATA:
            return position
    return None
