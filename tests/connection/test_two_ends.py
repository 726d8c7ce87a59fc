"""Two real ends and a simple model between them: the library at one end of a socket pair, wsproto at the other.

hypothesis chooses what both do, in any legal order; the server's bytes go over in pieces cut anywhere, and may end or
be reset at any byte. After each step the client must show what the model says: which messages have come, in which
order, its state, its counts; at the end the close event, and every message of its own that the server has seen.

Every run takes a few examples, with slow tests a hundred more, and with NWEBSOCKET_FULL=1 thousands:

    NWEBSOCKET_FULL=1 pytest tests/connection/test_two_ends.py

The last result: 4,500 examples of 30 steps, 4 minutes, all well.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from measure import FULL
from peers import LIMIT
from until import until
from wsproto import ConnectionType, WSConnection, events
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason

from nwebsocket import ConnectionClosed, InvalidStateError, WaitTimeout, WebSocket
from nwebsocket.exceptions import Cancelled, ConnectionFailed, ConnectionLost

CONNECTING, OPEN, CLOSING, CLOSED = range(4)
Message = str | bytes

WAYS = ("thread", "loop", "recv")
"""Handlers on their thread, handlers on the loop, or none."""

PHASES = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if FULL else [])]
"""What fails is made smaller only where there is time for it: many of the steps then wait in vain."""

ECHO = "echo "
"""Handlers send back what begins so."""


class Server:
    """wsproto's end. What it says waits in `unsent` until the test has it go over."""

    def __init__(self, sock: socket.socket, compression: bool) -> None:
        self.sock = sock
        self.unsent = b""
        self.said = 0  # bytes
        self.heard: list[Message] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.close: tuple[int, str] | None = None
        self.received = 0  # bytes
        self.ended = False
        self.can_speak = True
        self._parts: list[Any] = []
        self._connection = WSConnection(ConnectionType.SERVER)
        self._extensions = [PerMessageDeflate()] if compression else []
        self.read_until(lambda: bool(self.said))

    def say(self, event: events.Event) -> int:
        """Queue an event; return the number of the byte behind it."""
        data = self._connection.send(event)
        self.unsent += data
        self.said += len(data)
        if isinstance(event, events.CloseConnection):
            self.can_speak = False
        return self.said

    def read_until(self, done: Callable[[], bool]) -> None:
        """Take in what the client says, to its end or until it is ``done()``."""
        while not self.ended and not done():
            try:
                data = self.sock.recv(65_536)
            except ConnectionResetError:
                data = b""
            self.received += len(data)
            self.ended = not data
            if data:
                self._connection.receive_data(data)
                for event in self._connection.events():
                    self._on_event(event)

    def _on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Request):
            self.say(events.AcceptConnection(extensions=[*self._extensions]))
        elif isinstance(event, events.Ping):
            self.pings.append(bytes(event.payload))
            if self.can_speak:
                self.say(event.response())
        elif isinstance(event, events.Pong):
            self.pongs.append(bytes(event.payload))
        elif isinstance(event, events.CloseConnection):
            assert self.close is None
            self.close = (int(event.code), event.reason or "")
            if self.can_speak:
                self.say(event.response())
        else:
            self._on_part(event)

    def _on_part(self, event: Any) -> None:
        self._parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
        if event.message_finished:
            self.heard.append(joined(self._parts))
            self._parts = []


def joined(parts: list[Any]) -> Message:
    return "".join(parts) if isinstance(parts[0], str) else b"".join(parts)


def message_event(data: Message, last: bool = True) -> events.Event:
    if isinstance(data, str):
        return events.TextMessage(data, message_finished=last)
    return events.BytesMessage(data, message_finished=last)


def size_of(message: Message) -> int:
    return len(message.encode() if isinstance(message, str) else message)


sizes = st.sampled_from([1, 125, 126, 4096, 65_535, 65_536, 300_000])
texts = st.one_of(
    st.text(max_size=40),
    st.text(max_size=9).map(ECHO.__add__),
    st.builds(lambda unit, size: (unit * size)[:size], st.sampled_from(["x", "ö漢", "🙂"]), sizes),
)
blobs = st.one_of(
    st.binary(max_size=40), st.builds(lambda unit, size: (unit * size)[:size], st.binary(min_size=1, max_size=9), sizes)
)
messages = st.one_of(texts, texts, blobs)
bursts = st.lists(messages, min_size=1, max_size=4)
codes = st.one_of(st.sampled_from([1000, 3000, 4999]), st.integers(3000, 4999))
reasons = st.one_of(st.just(""), st.text(max_size=30))


class TwoEnds(RuleBasedStateMachine):
    """The model: what the server has said and how much of that has gone over, what the client has accepted."""

    way = "thread"

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, Message]] = []  # whole messages, with the numbers of the bytes behind them
        self.parts: list[Any] = []  # of the one under way
        self.server_close: tuple[int, int, str] | None = None  # where it ends, code and reason
        self.delivered = 0  # bytes
        self.accepted: list[Message] = []
        self.heard: list[Message] = []
        self.events: list[str] = []
        self.error: Exception | None = None
        self.client_closed = False
        self.was_open = False
        self.cut = False  # the server's bytes end here
        self.hung_up = False  # ... and it does not read, either
        self.server_pinged: list[tuple[int, bytes]] = []
        self.pings: list[tuple[int, Future[float]]] = []
        self.receiving: Future[Message] | None = None
        self.threads = ThreadPoolExecutor(4)

    # ---- the beginning

    @initialize(
        compression=st.booleans(),
        opened=st.integers(0, 4),
        life=st.integers(0, 20),
        end=st.sampled_from(["client", "server", "stream", "line"]),
    )
    def connect(self, compression: bool, opened: int, life: int, end: str) -> None:
        """``life``: before so many steps nobody ends anything. ``end``: what or who does, if nobody has to the last."""
        self.life = life
        self.end = end
        ours, theirs = socket.socketpair()
        theirs.settimeout(LIMIT)
        where: Literal["loop", "thread"] = "loop" if self.way == "loop" else "thread"
        self.ws = WebSocket(
            "ws://pair.example/", sock=ours, callbacks=where, compression="deflate" if compression else None
        )
        self.ws.onopen = lambda: self.events.append("open")
        self.ws.onclose = lambda event: self.events.append(f"close {event.code} {event.wasClean} {event.reason}")
        self.ws.onerror = self.on_error
        if self.way != "recv":
            self.ws.onmessage = self.on_message
        self.server = Server(theirs, compression)
        self.handshake = self.server.said
        if opened:
            self.deliver(1.0, 1_000_000)

    def on_error(self, error: Exception) -> None:
        self.events.append("error")
        self.error = error

    def on_message(self, message: Message) -> None:
        if isinstance(message, str) and message.startswith(ECHO):
            with contextlib.suppress(ConnectionClosed):
                self.ws.send(message)
                self.accepted.append(message)
        self.heard.append(message)

    # ---- what the model says

    @property
    def to_hear(self) -> list[Message]:
        """The messages that have gone over as a whole."""
        return [message for end, message in self.said if end <= self.delivered]

    @property
    def to_answer(self) -> list[bytes]:
        """The pings that have gone over. Of several in a row, the last is answered in any case."""
        return [payload for end, payload in self.server_pinged if end <= self.delivered]

    @property
    def pong_has_come(self) -> bool:
        return self.server.pongs[-1:] == self.to_answer[-1:]

    @property
    def closed_by_server(self) -> bool:
        return self.server_close is not None and self.server_close[0] <= self.delivered

    @property
    def state(self) -> int:
        if self.cut or (self.client_closed and not self.was_open):
            return CLOSED
        if self.client_closed or self.closed_by_server:
            return CLOSING
        return OPEN if self.was_open else CONNECTING

    @property
    def over(self) -> bool:
        return self.state == CLOSED

    @property
    def may_end(self) -> bool:
        return self.life <= 0

    @property
    def server_speaks(self) -> bool:
        return not self.cut and self.server.can_speak and self.server.close is None

    # ---- the server

    @precondition(lambda self: self.server_speaks and not self.parts)
    @rule(burst=bursts)
    def server_sends(self, burst: list[Message]) -> None:
        self.said += [(self.server.say(message_event(message)), message) for message in burst]

    @precondition(lambda self: self.server_speaks)
    @rule(text=st.text(max_size=20), last=st.booleans())
    def server_sends_a_fragment(self, text: str, last: bool) -> None:
        binary = bool(self.parts) and isinstance(self.parts[0], bytes)
        part: Any = text.encode() if binary or (not self.parts and text.startswith("0")) else text
        self.parts.append(part)
        end = self.server.say(message_event(part, last))
        if last:
            self.said.append((end, joined(self.parts)))
            self.parts = []

    @precondition(lambda self: self.server_speaks)
    @rule(payloads=st.lists(st.binary(max_size=120), min_size=1, max_size=3))
    def server_pings(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            payload = b"%d:" % len(self.server_pinged) + payload
            self.server_pinged.append((self.server.say(events.Ping(payload)), payload))

    @precondition(lambda self: self.server_speaks)
    @rule(payload=st.binary(max_size=125))
    def server_sends_a_pong(self, payload: bytes) -> None:
        self.server.say(events.Pong(payload))

    @precondition(lambda self: self.may_end and self.server_speaks)
    @rule(code=st.one_of(st.just(1005), codes, st.sampled_from([1001, 1011])), reason=reasons)
    def server_closes(self, code: int, reason: str) -> None:
        if code == 1005:
            code, reason = CloseReason.NO_STATUS_RCVD, ""
        self.server_close = (self.server.say(events.CloseConnection(code, reason)), code, reason)

    @precondition(lambda self: not self.hung_up)
    @rule()
    def server_reads(self) -> None:
        """Everything that the client has accepted by now."""
        expects_close = self.state >= CLOSING
        self.server.read_until(
            lambda: self.server.close is not None
            or (not expects_close and len(self.server.heard) == len(self.accepted) and self.pong_has_come)
        )
        if self.server.close is not None and self.server_close is None and not self.server.can_speak:
            self.server_close = (self.server.said, *self.server.close)
        assert self.server.heard == self.accepted[: len(self.server.heard)]
        pings = iter(self.to_answer)
        assert all(pong in pings for pong in self.server.pongs)

    @precondition(lambda self: bool(self.server.unsent) and not self.cut)
    @rule(share=st.sampled_from([0.5, 0.1, 0.0]), piece=st.sampled_from([1, 2, 3, 7, 100, 100_000, 1_000_000]))
    def deliver(self, share: float, piece: int) -> None:
        """Have some of what the server has said go over, in pieces."""
        size = max(1, int(share * len(self.server.unsent)))
        data, self.server.unsent = self.server.unsent[:size], self.server.unsent[size:]
        piece = max(piece, size // 50)
        dead = self.over
        for start in range(0, size, piece):
            try:
                self.server.sock.sendall(data[start : start + piece])
            except ConnectionError:
                assert dead or self.state == CLOSING
        self.delivered += 0 if dead else size
        self.settle()

    @precondition(lambda self: bool(self.server.unsent) and not self.cut)
    @rule(piece=st.sampled_from([1, 2, 3, 7, 100, 1_000_000]))
    def deliver_all(self, piece: int) -> None:
        self.deliver(1.0, piece)

    @precondition(lambda self: self.may_end and not self.cut)
    @rule()
    def server_ends_the_stream(self) -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            self.server.sock.shutdown(socket.SHUT_WR)
        self.cut = True
        self.settle()

    @precondition(lambda self: self.may_end and not self.hung_up)
    @rule()
    def server_hangs_up(self) -> None:
        """Which is a reset, if it has left anything unread."""
        self.server.sock.close()
        self.cut = self.hung_up = True
        self.settle()

    # ---- the client

    @rule(burst=bursts)
    def client_sends(self, burst: list[Message]) -> None:
        for message in burst:
            self.client_sends_data(message, message)

    @rule(parts=st.one_of(st.lists(texts, min_size=1, max_size=4), st.lists(blobs, min_size=1, max_size=4)))
    def client_sends_fragments(self, parts: list[Any]) -> None:
        self.client_sends_data(iter(parts), joined(parts))

    def client_sends_data(self, data: Any, message: Message) -> None:
        if self.state == OPEN:
            self.ws.send(data)
            self.accepted.append(message)
        else:
            with pytest.raises(InvalidStateError if self.state == CONNECTING else ConnectionClosed):
                self.ws.send(data)

    @precondition(lambda self: self.state == OPEN and self.server_speaks and len(self.pings) < 3)
    @rule()
    def client_pings(self) -> None:
        """Its pong goes over some day."""
        ping = self.threads.submit(self.ws.ping, LIMIT)
        self.server.read_until(lambda: len(self.server.pings) > len(self.pings))
        self.pings.append((self.server.said, ping))

    @precondition(lambda self: self.may_end)
    @rule(code=st.one_of(st.none(), codes), reason=reasons)
    def client_closes(self, code: int | None, reason: str) -> None:
        if self.state < CLOSING:
            self.client_closed = True
        self.ws.close(code, reason)
        if self.over:
            self.settle()

    @precondition(lambda self: self.way == "recv" and self.receiving is None)
    @rule()
    def client_receives(self) -> None:
        if len(self.heard) < len(self.to_hear):
            self.heard.append(self.ws.recv(LIMIT))
        else:
            with pytest.raises(ConnectionClosed if self.over else WaitTimeout):
                self.ws.recv(0)

    @precondition(lambda self: self.way == "recv" and self.receiving is None and not self.over)
    @rule()
    def client_waits_for_a_message(self) -> None:
        self.receiving = self.threads.submit(self.ws.recv, LIMIT)
        self.settle()

    # ---- what must hold

    def settle(self) -> None:
        """Wait until the client has taken note of what went over."""
        expected = self.to_hear
        if self.delivered >= self.handshake and not self.over and not self.was_open:
            self.was_open = self.ws.wait_open(LIMIT) is self.ws
        until(lambda: self.ws.stats.messages_received == len(expected))
        if self.closed_by_server:
            until(lambda: self.ws.readyState >= CLOSING)
        if self.receiving is not None and (self.over or len(self.heard) < len(expected)):
            receiving, self.receiving = self.receiving, None
            try:
                self.heard.append(receiving.result(LIMIT))
            except ConnectionClosed:
                assert len(self.heard) == len(expected)
        if self.way != "recv":
            until(lambda: len(self.heard) == len(expected))
        for _, ping in [ping for ping in self.pings if ping[0] <= self.delivered]:
            assert ping.result(LIMIT) >= 0
        if self.over:
            self.ended()

    def ended(self) -> None:
        """The connection is over: what everybody has heard of it."""
        end = self.ws.wait_closed(LIMIT)
        assert (end.code, end.reason, end.wasClean) == self.expected_end
        code, reason, clean = self.expected_end
        expected = [f"close {code} {clean} {reason}"]
        if code == 1006:
            expected.insert(0, "error")
        if self.was_open:
            expected.insert(0, "open")
        assert self.events == expected
        assert (self.error is None) == clean
        if self.error is not None:
            kind = ConnectionLost if self.was_open else Cancelled if self.client_closed else ConnectionFailed
            assert isinstance(self.error, kind)

    @property
    def expected_end(self) -> tuple[int, str, bool]:
        if self.closed_by_server and self.server_close is not None:
            return self.server_close[1], self.server_close[2], True
        return 1006, "", False

    @invariant()
    def the_client_shows_what_the_model_says(self) -> None:
        self.life -= 1
        # After both Close frames, it waits but a second for the server to end the stream.
        assert self.ws.readyState in ((self.state, CLOSED) if self.closed_by_server else (self.state,))
        assert self.heard == self.to_hear[: len(self.heard)]
        stats = self.ws.stats
        assert stats.messages_sent == len(self.accepted)
        assert stats.messages_received == len(self.to_hear)
        if self.receiving is None:
            assert stats.inbox == len(self.to_hear) - len(self.heard)
        assert self.ws.bufferedAmount >= 0
        unread = sum(map(size_of, self.accepted[len(self.server.heard) :]))
        until(lambda: self.ws.bufferedAmount <= unread)
        assert len(self.events) == len(set(self.events))

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.threads.shutdown()
            self.server.sock.close()

    def come_to_an_end(self) -> None:
        """If it has not yet; and compare what both have got in the end."""
        if self.end == "server" and self.server_speaks:
            self.server_closes(1000, "bye")
        elif self.end == "line" and not self.hung_up:
            self.server_hangs_up()
        elif self.end == "stream" and not self.cut:
            self.server_ends_the_stream()
        elif not self.over:
            self.client_closes(None, "")
        if not self.hung_up:
            self.come_to_the_end_of_the_stream()
        self.settle()
        self.the_client_shows_what_the_model_says()
        if self.was_open:
            assert self.ws.stats.bytes_received == self.delivered
            assert self.hung_up or self.ws.stats.bytes_sent == self.server.received

    def come_to_the_end_of_the_stream(self) -> None:
        if not self.cut:
            while self.server.unsent:
                self.deliver(1.0, 1_000_000)
            if self.state == CLOSING:
                self.server_reads()
            while self.server.unsent:
                self.deliver(1.0, 1_000_000)
            self.server_ends_the_stream()
        self.server.read_until(lambda: False)


def run(way: str, examples: int) -> None:
    machine = type("TwoEnds", (TwoEnds,), {"way": way})
    limits = settings(
        max_examples=examples, stateful_step_count=30, phases=PHASES, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=limits)


@pytest.mark.parametrize("way", WAYS)
def test_two_ends(way: str) -> None:
    run(way, 5)


@pytest.mark.slow
@pytest.mark.timeout(600 if FULL else 60)
@pytest.mark.parametrize("way", WAYS)
def test_two_ends_many_times(way: str) -> None:
    run(way, 1500 if FULL else 30)
