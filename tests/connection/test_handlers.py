"""Handlers and listeners: which event each one hears, in which order, on which thread, and what their errors do."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import (
    LIMIT,
    Peer,
    RawServer,
    close_frame,
    dead_address,
    echo_server,
    frame,
    refusing_address,
    text,
)

from nwebsocket import CloseEvent, ErrorEvent, Event, MessageEvent, OpenTimeout, WebSocket, WebSocketError
from nwebsocket._connection.callbacks import RUNNING

WHERE = pytest.mark.parametrize("where", ["thread", "loop"])


def burst(peer: Peer) -> None:
    """Accept, and send two messages and a Close frame with the 101."""
    peer.accept(after=text("1") + text("2") + close_frame(1000, "bye"))
    peer.read_until_close()
    peer.close()


def scripted(script: Callable[[Peer], object], **options: Any) -> contextlib.AbstractContextManager[WebSocket]:
    """A socket without handlers whose server runs `script`."""

    @contextlib.contextmanager
    def manager() -> Iterator[WebSocket]:
        with RawServer(script) as server:
            ws = WebSocket(server.url, **options)
            try:
                yield ws
            finally:
                ws.close()
                ws.wait_closed(LIMIT)

    return manager()


def record_all(ws: WebSocket, heard: list[Any]) -> None:
    """Note what each on... handler hears in `heard`."""
    ws.onopen = lambda: heard.append("open")
    ws.onmessage = heard.append
    ws.onerror = lambda error: heard.append(type(error))
    ws.onclose = lambda: heard.append("close")


# --- Nothing is lost to a race


@WHERE
def test_handlers_set_after_everything_has_happened_hear_all_of_it_in_order(where: Any) -> None:
    heard: list[Any] = []
    with scripted(burst, callbacks=where) as ws:
        ws.wait_closed(LIMIT)
        record_all(ws, heard)
        ws.wait_closed(LIMIT)
    assert heard == ["open", "1", "2", "close"]


@WHERE
def test_handlers_set_at_once_hear_everything_in_order(where: Any) -> None:
    heard: list[Any] = []
    with scripted(burst, callbacks=where) as ws:
        record_all(ws, heard)
        ws.wait_closed(LIMIT)
    assert heard == ["open", "1", "2", "close"]


def test_an_event_without_handler_does_not_hold_up_the_others() -> None:
    heard: list[Any] = []
    with scripted(burst) as ws:
        ws.onclose = lambda: heard.append("close")
        ws.wait_closed(LIMIT)
        ws.onmessage = heard.append
        ws.wait_closed(LIMIT)
        ws.onopen = lambda: heard.append("open")
        ws.wait_closed(LIMIT)
    assert heard == ["close", "1", "2", "open"]


def test_listeners_added_late_hear_what_came_before() -> None:
    heard: list[Any] = []
    with scripted(burst) as ws:
        ws.wait_closed(LIMIT)
        for event_type in ("open", "message", "close"):
            ws.addEventListener(event_type, lambda event: heard.append(event.type))  # type: ignore[call-overload]
        ws.wait_closed(LIMIT)
    assert heard == ["open", "message", "message", "close"]


def test_a_handler_set_to_none_hears_nothing_and_what_comes_meanwhile_waits() -> None:
    heard: list[Any] = []
    first_heard = threading.Event()

    def on_first(message: Any) -> None:
        heard.append(message)
        first_heard.set()

    def script(peer: Peer) -> None:
        peer.accept(after=text("first"))
        assert peer.read_frame().payload == b"go"
        peer.send(text("second") + text("third") + close_frame(1000))
        peer.read_until_close()

    with scripted(script) as ws:
        ws.onmessage = on_first
        assert first_heard.wait(LIMIT)
        ws.onmessage = None
        ws.send("go")
        ws.wait_closed(LIMIT)
        assert ws.recv(0) == "second"
        assert heard == ["first"]
        ws.onmessage = heard.append
        ws.wait_closed(LIMIT)
    assert heard == ["first", "third"]


def test_none_in_an_instance_hides_the_method_of_the_class() -> None:
    class Deaf(WebSocket):
        def onmessage(self, message: Any) -> None:
            raise AssertionError("the method was hidden")

    with echo_server() as server:
        ws = Deaf(server.url)
        ws.onmessage = None
        with ws:
            ws.send("x")
            assert ws.recv(LIMIT) == "x"


def test_deleting_an_assigned_handler_brings_the_method_back() -> None:
    heard: list[Any] = []
    answered = threading.Event()

    class Listening(WebSocket):
        def onmessage(self, message: Any) -> None:
            heard.append(message)
            answered.set()

    with echo_server() as server, Listening(server.url) as ws:
        ws.onmessage = lambda message: pytest.fail("it was deleted")
        del ws.onmessage
        ws.send("x")
        assert answered.wait(LIMIT)
    assert heard == ["x"]


# --- What they get


def test_the_methods_of_a_subclass_are_handlers() -> None:
    class Recording(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.heard: list[Any] = []

        def onopen(self) -> None:
            self.heard.append("open")

        def onmessage(self, message: Any) -> None:
            self.heard.append(message)

        def onclose(self, event: CloseEvent) -> None:  # type: ignore[override]
            self.heard.append((event.code, event.reason, event.wasClean))

    with RawServer(burst) as server:
        ws = Recording(server.url)
        ws.wait_closed(LIMIT)
    assert ws.heard == ["open", "1", "2", (1000, "bye", True)]


def with_self_and_event(heard: list[Any]) -> Callable[..., Any]:
    class Handler:
        def method(self, event: Any) -> None:
            heard.append(event)

    return Handler().method


@pytest.mark.parametrize(
    ("make", "gets_event"),
    [
        (lambda heard: lambda: heard.append(None), False),
        (lambda heard: lambda event: heard.append(event), True),
        (lambda heard: lambda event=None: heard.append(event), False),
        (lambda heard: lambda *events: heard.extend(events), True),
        (lambda heard: heard.append, True),
        (lambda heard: functools.partial(heard.append, None), False),
        (with_self_and_event, True),
    ],
    ids=["none", "one", "default", "varargs", "builtin", "partial", "method"],
)
def test_onopen_and_onclose_get_the_event_if_they_have_a_parameter_for_it(
    make: Callable[[list[Any]], Callable[..., Any]], gets_event: bool
) -> None:
    heard: list[Any] = []
    with scripted(burst) as ws:
        ws.onopen = make(heard)
        ws.onclose = make(heard)
        ws.wait_closed(LIMIT)
    if gets_event:
        assert heard == [Event("open", ws), CloseEvent("close", ws, 1000, "bye", True)]
    else:
        assert heard == [None, None]


def test_listeners_always_get_the_event() -> None:
    heard: list[Any] = []

    def script(peer: Peer) -> None:
        peer.accept(after=text("1"))
        peer.close()

    with scripted(script) as ws:
        for event_type in ("open", "message", "error", "close"):
            ws.addEventListener(event_type, heard.append)  # type: ignore[call-overload]
        ws.wait_closed(LIMIT)
        opened, message, error, closed = heard
        assert opened == Event("open", ws)
        assert message == MessageEvent("message", ws, "1", ws.url.rstrip("/"))
        assert isinstance(error, ErrorEvent)
        assert isinstance(error.error, WebSocketError)
        assert closed == CloseEvent("close", ws, 1006, "", False)
        assert {event.currentTarget for event in heard} == {ws}


def test_a_handler_sees_the_state_of_its_event() -> None:
    states: list[int] = []
    with scripted(burst) as ws:
        ws.wait_closed(LIMIT)
        ws.onopen = lambda: states.append(ws.readyState)
        ws.onmessage = lambda message: states.append(ws.readyState)
        ws.onclose = lambda: states.append(ws.readyState)
        ws.wait_closed(LIMIT)
    assert states == [WebSocket.OPEN] * 3 + [WebSocket.CLOSED]


# --- Listeners


def heard_by_listeners(prepare: Callable[[WebSocket, Callable[[str], Callable[[Any], None]]], None]) -> str:
    """What the listeners that `prepare` adds note at the two messages of burst()."""
    heard: list[str] = []

    def noting(name: str) -> Callable[[Any], None]:
        return lambda _: heard.append(name)

    with scripted(burst) as ws:
        ws.wait_closed(LIMIT)
        # All listeners are there before the first of them hears a message.
        gate = threading.Event()
        ws.onopen = lambda: gate.wait(LIMIT)
        prepare(ws, noting)
        gate.set()
        ws.wait_closed(LIMIT)
    return "".join(heard)


def test_listeners_run_in_the_order_of_registration_the_attribute_among_them() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        ws.addEventListener("message", noting("a"))
        ws.onmessage = noting("b")
        ws.addEventListener("message", noting("c"))

    assert heard_by_listeners(prepare) == "abcabc"


def test_an_attribute_assigned_again_keeps_its_place() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        ws.onmessage = noting("x")
        ws.addEventListener("message", noting("b"))
        ws.onmessage = noting("a")

    assert heard_by_listeners(prepare) == "abab"


def test_a_listener_with_once_hears_one_event() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        ws.addEventListener("message", noting("a"), once=True)
        ws.addEventListener("message", noting("b"))

    assert heard_by_listeners(prepare) == "abb"


def test_a_function_added_twice_runs_once() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        a = noting("a")
        ws.addEventListener("message", a)
        ws.addEventListener("message", noting("b"))
        ws.addEventListener("message", a)

    assert heard_by_listeners(prepare) == "abab"


def test_a_function_may_be_a_listener_and_the_attribute() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        a = noting("a")
        ws.addEventListener("message", a)
        ws.onmessage = a

    assert heard_by_listeners(prepare) == "aaaa"


def test_a_listener_removed_inside_another_does_not_run_any_more() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        victim = noting("v")
        ws.addEventListener("message", lambda event: ws.removeEventListener("message", victim))
        ws.addEventListener("message", noting("a"))
        ws.addEventListener("message", victim)
        ws.addEventListener("message", noting("b"))

    assert heard_by_listeners(prepare) == "abab"


def test_a_listener_added_inside_another_hears_the_next_event() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        late = noting("l")
        ws.addEventListener("message", noting("a"))
        ws.addEventListener("message", lambda event: ws.addEventListener("message", late))

    assert heard_by_listeners(prepare) == "aal"


def test_a_removed_listener_hears_nothing_and_an_unknown_one_is_no_error() -> None:
    def prepare(ws: WebSocket, noting: Callable[[str], Callable[[Any], None]]) -> None:
        a = noting("a")
        ws.addEventListener("message", a)
        ws.addEventListener("message", noting("b"))
        ws.removeEventListener("message", a)
        ws.removeEventListener("message", a)

    assert heard_by_listeners(prepare) == "bb"


@pytest.mark.parametrize("event_type", ["Message", "", None, 3])
def test_unknown_event_types_are_refused(echo: str, event_type: Any) -> None:
    with WebSocket(echo) as ws:
        with pytest.raises(ValueError, match="open, message, error, close"):
            ws.addEventListener(event_type, print)
        with pytest.raises(ValueError, match="open, message, error, close"):
            ws.removeEventListener(event_type, print)


# --- Handlers that could never work


async def asynchronous(argument: Any) -> None: ...


def generator(argument: Any) -> Any:
    yield


class AsynchronousCall:
    async def __call__(self, argument: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "handler"),
    [
        ("onopen", lambda a, b: None),
        ("onopen", asynchronous),
        ("onmessage", lambda: None),
        ("onmessage", lambda a, b: None),
        ("onmessage", lambda a, *, b: None),
        ("onmessage", asynchronous),
        ("onmessage", functools.partial(asynchronous)),
        ("onmessage", AsynchronousCall()),
        ("onmessage", generator),
        ("onmessage", "print"),
        ("onerror", lambda: None),
        ("onerror", asynchronous),
        ("onclose", lambda a, b, c: None),
        ("onclose", asynchronous),
        ("onclose", 0),
    ],
)
def test_a_wrong_handler_is_refused_at_assignment_and_the_old_one_stays(echo: str, name: str, handler: Any) -> None:
    def old(*args: Any) -> None: ...

    with WebSocket(echo) as ws:
        setattr(ws, name, old)
        with pytest.raises(TypeError, match=name):
            setattr(ws, name, handler)
        assert getattr(ws, name) is old


@pytest.mark.parametrize("name", ["onopen", "onmessage", "onerror", "onclose"])
@pytest.mark.parametrize("method", [asynchronous, lambda self, a, b: None, 5], ids=["async", "signature", "number"])
def test_a_wrong_method_is_refused_at_construction(echo: str, name: str, method: Any) -> None:
    with pytest.raises(TypeError, match=name):
        type("Wrong", (WebSocket,), {name: method})(echo)


@pytest.mark.parametrize("event_type", ["open", "message", "error", "close"])
@pytest.mark.parametrize("handler", [lambda: None, asynchronous, 5], ids=["signature", "async", "number"])
def test_a_wrong_listener_is_refused_and_its_event_named(echo: str, event_type: Any, handler: Any) -> None:
    with WebSocket(echo) as ws, pytest.raises(TypeError, match=event_type):
        ws.addEventListener(event_type, handler)


# --- Exceptions


@WHERE
@pytest.mark.parametrize("exception", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_is_logged_with_its_traceback_and_the_next_event_comes(
    log: Any, where: Any, exception: type[BaseException]
) -> None:
    heard: list[Any] = []

    def fail(what: Any) -> None:
        heard.append(what)
        raise exception("on purpose")

    with scripted(burst, callbacks=where) as ws:
        ws.onopen = lambda: fail("open")
        ws.onmessage = fail
        ws.onclose = lambda: fail("close")
        ws.wait_closed(LIMIT)
    assert heard == ["open", "1", "2", "close"]
    logged = log.errors()
    for record, name in itertools.zip_longest(logged, ["onopen", "onmessage", "onmessage", "onclose"]):
        assert name in record.getMessage()
        assert record.exc_info[0] is exception
        assert "in fail" in logging.Formatter().format(record)


def test_an_exception_in_a_listener_does_not_stop_the_other_listeners(log: Any) -> None:
    heard: list[Any] = []

    def fail(event: MessageEvent) -> None:
        raise ZeroDivisionError

    with scripted(burst) as ws:
        ws.addEventListener("message", fail)
        ws.addEventListener("message", lambda event: heard.append(event.data))
        ws.wait_closed(LIMIT)
    assert heard == ["1", "2"]
    assert [record.exc_info[0] for record in log.errors()] == [ZeroDivisionError] * 2


@WHERE
def test_a_handler_that_meets_the_programs_own_close_is_no_fault(
    log: Any, where: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()

    def answer(message: str) -> None:
        ws.close()
        try:
            ws.send("too late")
        finally:
            answered.set()

    def script(peer: Peer) -> None:
        peer.accept(after=text("1") + text("2"))
        peer.read_until_close()
        assert answered.wait(LIMIT)
        peer.send(close_frame(1000))

    with caplog.at_level(logging.INFO, "nwebsocket"), scripted(script, callbacks=where) as ws:
        ws.onmessage = answer
        ws.wait_closed(LIMIT)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert "handler onmessage of WebSocket came too late" in lines[0]
    assert "close() was called" in lines[0]
    assert not log.errors()


def test_a_handler_that_sends_on_another_closed_socket_is_at_fault(log: Any, echo: str) -> None:
    with WebSocket(echo) as other:
        other.close()
        other.wait_closed(LIMIT)
    with scripted(burst) as ws:
        ws.onmessage = other.send
        ws.wait_closed(LIMIT)
    assert len(log.errors()) == 2


def test_an_exception_in_onerror_does_not_keep_onclose_away(log: Any) -> None:
    heard: list[Any] = []

    def fail(error: Exception) -> None:
        raise error

    with scripted(lambda peer: peer.accept()) as ws:
        ws.onerror = fail
        ws.onclose = lambda event: heard.append(event.code)
        ws.wait_closed(LIMIT)
    assert heard == [1006]
    assert len(log.errors()) == 1


# --- Threads


def listen_for_threads(ws: WebSocket) -> list[threading.Thread]:
    """The list that is going to hold the thread of every event."""
    threads: list[threading.Thread] = []
    for event_type in ("open", "message", "close"):
        ws.addEventListener(event_type, lambda event: threads.append(threading.current_thread()))  # type: ignore[call-overload]
    return threads


def threads_of_handlers(ws: WebSocket) -> list[threading.Thread]:
    """The thread of every event of `ws`, whose server is burst()'s."""
    threads = listen_for_threads(ws)
    ws.wait_closed(LIMIT)
    assert len(threads) == 4
    return threads


def test_all_handlers_of_a_socket_run_on_one_thread_of_its_own(echo: str) -> None:
    with WebSocket(echo) as ws, WebSocket(echo) as other:
        threads, other_threads = listen_for_threads(ws), listen_for_threads(other)
    (thread,), (other_thread,) = set(threads), set(other_threads)
    assert thread is not other_thread
    assert thread is not threading.current_thread()
    assert "nwebsocket-loop" not in (thread.name, other_thread.name)


def test_it_is_still_that_thread_for_messages_that_come_later(echo: str) -> None:
    threads: list[threading.Thread] = []
    heard = threading.Semaphore(0)

    def onmessage(message: Any) -> None:
        threads.append(threading.current_thread())
        heard.release()

    with WebSocket(echo) as ws:
        ws.onmessage = onmessage
        for _ in range(20):
            ws.send("x")
            assert heard.acquire(timeout=LIMIT)
        ws.onclose = lambda: threads.append(threading.current_thread())
    assert len(threads) == 21
    assert len(set(threads)) == 1


def test_handlers_set_one_by_one_after_the_end_run_on_one_thread() -> None:
    with scripted(burst) as ws:
        ws.wait_closed(LIMIT)
        assert len(set(threads_of_handlers(ws))) == 1


def test_on_the_loop_all_handlers_run_on_the_loop_thread() -> None:
    with scripted(burst, callbacks="loop") as ws:
        assert {thread.name for thread in threads_of_handlers(ws)} == {"nwebsocket-loop"}


def test_handlers_set_late_run_on_the_loop_thread_too() -> None:
    with scripted(burst, callbacks="loop") as ws:
        ws.wait_closed(LIMIT)
        assert {thread.name for thread in threads_of_handlers(ws)} == {"nwebsocket-loop"}


def test_a_socket_without_handlers_has_no_thread(echo: str) -> None:
    with WebSocket(echo) as ws:
        ws.send("x")
        ws.recv(LIMIT)
        assert not any(thread.name == "nwebsocket-callbacks" for thread in threading.enumerate())


def test_handlers_of_one_socket_never_overlap(echo: str) -> None:
    busy = threading.Lock()
    overlaps: list[Any] = []
    heard = threading.Semaphore(0)

    def onmessage(message: Any) -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(message)
            return
        if message == "x":
            ws.send("y")
        busy.release()
        heard.release()

    with WebSocket(echo) as ws:
        ws.onmessage = onmessage
        for _ in range(50):
            ws.send("x")
        for _ in range(100):
            assert heard.acquire(timeout=LIMIT)
    assert overlaps == []


def test_a_handler_that_blocks_holds_up_no_other_socket(echo: str) -> None:
    entered, released = threading.Event(), threading.Event()

    def block(message: Any) -> None:
        entered.set()
        released.wait(LIMIT)

    with WebSocket(echo) as blocked, WebSocket(echo) as other:
        blocked.onmessage = block
        blocked.send("x")
        assert entered.wait(LIMIT)
        other.send("y")
        assert other.recv(LIMIT) == "y"
        assert blocked.ping(LIMIT) >= 0
        released.set()


def test_close_in_a_handler(echo: str) -> None:
    heard: list[Any] = []
    ws = WebSocket(echo)
    ws.onopen = lambda: ws.close(3000, "enough")
    ws.onclose = lambda event: heard.append((event.code, event.reason, event.wasClean))
    ws.wait_closed(LIMIT)
    assert heard == [(3000, "enough", True)]


# --- Exactly one close event


def answer_close(peer: Peer) -> None:
    peer.accept()
    peer.send(close_frame(1000) if peer.read_until_close()[-1].payload else close_frame())


def close_first(peer: Peer) -> None:
    peer.accept(after=close_frame(1001))
    peer.read_until_close()


def reset(peer: Peer) -> None:
    peer.accept()
    peer.reset()


def reject(peer: Peer) -> None:
    assert peer.request
    peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def break_protocol(peer: Peer) -> None:
    peer.accept(after=frame(0xB))
    peer.read_until_close()


def fall_silent(peer: Peer) -> None:
    peer.accept()
    peer.stall()


def never_answer(peer: Peer) -> None:
    assert peer.request
    peer.stall()


def do_nothing(ws: WebSocket) -> None: ...


def close_when_open(ws: WebSocket) -> None:
    ws.wait_open(LIMIT).close()


def close_in_eight_threads(ws: WebSocket) -> None:
    ws.wait_open(LIMIT)
    barrier = threading.Barrier(8)

    def close() -> None:
        barrier.wait(LIMIT)
        ws.close()

    threads = [threading.Thread(target=close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@WHERE
@pytest.mark.parametrize(
    ("script", "act", "code", "clean"),
    [
        pytest.param(answer_close, close_when_open, 1005, True, id="client close"),
        pytest.param(answer_close, close_in_eight_threads, 1005, True, id="close in eight threads"),
        pytest.param(close_first, do_nothing, 1001, True, id="server close"),
        pytest.param(reset, do_nothing, 1006, False, id="reset"),
        pytest.param(lambda peer: peer.accept(), do_nothing, 1006, False, id="end of file"),
        pytest.param(reject, do_nothing, 1006, False, id="rejected"),
        pytest.param(break_protocol, do_nothing, 1006, False, id="protocol error"),
        pytest.param(fall_silent, do_nothing, 1006, False, id="keepalive"),
        pytest.param(fall_silent, close_when_open, 1006, False, id="close timeout"),
        pytest.param(never_answer, WebSocket.close, 1006, False, id="close while connecting"),
        pytest.param(never_answer, do_nothing, 1006, False, id="open timeout"),
    ],
)
def test_exactly_one_close_event(
    where: Any, script: Callable[[Peer], None], act: Callable[[WebSocket], None], code: int, clean: bool
) -> None:
    heard: list[Any] = []
    with RawServer(script) as server:
        ws = WebSocket(
            server.url, callbacks=where, ping_interval=0.1, ping_timeout=0.1, open_timeout=0.3, close_timeout=0.2
        )
        ws.onerror = lambda error: heard.append("error")
        ws.onclose = lambda event: heard.append((event.code, event.wasClean))
        act(ws)
        event = ws.wait_closed(LIMIT)
        assert (event.code, event.wasClean) == (code, clean)
    ws.close()
    ws.onclose = ws.onclose  # would hear a second one that waits
    ws.wait_closed(LIMIT)
    assert heard == ([] if clean else ["error"]) + [(code, clean)]


@pytest.mark.parametrize("address", [refusing_address, dead_address])
def test_exactly_one_close_event_where_nobody_answers(address: Any) -> None:
    heard: list[Any] = []
    with address() as (host, port):
        ws = WebSocket(f"ws://{host}:{port}/", open_timeout=0.3)
        ws.onopen = lambda: heard.append("open")
        ws.onerror = lambda error: heard.append("error")
        ws.onclose = lambda event: heard.append(event.code)
        ws.wait_closed(LIMIT)
    assert heard == ["error", 1006]


# --- The log


@pytest.fixture
def logged() -> Iterator[threading.Event]:
    """Set as soon as the library has logged something."""
    event = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: event.set()  # type: ignore[method-assign]
    logger = logging.getLogger("nwebsocket")
    logger.addHandler(handler)
    yield event
    logger.removeHandler(handler)


@pytest.mark.parametrize(("script", "said"), [(reject, "403"), (break_protocol, "op"), (fall_silent, "silen|heard")])
def test_a_failure_that_nobody_hears_of_is_logged_once(
    log: Any, logged: threading.Event, script: Callable[[Peer], None], said: str
) -> None:
    with scripted(script, ping_interval=0.1, ping_timeout=0.1) as ws:
        ws.onopen = lambda: None
        assert logged.wait(LIMIT)
    (record,) = log.warnings()
    assert re.search(said, record.getMessage())


@WHERE
@pytest.mark.parametrize("script", [reject, break_protocol, reset])
@pytest.mark.parametrize("event_type", ["error", "close"])
@pytest.mark.parametrize("listener", [False, True], ids=["attribute", "listener"])
def test_a_failure_that_a_handler_hears_of_is_not_logged(
    log: Any, where: Any, script: Callable[[Peer], None], event_type: Any, listener: bool
) -> None:
    heard = threading.Event()
    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=where)
        if listener:
            ws.addEventListener(event_type, lambda event: heard.set())
        else:
            setattr(ws, f"on{event_type}", lambda event: heard.set())
        assert heard.wait(LIMIT)
        ws.wait_closed(LIMIT)
    assert log.warnings() == []


def test_a_failure_that_is_raised_is_not_logged(log: Any) -> None:
    with RawServer(never_answer) as server, pytest.raises(OpenTimeout):
        WebSocket(server.url, open_timeout=0.3).wait_open()
    assert log.warnings() == []


@pytest.mark.parametrize("script", [answer_close, close_first])
def test_a_clean_close_is_not_logged(log: Any, script: Callable[[Peer], None]) -> None:
    with RawServer(script) as server:
        ws = WebSocket(server.url)
        with contextlib.suppress(ConnectionError):  # closed already
            ws.wait_open(LIMIT)
        ws.close()
        assert ws.wait_closed(LIMIT).wasClean
    assert log.warnings() == []


def test_giving_up_while_connecting_is_not_logged(log: Any) -> None:
    with scripted(never_answer) as ws:
        ws.close()
    assert log.warnings() == []


def test_who_waits_for_the_end_is_not_told_of_it_by_a_handler_that_begins_just_then(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread says that it runs, takes the last event, and runs its handler: all of it between two looks."""
    with WebSocket(echo) as ws:
        callbacks = ws._nwebsocket.callbacks
        with monkeypatch.context() as patch:
            patch.setattr(callbacks, "next_type", lambda: patch.setattr(callbacks, "_run", RUNNING))
            assert not callbacks.settled()
