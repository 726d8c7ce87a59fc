"""Made to be subclassed: nothing runs before the outermost __init__ has returned, and no name of a subclass clashes."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import gc
import inspect
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import garbage
import pytest
from peers import LIMIT, Peer, RawServer, close_frame, echo_server, text

from nwebsocket import ConnectionClosed, ConnectionLost, Stats, WebSocket, connect, open_sockets
from nwebsocket._connection import owner as owner_module

T = TypeVar("T")
WHERE = pytest.mark.parametrize("where", ["thread", "loop"])


def greet(peer: Peer) -> None:
    """Accept and send a message with the 101; then answer the Close frame."""
    peer.accept(after=text("hello"))
    peer.read_until_close()
    peer.send(close_frame(1000))


def conversation(make: Callable[[str], Any]) -> Any:
    """The closed socket that `make` made of a greeting server's URL; `heard` is its inbox."""
    with RawServer(greet) as server:
        ws = make(server.url)
        assert ws.heard.get(timeout=LIMIT) == "hello"
        ws.close()
        ws.wait_closed(LIMIT)
    return ws


# --- Callbacks are held until the outermost __init__ has returned


@WHERE
def test_no_callback_runs_before_the_outermost_init_has_returned(where: Any) -> None:
    early: list[Any] = []

    class Base(WebSocket):
        def __init__(self, url: str, where: Any) -> None:
            super().__init__(url, callbacks=where)
            self.wait_open(LIMIT)
            while not self.stats.inbox:  # the message is there, and may not be heard yet
                self.ping(LIMIT)

        def onopen(self) -> None:
            early.append(("open", hasattr(self, "heard")))

    class Middle(Base):
        def __init__(self, url: str, where: Any) -> None:
            super().__init__(url, where)
            self.ping(LIMIT)

    class Outermost(Middle):
        def __init__(self, url: str, where: Any) -> None:
            super().__init__(url, where)
            self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
            early.append("init")

        def onmessage(self, message: Any) -> None:
            self.heard.put(message)

    def script(peer: Peer) -> None:
        peer.accept(after=text("hello"))
        answer_pings(peer)

    with RawServer(script) as server:
        ws = Outermost(server.url, where)
        assert ws.heard.get(timeout=LIMIT) == "hello"
        ws.close()
        ws.wait_closed(LIMIT)
    assert early == ["init", ("open", True)]


def answer_pings(peer: Peer) -> None:
    """Answer pings until the Close frame, and that too."""
    while (received := peer.read_frame()).opcode == 9:
        peer.send(bytes([0x8A, len(received.payload)]) + received.payload)
    peer.send(close_frame(1000))


def test_handlers_assigned_inside_init_are_held_too() -> None:
    class Assigning(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.onmessage = lambda message: self.heard.put(message)
            self.addEventListener("open", lambda event: self.heard.put("open"))
            self.wait_open(LIMIT)
            self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    with RawServer(greet) as server:
        ws = Assigning(server.url)
        assert [ws.heard.get(timeout=LIMIT) for _ in range(2)] == ["open", "hello"]
        ws.close()
        ws.wait_closed(LIMIT)


def test_a_socket_made_in_the_init_of_another_is_not_held() -> None:
    class Outer(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self.inner = WebSocket(url)
            self.inner.onmessage = self.heard.put
            self.first = self.heard.get(timeout=LIMIT)
            self.inner.close()
            self.inner.wait_closed(LIMIT)

        def onmessage(self, message: Any) -> None:
            self.heard.put(message)

    assert conversation(Outer).first == "hello"


def test_the_connection_works_inside_init(echo: str) -> None:
    class Eager(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.states = [self.readyState, self.wait_open(LIMIT).readyState]
            self.send("x")
            self.answer = self.recv(LIMIT)

    ws = Eager(echo)
    assert ws.states[0] <= ws.states[1] == WebSocket.OPEN  # the thread may be held up before it looks
    assert ws.answer == "x"
    ws.close()
    ws.wait_closed(LIMIT)


def test_an_init_that_sees_the_connection_end() -> None:
    class Patient(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.event = self.wait_closed(LIMIT)
            self.heard: list[Any] = []

        def onmessage(self, message: Any) -> None:
            self.heard.append(message)

        def onclose(self) -> None:
            self.heard.append("close")

    def script(peer: Peer) -> None:
        peer.accept(after=text("hello") + close_frame(1000))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = Patient(server.url)
        ws.wait_closed(LIMIT)
    assert ws.event.code == 1000
    assert ws.heard == ["hello", "close"]


# --- The ways of making a class


class Recording(WebSocket):
    """Sets what its handler needs after super().__init__(), and takes its time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.wait_open(LIMIT)
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def onmessage(self, message: Any) -> None:
        self.heard.put(message)


class Heard:
    """A mix-in with an attribute and a handler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def onmessage(self, message: Any) -> None:
        self.heard.put(message)


class MixedIn(Heard, WebSocket):
    pass


class MixedInAfter(WebSocket, Heard):
    def __init__(self, url: str) -> None:
        WebSocket.__init__(self, url)
        self.wait_open(LIMIT)
        self.heard = queue.SimpleQueue()

    onmessage = Heard.onmessage


@dataclasses.dataclass(eq=False)
class Data(WebSocket):
    url: str
    heard: queue.SimpleQueue[Any] = dataclasses.field(default_factory=queue.SimpleQueue, init=False)
    room: str = "lobby"

    def __post_init__(self) -> None:
        super().__init__(self.url)
        self.wait_open(LIMIT)

    def onmessage(self, message: Any) -> None:
        self.heard.put(message)


class Abstract(WebSocket, abc.ABC):
    @abc.abstractmethod
    def onmessage(self, message: Any) -> None: ...


class Concrete(Abstract):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.wait_open(LIMIT)
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def onmessage(self, message: Any) -> None:
        self.heard.put(message)


class Of(WebSocket, Generic[T]):
    def __init__(self, url: str, parse: Callable[[str], T]) -> None:
        super().__init__(url)
        self.wait_open(LIMIT)
        self.heard: queue.SimpleQueue[T] = queue.SimpleQueue()
        self.parse = parse

    def onmessage(self, message: Any) -> None:
        self.heard.put(self.parse(message))


@runtime_checkable
class Talks(Protocol):
    def onmessage(self, message: Any) -> None: ...


class Talking(Recording, Talks):
    pass


class WithoutInit(Recording):
    pass


class WithOwnNew(Recording):
    def __new__(cls, *args: Any, **kwargs: Any) -> WithOwnNew:
        return super().__new__(cls, *args, **kwargs)


MAKERS: list[Callable[[str], Any]] = [
    Recording,
    WithoutInit,
    WithOwnNew,
    MixedIn,
    MixedInAfter,
    Data,
    Concrete,
    lambda url: Of[str](url, str),
    Talking,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_kinds_of_subclasses(make: Callable[[str], Any]) -> None:
    ws = conversation(make)
    assert isinstance(ws, WebSocket)
    assert ws.readyState == WebSocket.CLOSED


def test_a_dataclass_keeps_its_fields() -> None:
    ws = conversation(lambda url: Data(url, room="kitchen"))
    assert ws.room == "kitchen"
    assert ws.url.startswith("ws://127.0.0.1:")
    assert "room='kitchen'" in repr(ws)


def test_an_abstract_class_still_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Abstract("ws://localhost/")


def test_a_protocol_recognizes_the_class() -> None:
    assert issubclass(Talking, Talks)


def test_a_class_may_be_made_of_a_class_that_has_been_used() -> None:
    conversation(Recording)

    class Later(Recording):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            assert self.heard.empty()
            self.heard = queue.SimpleQueue()

    conversation(Later)
    conversation(Recording)


def test_an_init_replaced_after_the_first_use_is_held_too() -> None:
    class Patched(Recording):
        def __init__(self, url: str) -> None:
            super().__init__(url)

    conversation(Patched)

    def replacement(self: Any, url: str) -> None:
        Recording.__init__(self, url)
        del self.heard
        self.ready = True
        self.heard = queue.SimpleQueue()

    Patched.__init__ = replacement  # type: ignore[method-assign]
    assert conversation(Patched).ready


def test_sockets_may_be_made_in_many_threads_at_once() -> None:
    class Fresh(Recording):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.complete = True

        def onmessage(self, message: Any) -> None:
            self.heard.put(self.complete)

    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with RawServer(greet) as server:
        threads = [threading.Thread(target=lambda: made.put(Fresh(server.url))) for _ in range(16)]
        for thread in threads:
            thread.start()
        sockets = [made.get(timeout=LIMIT) for _ in threads]
        assert all(ws.heard.get(timeout=LIMIT) for ws in sockets)
        for ws in sockets:
            ws.close()
            ws.wait_closed(LIMIT)


# --- The warning


def test_an_init_that_takes_long_is_told_why_no_callback_runs(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "INIT_PATIENCE", 0.05)
    records: list[Any] = []

    class Slow(Recording):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            while not records:
                self.wait_open(LIMIT)
                records.extend(log.warnings())

    conversation(Slow)
    (message,) = [record.getMessage() for record in records + log.warnings()]
    assert "Slow.__init__" in message


def test_an_init_that_is_done_in_time_is_not_warned_about(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "INIT_PATIENCE", 0.05)
    with RawServer(greet) as server:
        ws = Recording(server.url)
        ws.heard.get(timeout=LIMIT)
        with pytest.raises(TimeoutError):
            ws.wait_closed(0.1)
        ws.close()
        ws.wait_closed(LIMIT)
    assert log.warnings() == []


# --- What can go wrong in an __init__


class Failing(WebSocket):
    def __init__(self, url: str, *, open_first: bool) -> None:
        super().__init__(url)
        if open_first:
            self.wait_open(LIMIT)
        raise ZeroDivisionError


@pytest.mark.parametrize("open_first", [False, True])
@pytest.mark.filterwarnings("error::ResourceWarning")
def test_an_exception_in_init_closes_the_connection_and_leaves_nothing(open_first: bool) -> None:
    references: list[weakref.ref[Any]] = []

    class Traced(Failing):
        def __init__(self, url: str) -> None:
            references.append(weakref.ref(self))
            super().__init__(url, open_first=open_first)

        def onclose(self) -> None: ...

    left = threading.Event()

    def script(peer: Peer) -> None:
        try:
            peer.accept()
            frames = peer.read_until_close()
            assert len(frames) == 1
            peer.send(close_frame(1001))
        except (EOFError, ConnectionResetError):  # it was given up before it was open
            assert not open_first
        finally:
            left.set()

    with RawServer(script) as server:
        with pytest.raises(ZeroDivisionError):
            Traced(server.url)
        if open_first:
            assert left.wait(LIMIT)
        wait_until_gone(references)
    assert open_sockets() == []


def wait_until_gone(references: list[weakref.ref[Any]]) -> None:
    """Wait until the objects have been collected."""
    gone = [threading.Event() for _ in references]
    finalizers = [
        weakref.finalize(target, event.set)
        for target, event in zip([reference() for reference in references], gone, strict=True)
        if target is not None
    ]
    garbage.collect()
    for finalizer, event in zip(finalizers, gone, strict=False):
        assert event.wait(LIMIT) or not finalizer.alive


def test_a_lost_connection_of_which_the_error_was_raised_is_let_go() -> None:
    def lose(url: str) -> weakref.ref[Any]:
        ws = connect(url)
        with contextlib.suppress(ConnectionLost):  # whose traceback refers to what it was raised in
            ws.recv(LIMIT)
        ws.wait_closed(LIMIT)
        return weakref.ref(ws)

    with RawServer(lambda peer: peer.accept()) as server:
        *references, _ = [lose(server.url) for _ in range(5)]  # the loop thread keeps what it was asked last
    deadline = time.monotonic() + LIMIT
    while any(reference() is not None for reference in references):
        assert time.monotonic() < deadline
        garbage.collect()  # a handler for the error may come late: it is kept for a moment


def test_an_exception_before_super_init_leaves_nothing() -> None:
    class Early(WebSocket):
        def __init__(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Early()
    assert open_sockets() == []


def test_a_bad_argument_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="max_queue"):
        Recording.__base__("ws://localhost/", max_queue=0)  # type: ignore[misc]
    garbage.collect()
    assert open_sockets() == []


class Forgetful(WebSocket):
    def __init__(self, url: str) -> None:
        self.target = url


@pytest.mark.parametrize(
    "use",
    [
        lambda ws: ws.readyState,
        lambda ws: ws.url,
        lambda ws: ws.bufferedAmount,
        lambda ws: ws.protocol,
        lambda ws: ws.stats,
        lambda ws: ws.send("x"),
        lambda ws: ws.recv(0),
        lambda ws: ws.wait_open(0),
        lambda ws: ws.wait_closed(0),
        lambda ws: ws.ping(0),
        lambda ws: ws.close(),
        lambda ws: ws.addEventListener("open", print),
        lambda ws: ws.removeEventListener("open", print),
        lambda ws: next(iter(ws)),
        lambda ws: ws.__enter__(),
    ],
)
def test_a_forgotten_super_init_is_named(use: Callable[[WebSocket], object]) -> None:
    ws = Forgetful("ws://localhost/")
    with pytest.raises(RuntimeError, match=r"super\(\).__init__\(url\)"):
        use(ws)


def test_handlers_may_be_assigned_before_super_init() -> None:
    class Early(WebSocket):
        def __init__(self, url: str) -> None:
            self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self.onmessage = self.heard.put
            super().__init__(url)

    conversation(Early)


def test_calling_init_twice(echo: str) -> None:
    with WebSocket(echo) as ws:
        with pytest.raises(RuntimeError, match="second time"):
            ws.__init__(echo)  # type: ignore[misc]
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


def test_calling_init_twice_does_not_close_a_subclass(echo: str) -> None:
    with Recording(echo) as ws:
        with pytest.raises(RuntimeError, match="second time"):
            ws.__init__(echo)  # type: ignore[misc]
        ws.send("x")
        assert ws.heard.get(timeout=LIMIT) == "x"


def test_an_init_may_be_called_again_after_it_has_failed(echo: str) -> None:
    ws = WebSocket.__new__(WebSocket)
    with pytest.raises(ValueError, match="ftp"):
        ws.__init__("ftp://localhost/")  # type: ignore[misc]
    ws.__init__(echo)  # type: ignore[misc]
    with ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


# --- Names


class Shadowing(WebSocket):
    """Uses every name that a library is likely to use, and those that it does use and that may be shadowed."""

    def __init__(self, url: str) -> None:
        self._lock = self._queue = self._thread = self._session = "mine"
        super().__init__(url)
        self._bridge = self._callbacks = self._loop = self._state = self._socket = self._started = "mine"
        self._closed = self._error = self._url = self._options = self._listeners = self._inside = "mine"
        self.stats = self.latency = self.response = self.url = "mine"  # type: ignore[misc,assignment]
        self.name = self.daemon = self.start = self.run = self.state = self.loop = self.session = "mine"
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def onmessage(self, message: Any) -> None:
        self.heard.put(message)


def test_attributes_of_a_subclass_clash_with_nothing(echo: str) -> None:
    with Shadowing(echo) as ws:
        ws.send("x")
        assert ws.heard.get(timeout=LIMIT) == "x"
        assert ws.ping(LIMIT) > 0
        assert open_sockets() == [ws]
        assert echo in repr(ws)
        with pytest.raises(TimeoutError, match=echo):
            ws.wait_closed(0)
    with pytest.raises(ConnectionClosed):
        ws.send("x")
    assert {value for name, value in vars(ws).items() if name not in ("heard", "_nwebsocket")} == {"mine"}


class ShadowingByClass(WebSocket):
    """The same, as class attributes, methods and properties."""

    stats = "mine"  # type: ignore[assignment]
    _lock = _queue = _thread = _session = _start = _close = "mine"

    @property
    def latency(self) -> float:
        return -1.0

    def response(self) -> str:  # type: ignore[override]
        return "mine"


def test_class_attributes_of_a_subclass_clash_with_nothing(echo: str) -> None:
    with ShadowingByClass(echo) as ws:
        assert ws.ping(LIMIT) > 0
        assert (ws.latency, ws.response(), ws.stats) == (-1.0, "mine", "mine")
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


def test_the_library_keeps_one_attribute_of_its_own(echo: str) -> None:
    with WebSocket(echo) as ws:
        assert list(vars(ws)) == ["_nwebsocket"]
    private = [name for name in vars(WebSocket) if name.startswith("_") and not name.startswith("__")]
    assert set(private) <= {"_nwebsocket", "_abc_impl", "_repr_html_"}  # the last is IPython's name


def test_methods_that_a_subclass_overrides_are_not_used_inside(echo: str) -> None:
    class Overriding(WebSocket):
        def send(self, data: Any) -> None:
            raise AssertionError

        def close(self, code: int | None = None, reason: str = "") -> None:
            super().close(4000, "overridden")

    with Overriding(echo) as ws:
        WebSocket.send(ws, "x")
        assert ws.recv(LIMIT) == "x"
    assert ws.wait_closed(0).code == 4000


def test_stats_of_a_plain_socket_are_not_hidden(echo: str) -> None:
    with WebSocket(echo) as ws:
        assert isinstance(ws.stats, Stats)


# --- What a subclass looks like


class Described(WebSocket):
    def __init__(self, url: str, room: str, *, limit: int = 3) -> None:
        """Enter a room."""
        super().__init__(url)
        self.room, self.limit = room, limit


def test_the_signature_of_a_subclass_shows_its_parameters() -> None:
    def parameters() -> str:
        return str(inspect.signature(Described)).replace("'", "")

    before = parameters()
    assert before.startswith("(url: str, room: str, *, limit: int = 3)")
    with echo_server() as server, Described(server.url, "kitchen"):
        pass
    assert parameters() == before
    assert Described.__init__.__doc__ == "Enter a room."


def test_the_signature_of_the_class_itself() -> None:
    parameters = inspect.signature(WebSocket).parameters
    assert list(parameters)[:2] == ["url", "protocols"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[2:])
    assert {"ssl", "headers", "max_size", "callbacks"} <= set(parameters)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_a_closed_socket_is_freed_without_the_collector(echo: str) -> None:
    garbage.collect()
    gc.disable()
    try:
        with WebSocket(echo) as ws:
            ws.send("x")
            ws.recv(LIMIT)
        reference = weakref.ref(ws)
        freed = threading.Event()
        weakref.finalize(ws, freed.set)
        del ws
        assert freed.wait(1), gc.get_referrers(reference())
    finally:
        gc.enable()
