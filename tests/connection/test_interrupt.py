"""Ctrl-C, signal handlers and finalizers, at any moment: what waits is interrupted, and no connection is harmed."""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import alarms
import garbage
import pytest
from alarms import Barrage, Interruption, alarm
from peers import CLOSE, LIMIT, PING, Authority, Frame, Peer, RawServer, close_frame, ping, pong, text
from until import until

from nwebsocket import ConnectionClosed, ReconnectingWebSocket, WebSocket, close_all, open_sockets
from nwebsocket._connection import bridge as bridge_module
from nwebsocket._connection.intake import Intake
from nwebsocket._connection.writer import Writer
from nwebsocket._network.transport import Transport
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.fast_lane import ENABLED
from nwebsocket._threads import the_loop

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")


class Collector:
    """A server's script: the payloads of all messages end up in `received`; "echo" is echoed.

    ``may_read``   no further frame is read while it is not set
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self.may_read = threading.Event()
        self.may_read.set()

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        while (frame := self.next_frame(peer)).opcode != CLOSE:
            if frame.opcode == PING:
                peer.send(pong(frame.payload))
            elif frame.payload == b"echo":
                peer.send(text("echo"))
            else:
                self.received.append(frame.payload.decode())
        peer.send(close_frame(1000))

    def next_frame(self, peer: Peer) -> Frame:
        self.may_read.wait(LIMIT)
        return peer.read_frame()

    def starting(self, letter: str) -> list[int]:
        """The numbers of the messages that are `letter`, number, colon, and padding."""
        return [int(message[1:].partition(":")[0]) for message in self.received if message[0] == letter]


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def tls() -> bool:
    """Whether `ws` is over TLS; a test may say otherwise."""
    return False


@pytest.fixture
def ws(collector: Collector, ca: Authority, tls: bool) -> Iterator[WebSocket]:
    """An open connection to the collector, which still works after the test unless the test has closed it."""
    contexts = {"server": ca.server(), "client": ca.client()} if tls else {"server": None, "client": None}
    with (
        RawServer(collector, ssl=contexts["server"]) as server,
        WebSocket(server.url, ssl=contexts["client"], write_limit=2**20, compression=None) as ws,
    ):
        yield ws
        if ws.readyState == WebSocket.OPEN:
            check_works(ws)


def check_works(ws: WebSocket) -> None:
    ws.send("echo")
    assert ws.recv(LIMIT) == "echo"
    assert ws.bufferedAmount == 0


# --- What waits is interrupted


def send_without_end(ws: WebSocket) -> None:
    while True:
        ws.send("x" * 2**16)


def iterate(ws: WebSocket) -> None:
    for _ in ws:
        pass


@pytest.mark.parametrize(
    "wait",
    [
        WebSocket.wait_closed,
        lambda ws: ws.wait_closed(LIMIT),
        WebSocket.recv,
        lambda ws: ws.recv(LIMIT),
        iterate,
    ],
    ids=["wait_closed", "wait_closed with timeout", "recv", "recv with timeout", "iteration"],
)
def test_ctrl_c_interrupts_what_waits(ws: WebSocket, wait: Callable[[WebSocket], object]) -> None:
    started = time.monotonic()
    with alarm(signal.default_int_handler, 0.1), pytest.raises(KeyboardInterrupt):
        wait(ws)
    assert time.monotonic() - started < 0.6


def test_ctrl_c_that_interrupts_no_system_call_is_noticed_nevertheless(ws: WebSocket) -> None:
    """So is one that comes between Python's last look for signals and the wait; here another thread gets it."""
    waiting = threading.Event()

    def press() -> None:
        assert waiting.wait(LIMIT)
        time.sleep(0.2)  # until it is the system that waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        waiting.set()
        with pytest.raises(KeyboardInterrupt):
            ws.recv(LIMIT / 2)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, previous)
        presser.join()


def test_ctrl_c_interrupts_a_send_that_waits_at_write_limit(ws: WebSocket, collector: Collector) -> None:
    ws.send("x" * 2**16)  # NumPy is imported with the first large message
    collector.may_read.clear()
    with alarm(signal.default_int_handler, 0.5), pytest.raises(KeyboardInterrupt):
        send_without_end(ws)
    interrupted = time.monotonic()
    assert ws.bufferedAmount > 2**19
    collector.may_read.set()
    check_works(ws)
    assert time.monotonic() - interrupted < LIMIT


def test_ctrl_c_interrupts_ping(ws: WebSocket, collector: Collector) -> None:
    collector.may_read.clear()
    ws.send("a0")  # the frame that is being read already
    started = time.monotonic()
    with alarm(signal.default_int_handler, 0.1), pytest.raises(KeyboardInterrupt):
        ws.ping()
    assert time.monotonic() - started < 0.6
    collector.may_read.set()


def test_ctrl_c_interrupts_wait_open() -> None:
    may_accept = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.request
        may_accept.wait(LIMIT)
        Collector()(peer)

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        started = time.monotonic()
        with alarm(signal.default_int_handler, 0.1), pytest.raises(KeyboardInterrupt):
            ws.wait_open()
        assert time.monotonic() - started < 0.6
        assert ws.readyState == WebSocket.CONNECTING
        may_accept.set()
        with ws:
            check_works(ws)


def test_ctrl_c_in_a_with_block_closes(ws: WebSocket, collector: Collector) -> None:
    ws.send("a0")
    with alarm(signal.default_int_handler, 0.1), pytest.raises(KeyboardInterrupt), ws:
        ws.recv()
    assert ws.wait_closed(LIMIT).wasClean
    assert collector.received == ["a0"]


def test_ctrl_c_in_the_main_thread_leaves_other_threads_and_handlers_alone(ws: WebSocket) -> None:
    heard = threading.Event()
    ws.onmessage = lambda message: heard.set()
    with alarm(signal.default_int_handler, 0.1), pytest.raises(KeyboardInterrupt):
        ws.wait_closed()
    ws.send("echo")
    assert heard.wait(LIMIT)
    ws.close()


# --- A barrage


@pytest.fixture
def no_collection() -> Iterator[None]:
    with alarms.no_collection():
        yield


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("seconds", [0.5, pytest.param(5.0, marks=pytest.mark.slow)], ids=["short", "long"])
@pytest.mark.parametrize("size", [8, 5000], ids=["small", "large"])
def test_interrupted_sends_lose_and_double_nothing(
    ws: WebSocket, collector: Collector, seconds: float, size: int, tls: bool
) -> None:
    barrage, padding = Barrage(), "x" * size
    returned = []
    deadline = time.monotonic() + seconds
    with alarm(barrage, 0.0005, 0.0005):
        for number in itertools.count():
            if barrage.attempt(ws.send, f"a{number}:{padding}"):
                returned.append(number)
            if time.monotonic() > deadline:
                break
    assert barrage.count > 50
    check_works(ws)
    ws.close()
    assert ws.wait_closed(LIMIT).wasClean
    arrived = collector.starting("a")
    assert arrived == sorted(set(arrived))
    assert set(returned) <= set(arrived)
    assert ws.bufferedAmount == 0


def commands_done() -> None:
    """Wait until the loop thread has seen to all that was posted."""
    done = threading.Event()

    async def command() -> None:
        done.set()

    for _ in range(3):  # a command may post another one
        done.clear()
        the_loop.current().post(command)
        assert done.wait(LIMIT)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_interrupted_send_needs_no_other_one_to_get_through(ws: WebSocket, collector: Collector, tls: bool) -> None:
    barrage, deadline, interrupted = Barrage(), time.monotonic() + 1.0, 0
    with alarm(barrage, 0.0005, 0.0005):
        while time.monotonic() < deadline:
            before = ws.stats.messages_sent
            if not barrage.attempt(ws.send, f"a{interrupted}"):
                interrupted += 1
                commands_done()
                assert ws.bufferedAmount == 0
                assert ws.stats.messages_sent - before in (0, 1)
    assert interrupted > 20


by_the_sender = pytest.mark.skipif(not ENABLED, reason="without the fast lane only the loop thread writes")


class Interrupting(list[bytes]):
    """A list in whose use a signal handler raises."""

    def extend(self, items: Any) -> None:
        super().extend(items)
        raise Interruption


@by_the_sender
@pytest.mark.parametrize("tls", [True], ids=["tls"])
def test_a_send_interrupted_after_encryption_is_sent_by_the_loop(ws: WebSocket, collector: Collector) -> None:
    transport = ws._nwebsocket.session._transport
    transport._output = Interrupting()
    with pytest.raises(Interruption):
        ws.send("a1")
    transport._output = list(transport._output)
    commands_done()
    assert transport.has_sent(ws._nwebsocket.bridge.outgoing.number)
    assert ws.bufferedAmount == 0
    check_works(ws)
    assert collector.received == ["a1"]


@by_the_sender
def test_a_send_interrupted_before_it_was_counted_is_counted_by_the_loop(ws: WebSocket) -> None:
    outgoing = ws._nwebsocket.bridge.outgoing

    def has_written_all() -> None:
        del outgoing.has_written_all
        raise Interruption

    outgoing.has_written_all = has_written_all
    with pytest.raises(Interruption):
        ws.send("a1")
    commands_done()
    assert ws.bufferedAmount == 0


@by_the_sender
@pytest.mark.parametrize("method", ["has_sent", "flush"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_close_is_carried_out_nevertheless(
    ws: WebSocket, method: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(Transport, method)

    def interrupted(transport: Transport, *arguments: Any) -> Any:
        monkeypatch.undo()
        if after:
            original(transport, *arguments)
        raise Interruption

    monkeypatch.setattr(Transport, method, interrupted)
    with pytest.raises(Interruption):
        ws.close()
    assert ws.wait_closed(LIMIT).wasClean


@pytest.mark.skipif(not ENABLED, reason="without the fast lane the loop writes the Close frame")
@pytest.mark.parametrize("place", [(Writer, "_finish_close"), (Protocol, "close_is_sent")])
def test_nothing_follows_the_close_frame_of_an_interrupted_close(
    place: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ping has come meanwhile: the loop has read it, and waits to answer."""
    may_ping, has_read, frames = threading.Event(), threading.Event(), list[Frame]()
    answer, main = Intake._answer, threading.get_ident()
    (owner, name), original = place, getattr(*place)

    def script(peer: Peer) -> None:
        peer.accept()
        assert may_ping.wait(LIMIT)
        peer.send(ping(b"?"))
        frames.extend(peer.read_until_close())
        peer.send(close_frame(1000))
        assert peer.read_eof() == b""

    def noting(intake: Intake, *arguments: Any) -> None:
        has_read.set()
        answer(intake, *arguments)

    def interrupted(self: Any, *arguments: Any) -> Any:
        if threading.get_ident() != main:
            return original(self, *arguments)
        monkeypatch.setattr(owner, name, original)
        may_ping.set()
        assert has_read.wait(LIMIT)
        raise Interruption

    with RawServer(script) as server:
        ws = WebSocket(server.url, compression=None).wait_open(LIMIT)
        monkeypatch.setattr(Intake, "_answer", noting)
        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(Interruption):
            ws.close()
        assert ws.wait_closed(LIMIT).wasClean
    assert [frame.opcode for frame in frames] == [CLOSE]


@pytest.mark.parametrize("kind", [WebSocket, ReconnectingWebSocket])
def test_a_constructor_may_be_interrupted_when_its_socket_is_known(
    echo: str, kind: type[WebSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that closes all sockets, or looks at them, finds nothing missing; nor does what cleans up."""
    start = bridge_module.Bridge.start

    def interrupted(bridge: bridge_module.Bridge, run: Any) -> None:
        (ws,) = open_sockets()
        assert (ws.stats.bytes_sent, ws.protocol, ws.latency) == (0, "", None)
        assert close_all() == [ws]
        start(bridge, run)
        raise Interruption

    monkeypatch.setattr(bridge_module.Bridge, "start", interrupted)
    with pytest.raises(Interruption):
        kind(echo)
    until(lambda: open_sockets() == [])


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("timeout", [None, 0.0003, LIMIT])
@pytest.mark.parametrize("name", ["recv", "wait_closed", "ping"])
def test_interrupted_waits_harm_nothing(ws: WebSocket, name: str, timeout: float | None) -> None:
    barrage = Barrage()
    deadline = time.monotonic() + 0.4
    with alarm(barrage, 0.0005, 0.0005):
        while time.monotonic() < deadline:
            barrage.attempt(getattr(ws, name), timeout)
    assert barrage.count > 10


# --- Signal handlers and finalizers that use the socket themselves


def test_a_signal_handler_may_send_while_the_main_thread_sends(ws: WebSocket, collector: Collector) -> None:
    numbers = itertools.count()
    busy = False

    def handler(*_: object) -> None:
        nonlocal busy
        if not busy:  # a handler may interrupt a handler, and the later number would come first
            busy = True
            ws.send(f"s{next(numbers)}")
            busy = False

    deadline = time.monotonic() + 0.4
    with alarm(handler, 0.0005, 0.0005):
        for number in itertools.count():
            ws.send(f"m{number}")
            if time.monotonic() > deadline:
                break
    sent = next(numbers)
    assert sent > 50
    check_works(ws)
    assert collector.starting("m") == list(range(number + 1))
    assert collector.starting("s") == list(range(sent))


def within_the_library(lock: Any, function: Callable[[], None]) -> None:
    """Call `function` with the lock held, as if the main thread were inside a call of the library."""

    def call(lock: Any, function: Callable[[], None]) -> None:
        with lock:
            function()

    types.FunctionType(call.__code__, vars(bridge_module))(lock, function)


@pytest.mark.parametrize("inside", ["this socket", "another socket", "the wire"])
def test_a_signal_handler_that_would_wait_for_what_it_interrupted(echo: str, inside: str) -> None:
    """The loop thread needs the interrupted call's lock to go on: send() goes on without room, the others raise."""
    outcomes: list[Any] = []

    def handler(*_: object) -> None:
        for number in range(5):
            ws.send(str(number))
        for wait in (ws.recv, ws.ping, ws.wait_closed):
            try:
                outcomes.append(wait(LIMIT))
            except RuntimeError as error:
                outcomes.append(type(error))

    with WebSocket(echo, write_limit=1) as ws, WebSocket(echo) as other:
        locks = {
            "this socket": ws._nwebsocket.bridge.lock,
            "another socket": other._nwebsocket.bridge.lock,
            "the wire": ws._nwebsocket.bridge.sender.writer.wire,
        }
        previous = signal.signal(signal.SIGUSR1, handler)
        try:
            within_the_library(locks[inside], lambda: signal.raise_signal(signal.SIGUSR1))
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert len(outcomes) == 3
        assert issubclass(outcomes[2], RuntimeError)  # wait_closed() never ends by itself
        received = [outcome for outcome in outcomes if isinstance(outcome, str)]
        while len(received) < 5:
            received.append(str(ws.recv(LIMIT)))
        assert received == ["0", "1", "2", "3", "4"]
        check_works(ws)


@pytest.mark.parametrize("attempt", range(5))
def test_a_signal_handler_may_close_while_the_main_thread_sends(
    ws: WebSocket, collector: Collector, attempt: int
) -> None:
    accepted = 0
    with alarm(lambda *_: ws.close(1000), 0.05 + attempt / 1000), contextlib.suppress(ConnectionClosed):
        while True:
            ws.send(f"m{accepted}")
            accepted += 1
    assert ws.wait_closed(LIMIT).wasClean
    arrived = collector.starting("m")
    assert arrived == list(range(len(arrived)))
    # The handler may have closed between the acceptance of a message and the counting of it, but no earlier.
    assert accepted <= len(arrived) <= accepted + 1


def test_a_signal_handler_may_send_while_the_main_thread_receives(ws: WebSocket) -> None:
    with alarm(lambda *_: ws.send("echo"), 0.05):
        assert ws.recv(LIMIT) == "echo"


class Noisy:
    """Garbage that says goodbye over the network."""

    def __init__(self, ws: WebSocket, number: int) -> None:
        self._ws = ws
        self._number = number
        self._myself = self  # only the garbage collector finds it

    def __del__(self) -> None:
        self._ws.send(f"f{self._number}")


@pytest.fixture
def constant_collection() -> Iterator[None]:
    """The garbage collector runs at every allocation, in whatever thread that happens."""
    thresholds = gc.get_threshold()
    garbage.collect()
    gc.freeze()  # to be fast: nothing older is looked at
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@pytest.mark.usefixtures("constant_collection")
def test_a_finalizer_may_send_wherever_the_collector_finds_it(ws: WebSocket, collector: Collector) -> None:
    total = 300
    for number in range(total):
        Noisy(ws, number)
        ws.send(f"m{number}")
    garbage.collect()
    check_works(ws)
    ws.close()
    assert ws.wait_closed(LIMIT).wasClean
    assert collector.starting("m") == list(range(total))
    assert sorted(collector.starting("f")) == list(range(total))
    assert ws.bufferedAmount == 0


@pytest.mark.usefixtures("constant_collection")
def test_a_finalizer_may_send_while_messages_are_received(ws: WebSocket, collector: Collector) -> None:
    total = 100
    for number in range(total):
        Noisy(ws, number)
        if number % 10 == 0:
            ws.send("echo")
            assert ws.recv(LIMIT) == "echo"
        else:
            ws.ping(LIMIT)
    garbage.collect()
    ws.close()
    assert ws.wait_closed(LIMIT).wasClean
    assert sorted(collector.starting("f")) == list(range(total))


class Flood:
    """A server's script: at each message, sends a thousand numbers."""

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        while peer.read_frame().opcode != CLOSE:
            peer.send(b"".join(text(str(number)) for number in range(1000)))
        peer.send(close_frame(1000))


@pytest.fixture
def stopped() -> Iterator[WebSocket]:
    """A connection that is not read, because its inbox is full; the last of 30,000 messages is "999"."""
    with RawServer(Flood()) as server, WebSocket(server.url, max_queue=1) as ws:
        for _ in range(30):
            ws.send("")
        until(lambda: ws._nwebsocket.bridge.inbox.reading_stopped)
        yield ws


def receive_to_the_end(ws: WebSocket) -> int:
    """Return how many messages come."""
    count = 0
    while ws.stats.messages_received < 30_000 or ws.stats.inbox:
        ws.recv(LIMIT)
        count += 1
    return count


def test_a_recv_interrupted_before_reading_is_resumed(stopped: WebSocket) -> None:
    bridge, received, post = stopped._nwebsocket.bridge, 0, stopped._nwebsocket.bridge.post

    def interrupted(_: object) -> None:
        bridge.post = post
        raise Interruption

    bridge.post = interrupted
    with contextlib.suppress(Interruption):
        while True:
            stopped.recv(LIMIT)
            received += 1
    assert received + receive_to_the_end(stopped) == 30_000


def test_a_recv_interrupted_before_it_looks_whether_there_is_room(stopped: WebSocket) -> None:
    bridge = stopped._nwebsocket.bridge
    with bridge.lock:
        lost = len(bridge.inbox.messages)
        bridge.inbox.messages.clear()
    assert lost + receive_to_the_end(stopped) == 30_000
