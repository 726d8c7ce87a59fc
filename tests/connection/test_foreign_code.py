"""What code of the user's raises in the library's threads is contained: they live on, and the next event is heard."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from peers import LIMIT, echo_server
from until import until

from nwebsocket import QueryMixin, ReconnectingWebSocket, WebSocket


class Client(QueryMixin, WebSocket):
    armed = False

    def read_reply(self, message: str | bytes) -> Any:
        if self.armed:
            sys.exit("enough")
        return super().read_reply(message)


@pytest.fixture
def bystander(echo: str) -> Iterator[WebSocket]:
    """Another socket, which must go on."""
    with WebSocket(echo) as ws:
        yield ws
        assert ws.ping(LIMIT) < LIMIT


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit, KeyboardInterrupt])
def test_what_a_done_callback_raises_ends_nothing(bystander: WebSocket, log: Any, error: Any) -> None:
    heard = threading.Event()

    def raises(_: Any) -> None:
        raise error("a done callback")

    with echo_server() as server, Client(server.url) as ws:
        query = ws.query({"a": 1})
        with contextlib.suppress(error):
            query.add_done_callback(raises)  # which is called at once, here, if there is an answer already
        query.add_done_callback(lambda _: heard.set())
        assert heard.wait(LIMIT)
        assert query.result(LIMIT)["a"] == 1
        assert bystander.ping(LIMIT) < LIMIT
    assert all(record.exc_info[0] is error for record in log.errors())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_a_program_goes_on_from_a_done_callback_on_the_main_thread(echo: str, error: Any) -> None:
    """There it may be Ctrl-C's, or a signal handler's. The answer is there, and the other callbacks are called."""
    raised = []

    def raises(_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            raised.append(error)
            raise error("a done callback")

    with Client(echo) as ws:
        for number in range(1000):
            heard = threading.Event()
            query = ws.query({"number": number})
            with contextlib.suppress(error):
                query.add_done_callback(raises)  # which is called at once if there is an answer already
                query.add_done_callback(lambda _, heard=heard: heard.set())
                query.result(LIMIT)
            query.add_done_callback(lambda _, heard=heard: heard.set())
            assert heard.wait(LIMIT)
            assert query.result(LIMIT)["number"] == number
            if len(raised) >= 5:
                break
        assert ws.stats.answered == number + 1


def test_sys_exit_in_read_reply_ends_nothing(bystander: WebSocket, log: Any) -> None:
    with echo_server() as server, Client(server.url) as ws:
        ws.armed = True
        query = ws.query({"a": 1})
        assert isinstance(ws.recv(LIMIT), str)
        assert query.cancel()
    assert [record.exc_info[0] for record in log.errors()] == [SystemExit]


class BrokenHandler(logging.Handler):
    """As one that sends to a WebSocket which is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("this log handler is broken")


@pytest.fixture
def broken_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A logger whose handler raises, and nothing else."""
    logger, handler = logging.getLogger("nwebsocket"), BrokenHandler()
    handlers = logger.handlers[:]
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    yield
    monkeypatch.setattr(logger, "handlers", handlers)


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.usefixtures("broken_log")
def test_a_log_handler_that_raises_ends_no_thread(bystander: WebSocket, callbacks: Any, capsys: Any) -> None:
    heard: list[str] = []
    good = threading.Event()

    def on_message(message: str) -> None:
        if message == "bad":
            raise KeyError("a bug of the user's")
        heard.append(message)
        good.set()

    with echo_server() as server, WebSocket(server.url, callbacks=callbacks) as ws:
        ws.onmessage = on_message
        ws.send("bad")
        ws.send("good")
        assert good.wait(LIMIT)
    assert heard == ["good"]
    assert "this log handler is broken" in capsys.readouterr().err


@pytest.mark.usefixtures("broken_log")
def test_a_log_handler_that_raises_in_a_timer_ends_no_timers(bystander: WebSocket) -> None:
    """A failure that nobody hears of is logged by a timer."""
    with echo_server() as server:
        url = server.url
    ws = WebSocket(url)
    ws.wait_closed(LIMIT)
    with Client(bystander.url) as client:
        client.query({"a": 1}, timeout=60).result(LIMIT)
        rang = threading.Event()
        client._nwebsocket.bridge.call_later(0.3, rang.set)
        assert rang.wait(LIMIT)


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_a_property_that_raises_is_no_handler(bystander: WebSocket, log: Any, callbacks: Any) -> None:
    class Odd(WebSocket):
        broken = True

        @property
        def onmessage(self) -> Any:
            if self.broken and threading.current_thread() is not threading.main_thread():
                raise RuntimeError("not now")
            return None

    with echo_server() as server, Odd(server.url, callbacks=callbacks) as ws:
        ws.send("one")
        assert ws.recv(LIMIT) == "one"
    assert {record.exc_info[0] for record in log.errors()} <= {RuntimeError}


def test_a_reconnecting_socket_survives_a_broken_log(broken_log: None) -> None:
    with echo_server() as server, ReconnectingWebSocket(server.url) as ws:
        ws.send("one")
        assert ws.recv(LIMIT) == "one"


class Proxy:
    """A callable that stands for something, as werkzeug's LocalProxy does, and for nothing at times."""

    def __init__(self, function: Any, error: type[BaseException]) -> None:
        self._function = function
        self._error = error
        self.bound = True

    def __call__(self, message: Any) -> None:
        self._function(message)

    def __getattr__(self, name: str) -> Any:
        if name == "__func__" and not self.bound:
            raise self._error("working outside of context")
        raise AttributeError(name)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_a_handler_whose_attributes_raise_is_none_for_as_long(
    bystander: WebSocket, log: Any, callbacks: Any, error: Any
) -> None:
    heard: list[str] = []
    proxy, came = Proxy(heard.append, error), threading.Event()
    with echo_server() as server, WebSocket(server.url, callbacks=callbacks) as ws:
        ws.onmessage = proxy
        proxy.bound = False
        ws.send("one")
        until(lambda: ws.stats.inbox)
        proxy.bound = True
        ws.addEventListener("message", lambda _: came.set())
        assert came.wait(LIMIT)
    assert heard == ["one"]
    assert {record.exc_info[0] for record in log.errors()} == {error}


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise SystemExit("not even that")

    __str__ = __repr__


def test_an_exception_that_cannot_be_shown_ends_its_own_socket_only(bystander: WebSocket, log: Any) -> None:
    def url() -> str:
        raise Unspeakable

    errors: list[Exception] = []
    ws = ReconnectingWebSocket(url)
    failed = threading.Event()
    ws.onerror = lambda error: (errors.append(error), failed.set())
    assert failed.wait(LIMIT)
    ws.close()
    ws.wait_closed(LIMIT)
    assert "Unspeakable" in str(errors[0])
    log.errors()


class Lazy:
    """Says what it is only when it has been asked for a value; it has none."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no value yet")


class Tag:
    """A tag of the user's, whose hash takes a lock of the user's."""

    lock = threading.Lock()

    def __hash__(self) -> int:
        with self.lock:
            return 7

    def __eq__(self, other: object) -> bool:
        return self is other


def test_an_answer_whose_class_raises_is_an_ordinary_message(bystander: WebSocket, log: Any) -> None:
    class Odd(Client):
        def read_reply(self, message: str | bytes) -> Any:
            reply = super().read_reply(message)
            return reply and (reply[0], Lazy())

    with echo_server() as server, Odd(server.url) as ws:
        query = ws.query({"a": 1})
        assert isinstance(ws.recv(LIMIT), str)
        assert query.cancel()
    assert {record.exc_info[0] for record in log.errors()} == {RuntimeError}


def test_the_hash_of_a_tag_is_asked_with_no_lock_held(bystander: WebSocket) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    class Odd(Client):
        def read_reply(self, message: str | bytes) -> Any:
            asked.set()
            assert goes_on.wait(LIMIT)
            return Tag(), message

    with echo_server() as server, Odd(server.url) as ws:
        query = ws.query({"a": 1})
        assert asked.wait(LIMIT)
        with Tag.lock:
            goes_on.set()
            for _ in range(1000):
                assert ws.stats.in_flight == 1
        assert isinstance(ws.recv(LIMIT), str)
        query.cancel()


@pytest.mark.usefixtures("broken_log")
def test_a_log_handler_that_raises_on_the_main_thread_keeps_close_from_nothing() -> None:
    """There what it raises goes on: it may be an alarm's, which is to end a wait."""
    with echo_server() as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        ws._nwebsocket.bridge.trace.on = True
        logging.getLogger("nwebsocket").setLevel(logging.DEBUG)
        try:
            with pytest.raises(ValueError, match="this log handler is broken"):
                ws.close()
        finally:
            logging.getLogger("nwebsocket").setLevel(logging.NOTSET)
        assert ws.wait_closed(LIMIT).wasClean
