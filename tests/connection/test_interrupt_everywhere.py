"""Ctrl-C at every single point where Python looks for it: nothing is lost, doubled or left behind.

An operation is traced, opcode by opcode, and Ctrl-C pressed just before the n-th that may look for signals; then
tracing ends, and the interpreter itself notices it where it looks next. So the rules of each version of Python are its
own, and those of functions in C that look, too. When the operation has been struck, the program goes on as a user
would, and all that was said is compared on both sides. Then comes the next point, until the operation ends before it.

NWEBSOCKET_FULL=1 strikes every point of every kind of connection; otherwise it is every `STEP`-th, from one that is
drawn at random, of two kinds.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import dis
import gc
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

import alarms
import measure
import pytest
from peers import LIMIT, Authority, Connection, echo_server, refusing_address
from until import until

from nwebsocket import Deflate, QueryMixin, ReconnectingWebSocket, WebSocket
from nwebsocket._connection import burst_end, lent_sockets, sender, session
from nwebsocket._protocol.fast_lane import ENABLED
from nwebsocket._threads import the_loop, waiting

pytestmark = pytest.mark.skipif(
    not (ENABLED and lent_sockets.AVAILABLE),
    reason="only with the fast lane, and where there is epoll, do threads read",
)

STEP = measure.size(17, 1)

SOON = 3.0
"""Seconds within which all is well again after a strike; no time-out of the library's is so short."""


# --- The interrupter


class _Keyboard:
    """`-keyboard` presses Ctrl-C: an operator, for Python looks for signals after calls."""

    __neg__ = _thread.interrupt_main


keyboard = _Keyboard()

# Opcodes that may look for signals, or lead back to C code, after which Python looks. More of them do no harm.
_LOOKING = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "POP_JUMP", "RETURN", "YIELD", "RAISE", "RERAISE")
if sys.version_info >= (3, 12):
    _LOOKING = ("CALL", "JUMP_BACKWARD", "RETURN", "YIELD")
_MAY_LOOK = frozenset(code for name, code in dis.opmap.items() if name.startswith(_LOOKING))


class _Tracing:
    """Presses the keys before an opcode, run by this thread in the library or below it, if `step(code, position)`."""

    def __init__(self, step: Callable[[CodeType, int], bool]) -> None:
        self._call = step

    def start(self) -> None:
        sys.settrace(self._enter)

    def stop(self) -> None:
        sys.settrace(None)

    def close(self) -> None:
        pass

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_globals is globals():
            return None  # this is the user's code
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and self._call(frame.f_code, frame.f_lasti):
            return -keyboard  # last: Python shall not notice it here
        return self._step


class _Monitoring:
    """The same since Python 3.12, where tracing misses opcodes now and then."""

    def __init__(self, step: Callable[[CodeType, int], bool]) -> None:
        self._step = step
        self._thread = threading.get_ident()
        self._codes = list(_codes_of_package())
        self._monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        self._event = self._monitoring.events.INSTRUCTION
        self._monitoring.use_tool_id(3, "test_interrupt_everywhere")
        for code in self._codes:
            self._monitoring.set_local_events(3, code, self._event)

    def start(self) -> None:
        self._monitoring.register_callback(3, self._event, self._if_here)

    def stop(self) -> None:
        self._monitoring.register_callback(3, self._event, None)

    def close(self) -> None:
        for code in self._codes:
            self._monitoring.set_local_events(3, code, 0)
        self._monitoring.free_tool_id(3)

    def _if_here(self, code: CodeType, position: int) -> object:
        return -keyboard if threading.get_ident() == self._thread and self._step(code, position) else None


def _codes_of_package() -> Iterator[CodeType]:
    assert session  # imported, as all that it needs: the library does so with the first connection only
    gc.unfreeze()  # or the objects are not all there
    codes = [
        function.__code__
        for function in gc.get_objects()
        if type(function) is FunctionType and str(function.__module__).partition(".")[0] == "nwebsocket"
    ]
    while codes:
        code = codes.pop()
        yield code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


class Interrupter:
    """Strikes one operation after another, each at a later point.

    ``struck``  where it has struck, and how often
    ``passed``  the names of the functions that it has been in
    """

    def __init__(self) -> None:
        self.struck: list[str] = []
        self.passed: set[str] = set()
        self.last = ""
        self._left = 0
        self._armed = False
        self._codes: dict[CodeType, bytes] = {}
        self._tracing = (_Tracing if sys.version_info < (3, 12) else _Monitoring)(self._step)

    def attempt(self, point: int, operation: Callable[[], object]) -> bool:
        """Strike the operation at that point; whether it was struck."""
        self._left, self.last = point, ""
        try:
            self._tracing.start()
            self._armed = True
            operation()
            self._armed = False
        except KeyboardInterrupt:
            if not self.last:
                raise
        else:
            assert not self.last, f"the KeyboardInterrupt of {self.last} was lost"
        finally:
            self._armed = False
            self._tracing.stop()
        return self._left <= 0

    def close(self) -> None:
        self._tracing.close()

    def press(self, _: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        if self._armed and frame is not None and frame.f_globals is not globals():
            self._armed = False
            self.last = f"{frame.f_code.co_filename.rpartition('nwebsocket/')[2]}:{frame.f_lineno}"
            self.struck.append(self.last)
            raise KeyboardInterrupt

    def _step(self, code: CodeType, position: int) -> bool:
        """Whether to press the keys now."""
        opcodes = self._codes.get(code)
        if opcodes is None:
            opcodes = self._codes[code] = code.co_code
        self.passed.add(code.co_name)
        if self._armed and opcodes[position] in _MAY_LOOK:
            self._left -= 1
            if self._left == 0:
                self._tracing.stop()
                return True
        return False


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    interrupter = Interrupter()
    before = signal.signal(signal.SIGINT, interrupter.press)
    try:
        with alarms.no_collection():
            yield interrupter
    finally:
        signal.signal(signal.SIGINT, before)
        interrupter.close()


@pytest.fixture
def points(record_property: Callable[[str, object], None]) -> Iterator[int]:
    """The numbers of the points to be struck."""
    seed = random.randrange(STEP)
    print(f"every {STEP}th point, from the {1 + seed}th")
    return iter(range(1 + seed, 1_000_000, STEP))


# --- The server, and what is said


class Noting:
    """A server's handler: notes all that comes, and says it again.

    ``may_read``  nothing is read while it is not set
    """

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.echoed = 0
        self.may_read = threading.Event()
        self.may_read.set()

    def __call__(self, connection: Connection) -> None:
        for message in connection:
            self.received.append(message)
            assert self.may_read.wait(LIMIT)
            if message[:4] == "late":
                time.sleep(0.003)
            if message == "late bye":
                return
            connection.send(message)
            self.echoed += 1


class Asking(QueryMixin, WebSocket):
    pass


class Returning(QueryMixin, ReconnectingWebSocket):
    pass


_FILLER = random.Random(1).randbytes(1_000_000).hex()


class Talk:
    """What the user of one connection has said and heard.

    ``said``   messages, and whether they were accepted: one whose send() was struck may have been, or not
    ``heard``  messages
    ``asked``  queries, each with its number

    ``may_lose``  a recv() that is struck as it returns loses its message, as in Python 3.10, which looks for signals
                  once more then
    """

    def __init__(self, ws: Any, noting: Noting) -> None:
        self.ws = ws
        self.bridge = ws._nwebsocket.bridge
        self.noting = noting
        self.said: list[tuple[Any, bool]] = []
        self.heard: list[Any] = []
        self.asked: list[tuple[Any, int]] = []
        self.may_lose = False
        self.strangers: list[threading.Thread] = []  # who wait for answers
        self._before = len(noting.received)
        self._number = 0
        self._answered = 0

    def new(self, size: int = 0, word: str = "m") -> str:
        self._number += 1
        return f"{word} {self._number} {_FILLER[:size]}"

    def send(self, data: Any) -> None:
        message = data if isinstance(data, str) else "".join(data)
        self.said.append((message, False))
        self.ws.send(data)
        self.said[-1] = (message, True)

    def recv(self) -> Any:
        message = self.ws.recv(LIMIT)
        self.heard.append(message)
        return message

    def ask(self) -> None:
        self._number += 1
        number = self._number
        self.said.append((number, False))
        query = self.ws.query({"n": number})
        self.said[-1] = (number, True)
        self.asked.append((query, number))

    def answers(self) -> None:
        for query, number in self.asked:
            assert query.result(LIMIT)["n"] == number

    def round_trip(self) -> None:
        """Say something, and hear all up to it."""
        message = self.new()
        self.send(message)
        while self.recv() != message:
            pass

    def lend(self) -> None:
        """Go on until the socket is lent to this thread."""
        deadline = time.monotonic() + LIMIT
        while self.bridge.reader is None or not self.bridge.reader.lent:
            self.round_trip()
            assert time.monotonic() < deadline

    def reads(self) -> int:
        return 0 if self.bridge.reader is None else self.bridge.reader.reads

    def check(self, where: str) -> None:
        """Nothing is lost, doubled, reordered or damaged, and all goes on."""
        self.noting.may_read.set()
        since = time.monotonic()
        self.answers()
        for thread in self.strangers:
            thread.join(SOON)
            assert not thread.is_alive(), where
        self.strangers.clear()
        self._answered += len(self.asked)
        self.asked.clear()
        self.round_trip()
        received = list(map(_in_short, self.noting.received[self._before :]))
        came = set(received)
        assert received == [said for said, accepted in self.said if accepted or said in came], where
        echoes = [message for message in received if isinstance(message, str)]
        if self.may_lose and "websocket.py" in where:
            self._note_loss(echoes)
        assert self.heard == echoes, where
        commands_done()
        assert self._still_unsettled(since + SOON, len(received)) == [], where
        assert time.monotonic() - since < SOON, where

    def _note_loss(self, echoes: list[str]) -> None:
        for index, message in enumerate(echoes):
            if message not in self.heard[index : index + 1]:
                self.heard.insert(index, message)
                break

    def _still_unsettled(self, deadline: float, messages: int) -> list[str]:
        while (wrong := self.unsettled(messages)) and time.monotonic() < deadline:
            time.sleep(0.0005)
        return wrong

    def unsettled(self, messages: int) -> list[str]:
        """What is not as it must be between two operations."""
        bridge, stats = self.bridge, self.ws.stats
        reader, writer = bridge.reader, bridge.sender.writer
        wrong = {
            "is_entered": bridge.is_entered(),
            "_sifting": bridge.inbox._sifting is not None,
            "arrivals": bridge.inbox.arrivals,
            "askers": bridge.waiters.askers,
            "receivers": bridge.waiters.receivers,
            "_waiters": bridge.waiters.others,
            "_senders": bridge.waiters.senders,
            "outgoing": bridge.outgoing.waits(),
            "consumer": bridge.inbox.consumer is not None,
            "_writing": writer._writing,
            "_flushing": writer._transport._flushing,
            "_reading": reader is not None and reader._reading,
            "_pollers": reader is not None and reader.lent and not reader._pollers,
            "bufferedAmount": self.ws.bufferedAmount,
            "messages_sent": stats.messages_sent - messages,
            "messages_received": stats.messages_received - messages,
            "inbox": stats.inbox,
            "in_flight": stats.in_flight,
            "answered": stats.answered < self._answered,
        }
        return [f"{name}: {value}" for name, value in wrong.items() if value]


def commands_done() -> None:
    """Wait until the loop thread has seen to all that was posted."""
    done = threading.Event()

    async def command() -> None:
        done.set()

    for _ in range(3):  # a command may post another one
        done.clear()
        the_loop.current().post(command)
        assert done.wait(LIMIT)


def _in_short(message: Any) -> Any:
    """Of a query its number."""
    return json.loads(message)["n"] if message[:1] == "{" else message


# --- Connections


@pytest.fixture
def noting() -> Noting:
    return Noting()


KINDS = ["plain", "compressed", "tls", "tls compressed"] if measure.FULL else ["plain", "tls compressed"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(request: pytest.FixtureRequest, kind: str, noting: Noting, ca: Authority) -> Iterator[str]:
    listener = socket.socket()
    if "limit" in request.node.name:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)  # to be full soon
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with echo_server(handler=noting, host=listener, ssl=ca.server() if "tls" in kind else None, max_queue=1) as server:
        yield server.url


@pytest.fixture
def options(kind: str, ca: Authority) -> dict[str, Any]:
    return {
        "ssl": ca.client() if "tls" in kind else None,
        "compression": Deflate(threshold=0) if "compressed" in kind else None,
        "ping_interval": None,
        "write_limit": 128 * 1024,
    }


@pytest.fixture(autouse=True)
def patient_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced takes its time: the loop does not take the socket back meanwhile."""
    monkeypatch.setattr(lent_sockets, "INTERVAL", 0.2)


# --- What is struck

Operation = Callable[[Talk], None]


def sends(talk: Talk) -> None:
    talk.send(talk.new())


def sends_much(talk: Talk) -> None:
    talk.send(talk.new(100_000))


def sends_fragments(talk: Talk) -> None:
    talk.send([talk.new(), "and", "so on"])


def sends_burst(talk: Talk) -> None:
    for _ in range(6):
        talk.send(talk.new())


def receives(talk: Talk) -> None:
    while talk.said[-1][0] not in talk.heard[-1:]:
        talk.recv()


def sends_burst_and_receives(talk: Talk) -> None:
    sends_burst(talk)
    receives(talk)


def iterates(talk: Talk) -> None:
    if talk.said[-1][0] in talk.heard[-1:]:
        return
    for message in talk.ws:
        talk.heard.append(message)
        if message == talk.said[-1][0]:
            break


def asks(talk: Talk) -> None:
    talk.ask()
    talk.answers()


def asks_several(talk: Talk) -> None:
    for _ in range(5):
        talk.ask()
    talk.answers()


def nothing(talk: Talk) -> None:
    """Prepare nothing, but be silent for a moment: what is sent then is written at once."""
    time.sleep(0.0001)


def one_comes(talk: Talk) -> None:
    several_come(talk, 1)


def several_come(talk: Talk, count: int = 5, size: int = 0) -> None:
    wanted = len(talk.noting.received) + count
    for _ in range(count):
        talk.send(talk.new(size))
    until(lambda: talk.noting.echoed == wanted)
    time.sleep(0.0005)


def much_comes(talk: Talk) -> None:
    talk.send(talk.new(130_000))


def one_comes_late(talk: Talk) -> None:
    talk.send(talk.new(word="late"))


def sender_is_trusted(talk: Talk) -> None:
    talk.bridge.sender._burst_end._in_time = 100
    talk.bridge.sender._burst_end._thread = threading.get_ident()


def is_full(talk: Talk) -> None:
    """The server does not read, until somebody waits in send()."""
    sock = talk.bridge.session._transport._sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    talk.noting.may_read.clear()
    deadline = time.monotonic() + LIMIT
    while not (talk.bridge.outgoing.over_limit() and talk.bridge.sender.writer.stuck):  # the system takes no more
        assert time.monotonic() < deadline
        if talk.bridge.outgoing.over_limit():
            time.sleep(0.0005)
        else:
            talk.send(talk.new(2_000_000))  # far more than the system may take a moment later

    def read() -> None:
        while not talk.bridge.waiters.senders and not talk.noting.may_read.is_set() and time.monotonic() < deadline:
            time.sleep(0.0005)
        talk.noting.may_read.set()

    threading.Thread(target=read).start()


def strangers_wait(talk: Talk) -> None:
    """Another thread waits for two queries, in ways of concurrent.futures."""
    talk.ask()
    talk.ask()
    queries = [query for query, _ in talk.asked]

    def wait() -> None:
        assert set(concurrent.futures.as_completed(queries, LIMIT)) == set(queries)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: all(query._waiters or query.done() for query in queries))
    talk.strangers.append(thread)


READS = {"read", "_advance", "_parse"}
WRITES = {"flush"}

CASES = {
    "send": (nothing, sends, WRITES | {"write_through"}),
    "send much": (nothing, sends_much, WRITES),
    "send fragments": (nothing, sends_fragments, WRITES),
    "send a burst": (nothing, sends_burst, WRITES),
    "send a burst and receive": (
        sender_is_trusted,
        sends_burst_and_receives,
        WRITES | READS | ({"_leave_burst_end"} if burst_end.AVAILABLE else set()),
    ),
    "send at the limit": (is_full, sends, {"_wait_for_room"}),
    "recv": (one_comes, receives, READS),
    "recv late": (one_comes_late, receives, READS),
    "recv several": (several_come, receives, READS),
    "recv much": (much_comes, receives, READS),
    "iteration": (several_come, iterates, READS),
    "query": (nothing, asks, WRITES | READS | {"sift"}),
    "query of others": (strangers_wait, Talk.answers, READS | {"sift", "tell"}),
    "queries": (nothing, asks_several, WRITES | READS | {"sift"}),
}


@pytest.fixture
def burst(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a burst be one, however slowly it is sent, and a small one enough to write some of it at once."""
    if "burst" in request.node.name:
        monkeypatch.setattr(sender, "_PAUSE", 60.0)
        monkeypatch.setattr(burst_end, "FIRST_PIECE", 4)
        monkeypatch.setattr(burst_end, "BURST", 4)
        monkeypatch.setattr(burst_end, "_MOMENT", 60.0)


@pytest.mark.usefixtures("burst")
@pytest.mark.parametrize("case", CASES)
def test_a_strike_in(
    case: str, url: str, options: dict[str, Any], noting: Noting, interrupter: Interrupter, points: Iterator[int]
) -> None:
    with Asking(url, **options) as ws:
        strike_everywhere(case, Talk(ws, noting), interrupter, points)


@pytest.mark.usefixtures("burst")
@pytest.mark.parametrize("case", ["send", "send a burst and receive", "recv", "recv several", "query"])
@pytest.mark.parametrize("kind", ["plain", "tls compressed"], indirect=True)
def test_a_strike_in_a_reconnecting_one_in(
    case: str, url: str, options: dict[str, Any], noting: Noting, interrupter: Interrupter, points: Iterator[int]
) -> None:
    with Returning(url, **options) as ws:
        strike_everywhere(case, Talk(ws, noting), interrupter, points)


def test_a_strike_in_a_send_that_is_kept(interrupter: Interrupter, points: Iterator[int]) -> None:
    with refusing_address() as (host, port):
        ws = ReconnectingWebSocket(f"ws://{host}:{port}/")
        number, missed = 0, 0
        while missed < 3:
            number += 1
            sent = interrupter.attempt(next(points), lambda: ws.send(f"{number}"))  # noqa: B023
            missed = 0 if sent else missed + 1
            kept = list(map(int, ws.outbox))
            assert kept == sorted(set(kept)), interrupter.last
            size = sum(len(str(number)) for number in kept)
            assert ws.outbox.bytes == ws.bufferedAmount == size, interrupter.last
            assert ws.stats.messages_sent == len(kept), interrupter.last
        ws.close()
        ws.wait_closed(LIMIT)
    report(interrupter, {"_accept"})


# --- Opening and closing: a connection for each strike


def closes(talk: Talk) -> None:
    talk.ws.close()


def waits_until_closed(talk: Talk) -> None:
    talk.ws.wait_closed(LIMIT)


def waits_until_open(talk: Talk) -> None:
    talk.ws.wait_open(LIMIT)


def is_open(talk: Talk) -> None:
    talk.ws.wait_open(LIMIT)
    talk.send(talk.new())


def is_lent(talk: Talk) -> None:
    talk.ws.wait_open(LIMIT)
    talk.lend()
    talk.send(talk.new())


def server_closes_soon(talk: Talk) -> None:
    is_open(talk)
    talk.send("late bye")


LIVES = {
    "wait_open": (nothing, waits_until_open, {"wait_open"}),
    "close": (is_open, closes, {"close_through", "flush"}),
    "close what is lent": (is_lent, closes, {"close"}),
    "wait_closed": (server_closes_soon, waits_until_closed, {"wait_closed", "acquire"}),
}


@pytest.mark.parametrize("case", LIVES)
def test_a_strike_in_a_life_in(
    case: str, url: str, options: dict[str, Any], noting: Noting, interrupter: Interrupter, points: Iterator[int]
) -> None:
    prepare, operation, functions = LIVES[case]
    missed = 0
    while missed < 3:
        point = next(points)
        ws = Asking(url, **options)
        talk = Talk(ws, noting)
        prepare(talk)
        missed = 0 if interrupter.attempt(point, lambda talk=talk: operation(talk)) else missed + 1
        see_to_its_end(talk, f"{case}: struck at point {point}, {interrupter.last}")
    report(interrupter, functions)


def see_to_its_end(talk: Talk, where: str) -> None:
    """The connection works, unless it is being closed, and is closed as it should be."""
    since = time.monotonic()
    if ("late bye", True) not in talk.said and talk.ws.readyState <= WebSocket.OPEN:
        talk.ws.wait_open(LIMIT)
        talk.round_trip()
        talk.ws.close()
    assert talk.ws.wait_closed(LIMIT).wasClean, where
    until(lambda: talk.noting.received[talk._before :] == [said for said, _ in talk.said], where, SOON)
    assert talk.ws.bufferedAmount == 0, where
    assert talk.ws.stats.messages_sent == len(talk.said), where
    assert time.monotonic() - since < SOON, where


def test_a_strike_where_others_are_woken(interrupter: Interrupter) -> None:
    for point in range(1, 20):
        waiters: list[threading.Lock] = []
        locks = [waiting.enlist(waiters) for _ in range(3)]
        interrupter.attempt(point, lambda waiters=waiters: waiting.release(waiters))
        assert all(lock in waiters or not lock.locked() for lock in locks), interrupter.last
    assert len(interrupter.struck) >= 2


def strike_everywhere(case: str, talk: Talk, interrupter: Interrupter, points: Iterator[int]) -> None:
    prepare, operation, functions = CASES[case]
    talk.may_lose = sys.version_info < (3, 11)
    missed = 0
    while missed < 3:  # in a row: now and then the loop is faster than what is traced, and does the most
        point = next(points)
        talk.lend()
        prepare(talk)
        missed = 0 if interrupter.attempt(point, lambda: operation(talk)) else missed + 1
        talk.check(f"{case}: struck at point {point}, {interrupter.last}")
    report(interrupter, functions)


def report(interrupter: Interrupter, functions: set[str]) -> None:
    """Strikes there were, and it was this thread that did what it is to do."""
    print(f"{len(interrupter.struck)} strikes, at {len(set(interrupter.struck))} lines")
    assert len(interrupter.struck) >= 10 // STEP
    assert functions <= interrupter.passed
