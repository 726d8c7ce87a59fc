"""What comes in on one open connection: it is read, parsed and handed over, and not read while there is no room.

    transport.receive() ──bytes, piece by piece──> protocol.receive() ──> messages ──> inbox.deliver(),
         ^       ^                                      │                      or callbacks.run_at_once()
         │       │                                      ├──> pongs ──────────> keepalive
         │       │                                      ├──> answers ────────> transport, session.write()
         │       │                                      └──> close, failure ─> session.drain()
         │   reader.lend(): meanwhile another thread reads; what it cannot parse comes back and goes the same way
    _wait_for_room(): back-pressure, while the inbox is full, or callbacks on the loop have sent too much

Everything here runs on the loop thread: run() in the session's task, and the two commands, which have it go on.
"""

from __future__ import annotations

from math import inf
from typing import Protocol as Interface

from .._base.clock import monotonic
from .._base.log import log, trace_messages
from .._network.transport import Transport
from .._protocol.connection import Protocol
from .._protocol.keepalive import Keepalive
from .._protocol.received import PeerClose, Received
from .._threads.safe_curio import CancelledError, Event, sleep
from ..exceptions import ProtocolError
from ..options import Options
from .bridge import Bridge
from .callbacks import Callbacks
from .lent_sockets import AVAILABLE
from .outgoing import Outgoing, sent_too_much
from .phase import DRAINING, OPEN
from .reader import MAX_FRAME, Reader
from .writer import Writer

PIECE_BYTES = 4 * 1024
MAX_PIECE_BYTES = 256 * 1024
PIECE_MESSAGES = 256
"""What is parsed in one go: at least so many bytes, and more as long as they hold fewer messages than that."""

SLICE = 5e-3
"""Seconds of parsing after which the other connections get their turn."""

SOON = 0.01
"""Seconds between two reads within which it pays to let a thread do the next one itself. At ten or
forty messages a second, to lend the socket and to take it back cost twice as much as all the rest.
"""

_NONE = frozenset[Outgoing]()

_HANDLER_PATIENCE = 0.25
"""Seconds that a failure waits, with callbacks="loop", for a handler to hear the messages before it."""


class SessionSide(Interface):
    """What the intake asks of the session."""

    keepalive: Keepalive

    @property
    def where(self) -> object: ...

    async def write(self) -> None: ...
    async def drain(self, close: PeerClose | None, failure: ProtocolError | None) -> None: ...
    async def arm(self) -> None: ...


class Intake:
    """The reading half of one open connection."""

    def __init__(
        self,
        session: SessionSide,
        bridge: Bridge,
        callbacks: Callbacks,
        options: Options,
        transport: Transport,
        protocol: Protocol,
        writer: Writer,
    ) -> None:
        self._session = session
        self._bridge = bridge
        self._inbox = bridge.inbox
        self._life = bridge.life
        self._outgoing = bridge.outgoing
        self._sender = bridge.sender
        self._waiters = bridge.waiters
        self._callbacks = callbacks
        self._options = options
        self._transport = transport
        self._protocol = protocol
        self._writer = writer
        self._keepalive = session.keepalive
        self._trace = bridge.trace
        self._on_loop = options.callbacks == "loop"
        self._piece = PIECE_BYTES  # how many bytes are parsed in one go
        self._heard = 0.0  # when something came last; monotonic clock
        self._gap = inf  # seconds between that and what came before
        self._lendable = AVAILABLE and protocol.lane is not None  # to threads that wait for messages
        self._may_lend = False  # ... and there is one: see _is_one_to_lend_to()
        self._reader: Reader | None = None  # None before the socket was first lent
        self._room: Event | None = None  # while reading waits for room
        self._full_inbox_told = False
        # Connections that hold up our reading until they have written enough.
        self._held_up_by = _NONE

    async def run(self) -> None:
        """Read to the end of the stream. Raises OSError, as reading does."""
        inbox, receive = self._inbox, self._transport.receive
        if self._on_loop:
            await self._transport.poll_briefly()
        data = b""  # frames may have come with the handshake
        while True:
            if len(data) > self._piece:
                data = await self._received_but_last_piece(data)
            more = self._received(data)
            if more is not None:
                await self._see_to(more)
            if self._protocol.unfinished:
                await self._receive_the_rest()
            if (inbox.messages or inbox.arrivals or self._held_up_by) and self._has_no_room():
                await self._wait_for_room()
            data = (await self._lend() if self._may_lend and self._gap < SOON else b"") or await receive()
            if not data:
                return
            now = monotonic()
            self._gap = now - self._heard
            self._heard = now
            self._keepalive.heard(now)

    async def _lend(self) -> bytes:
        """Let a thread that waits read the socket itself; return what it has left, if anything."""
        self._may_lend = False
        if self._life.phase is not OPEN:
            return b""
        if self._reader is None:
            self._reader = Reader(self._bridge, self._transport, self._protocol, self._keepalive.heard)
            self._bridge.lend(self._reader)
        try:
            return await self._reader.lend()
        except OSError:  # what a thread has read before is there all the same, be it the server's Close frame
            if (more := self._received(self._reader.left)) is not None:
                await self._see_to(more)
            raise
        except CancelledError:  # we are given up
            self._received(self._reader.left)
            raise

    # ---- what has come

    async def _received_but_last_piece(self, data: bytes) -> bytes:
        """What one read brought may be a hundred thousand messages: between pieces, the bound of the inbox counts,
        and the other connections get their turn.
        """
        start = 0
        while len(data) - start > self._piece:
            end = start + self._piece
            more = self._received(data[start:end])
            if more is not None:
                await self._see_to(more)
            if self._protocol.unfinished:
                await self._receive_the_rest()
            start = end
            if self._has_no_room():
                await self._wait_for_room()
            await sleep(0)
        return data[start:]

    async def _receive_the_rest(self) -> None:
        """What takes long to parse, or makes much of little, in steps: as above, but as long as there is room."""
        since = monotonic()
        while self._protocol.unfinished and self._life.phase is not DRAINING:
            if self._has_no_room():
                await self._wait_for_room()
            if monotonic() - since > SLICE:
                await sleep(0)
                since = monotonic()
            more = self._received(b"")
            if more is not None:
                await self._see_to(more)

    def _choose_piece(self, messages: int) -> None:
        """As large as may be for few large messages, small for many small ones."""
        if messages > PIECE_MESSAGES:
            self._piece = max(PIECE_BYTES, self._piece // 2)
        elif messages <= PIECE_MESSAGES // 8 and self._piece < MAX_PIECE_BYTES:
            self._piece *= 2

    def _received(self, data: bytes) -> Received | None:
        """Deliver the messages in `data`; return what has come if there is more to be seen to."""
        if self._life.phase is DRAINING:
            return None
        received = self._protocol.receive_some(data)
        messages = left = received.messages
        if received.replies is not None:
            self._answer(received)
        if self._piece < MAX_PIECE_BYTES or len(messages) > PIECE_MESSAGES:
            self._choose_piece(len(messages))
        if messages:
            self._inbox.count(len(messages))
            if self._trace.on:
                trace_messages(self._trace, messages)
            if self._lendable:
                self._may_lend = self._is_one_to_lend_to(messages[-1])
            if self._inbox.sifter is not None:
                left = self._inbox.sifted(messages)
            if self._on_loop:
                self._deliver_on_loop(left)
            elif left:
                self._inbox.deliver(left)
                if self._callbacks.handlers.hear_messages():
                    self._callbacks.notify()
        if sent_too_much:  # before anybody else reads: it was done callbacks of what has come here
            self._note_who_sent_too_much()
        if received.is_more or (self._on_loop and messages and self._outgoing.queue):
            return received
        return None

    def _is_one_to_lend_to(self, last: str | bytes) -> bool:
        """Whether just one thread waits for what follows this message, which is likely to be like it; or has waited
        before, and now takes what has come: it will wait again.
        """
        if self._on_loop and not (self._waiters.receivers or self._waiters.askers):
            return False
        leaders = self._bridge.leaders()
        return len(last) < MAX_FRAME and (leaders == 1 or (self._may_lend and not leaders))

    def _deliver_on_loop(self, messages: list[str | bytes]) -> None:
        """Have the handlers run here and now; what they send without a pause is written after that."""
        self._sender.flush_comes()
        if messages and not self._inbox.messages:
            messages = self._callbacks.run_at_once(messages)
        if messages:
            self._inbox.deliver(messages)
            self._callbacks.notify()
        self._sender.flush_has_come()

    async def _see_to(self, received: Received) -> None:
        """Pongs, a close, a failure, what must be answered, and what handlers on the loop have sent."""
        for payload in received.pongs:
            self._pong(payload)
        if received.failure is not None and self._on_loop:
            await self._wait_for_first_handler()
        close_frame = received.close_frame
        if received.failure is not None and not (self._on_loop and self._outgoing.waits()):
            # Else session.write() does that behind what the handlers have answered to what they heard before it.
            with self._transport.wire:
                close_frame = self._protocol.fail()
        if close_frame and self._writer.send_close_frame(close_frame):
            self._trace(">", f"a Close frame, {len(close_frame)} bytes")
        if received.close is not None and self._trace.on:
            self._trace("<", f"Close frame, code {received.close.code}, reason {received.close.reason!r}")
        if received.close is not None or received.failure is not None:
            self._life.closing_by_server()
        if received.failure is not None:
            self._trace("!", f"{received.failure}; told the server so with code {received.failure.sent_code}")
        if received.close is not None or received.failure is not None:
            await self._session.drain(received.close, received.failure)
        else:
            await self._session.write()

    async def _wait_for_first_handler(self) -> None:
        """What came before a failure may wait for a handler that is set a line after the constructor: it may answer."""
        deadline = monotonic() + _HANDLER_PATIENCE
        while self._inbox.messages and self._life.close_request is None and monotonic() < deadline:
            await sleep(_HANDLER_PATIENCE / 50)

    def _pong(self, payload: bytes) -> None:
        answered = self._keepalive.pong(payload, monotonic())
        self._trace("<", f"pong, which answers {len(answered)} of our pings")
        if answered:
            self._bridge.ponged(answered)
            self._bridge.wake()

    def _answer(self, received: Received) -> None:
        """Have the Pongs on their way before anything is delivered that came behind their Pings: what is sent in reply
        to that must not overtake them. Nothing may follow the Close frame that close() may just have sent.
        """
        transport, writer, replies = self._transport, self._writer, received.replies
        assert replies is not None
        with transport.wire:
            if writer.closed:
                return
            transport.send_pongs(replies)
            if not writer.stuck and self._life.close_request is None:
                writer.write()  # session.write() sees to what is left
        self._trace(">", f"{len(replies)} answers to pings")

    # ---- back-pressure

    async def _wait_for_room(self) -> None:
        """Back-pressure: while the inbox is full, the peer feels it; its silence is then our own doing."""
        while True:
            self._keepalive.pause()
            self._warn_once_about_full_inbox()
            self._trace("%", f"reading stops: {len(self._inbox.messages)} messages wait to be consumed")
            self._room = Event()
            await self._room.wait()
            self._room = None
            self._trace("%", "reading goes on")
            self._keepalive.resume(monotonic())
            await self._session.arm()
            if not self._has_no_room():
                break

    def _has_no_room(self) -> bool:
        """Whether the inbox is full, or callbacks on the loop, which may not wait, have sent too much to anybody."""
        if self._life.phase is DRAINING:
            return False
        if (self._held_up_by and self._is_held_up()) or self._inbox.wait_for_sifter():
            return True
        return self._bridge.is_full()

    def _is_held_up(self) -> bool:
        """Whether handlers that what we have read has called on the loop have sent too much, to this socket or another:
        that goes on reading only when it has been written.
        """
        for outgoing in self._held_up_by:
            given_up = outgoing is not self._outgoing and self._life.phase is not OPEN
            if not given_up and outgoing.hold_up(self.ask_to_resume):
                return True
            self._held_up_by -= {outgoing}
        return False

    def hold_up_handlers(self) -> bool:
        """Handlers on the loop have sent more than a `write_limit` allows. Return True if they must wait until that is
        written; then resume_reading() lets them go on.
        """
        self._note_who_sent_too_much()
        return self._is_held_up()

    def _note_who_sent_too_much(self) -> None:
        self._held_up_by |= sent_too_much
        sent_too_much.clear()

    @property
    def is_lent(self) -> bool:
        """Whether another thread reads."""
        return self._reader is not None and self._reader.lent

    @property
    def waits_for_room(self) -> bool:
        """Whether reading has stopped until resume_reading()."""
        return self._room is not None

    def _warn_once_about_full_inbox(self) -> None:
        if self._full_inbox_told or not self._inbox.reading_stopped:
            return
        self._full_inbox_told = True
        log.warning(
            "%s: %d messages wait to be consumed (max_queue=%d, or 64 MiB): reading stops until there is room",
            self._session.where,
            len(self._inbox.messages),
            self._options.max_queue,
        )

    # ---- any thread

    def ask_to_resume(self) -> None:
        """There may be room again."""
        self._bridge.post(self.resume_reading)

    def ask_to_read_again(self) -> None:
        """A thread waits for what the leader does not read, or a handler was set."""
        self._bridge.post(self.read_again)

    def ask_to_sift_again(self) -> None:
        """The thread that has read, or had the sifter see what has come, was interrupted."""
        self._bridge.post(self._sift_again)

    # ---- commands

    async def resume_reading(self) -> None:
        """There may be room again (command)."""
        if not self._held_up_by or not self._is_held_up():
            self._callbacks.go_on()
        if self._room is not None:
            await self._room.set()

    async def _sift_again(self) -> None:
        if self._reader is not None:
            await self._reader.want_back()
        if self._inbox.sift():
            self._waiters.wake_receivers()
            self._callbacks.notify()
        await self.resume_reading()  # which may have waited for that thread

    async def read_again(self) -> None:
        """The loop is to read, and the handlers to look (command)."""
        if self._reader is not None:
            await self._reader.want_back()
        self._callbacks.notify()
