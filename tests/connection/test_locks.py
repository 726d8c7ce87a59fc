"""Locks: nothing of anybody else's runs while one is held, and no two are held together but `wire`, then `lock`."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import LIMIT, Peer, RawServer, echo_server

from nwebsocket import QueryMixin, ReconnectingWebSocket, WebSocket, WebSocketError
from nwebsocket._threads import locks as locks_module
from nwebsocket._threads import the_loop

_held = threading.local()


class CheckedLock:
    """A lock that knows its owner, and what else the owner holds."""

    def __init__(self, name: str, wrong: list[str]) -> None:
        self.name = name
        self._lock = _thread.RLock()
        self._wrong = wrong

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def __enter__(self) -> bool:
        others = [lock for lock in held_locks() if lock is not self]
        if not self._is_owned() and any(not (lock.name == "wire" and self.name == "lock") for lock in others):
            self._wrong.append(f"{self.name} is taken with {[lock.name for lock in others]} held")
        self._lock.acquire()
        held_locks().append(self)
        return True

    def __exit__(self, *_: object) -> None:
        held_locks().remove(self)
        self._lock.release()


def held_locks() -> list[CheckedLock]:
    """The checked locks that the calling thread holds."""
    if not hasattr(_held, "locks"):
        _held.locks = []
    locks: list[CheckedLock] = _held.locks
    return locks


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was done with locks that may not be done; checked at the end."""
    wrong: list[str] = []
    monkeypatch.setattr(locks_module, "recursive", lambda name: CheckedLock(name, wrong))
    yield wrong
    assert wrong == []


class Query(QueryMixin, WebSocket):
    pass


class Curious(QueryMixin, WebSocket):
    """Whatever of it the library asks looks whether a lock is held."""

    wrong: list[str]

    def look(self, what: str) -> None:
        if held := held_locks():
            self.wrong.append(f"{what} runs with {[lock.name for lock in held]} held")

    @property
    def onmessage(self) -> Callable[[Any], None]:
        self.look("a handler that is a property")
        return lambda message: self.look("onmessage")

    def onopen(self) -> None:
        self.look("onopen")

    def onerror(self, error: Any) -> None:
        self.look("onerror")

    def onclose(self) -> None:
        self.look("onclose")

    def read_reply(self, message: str | bytes) -> Any:
        self.look("read_reply")
        return super().read_reply(message)


class Listener:
    """A listener that compares."""

    def __init__(self, socket: Curious) -> None:
        self._socket = socket

    def __eq__(self, other: object) -> bool:
        self._socket.look("__eq__")
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, event: Any) -> None:
        self._socket.look("a listener")


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("compression", ["deflate", None])
def test_foreign_code_runs_with_no_lock_held(wrong: list[str], callbacks: Any, compression: Any) -> None:
    done = threading.Event()
    with echo_server() as server:
        Curious.wrong = wrong
        ws = Curious(server.url, callbacks=callbacks, compression=compression)
        for _ in range(2):
            for event_type in ("open", "message", "error", "close"):
                ws.addEventListener(event_type, Listener(ws))  # type: ignore[call-overload]
        ws.wait_open(LIMIT)
        ws.query({"n": 1}).result(LIMIT)
        ws.removeEventListener("message", Listener(ws))
        query = ws.query({"n": 2}, timeout=60)
        query.add_done_callback(lambda _: (ws.look("a done callback"), done.set()))
        ws.send("hello")
        assert done.wait(LIMIT)
        server.drop() if hasattr(server, "drop") else ws.close()
        ws.close()
        ws.wait_closed(LIMIT)


@pytest.mark.parametrize("kind", [WebSocket, ReconnectingWebSocket])
@pytest.mark.parametrize("compression", ["deflate", None])
def test_no_two_locks_are_held_but_the_pair(wrong: list[str], kind: Any, compression: Any) -> None:
    with echo_server() as server, kind(server.url, compression=compression, write_limit=4096) as ws:
        for number in range(300):
            ws.send(f"{number}" + "x" * (number % 7) * 100)
            if number % 10 == 9:
                for expected in range(number - 9, number + 1):
                    assert ws.recv(LIMIT).startswith(str(expected))
        assert ws.ping(LIMIT) < LIMIT


def test_a_done_callback_may_wait_for_who_waits_for_the_socket() -> None:
    cut, mine, called, finished = threading.Event(), threading.Lock(), threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        assert cut.wait(LIMIT)
        peer.reset()

    def done(_: Any) -> None:
        called.set()
        with mine:
            pass

    def use() -> None:
        with mine:
            cut.set()
            assert called.wait(LIMIT)
            with pytest.raises(WebSocketError):
                ws.send("x")
        finished.set()

    with RawServer(script) as server:
        ws = Query(server.url, compression=None).wait_open(LIMIT)
        ws.query({"a": 1}).add_done_callback(done)
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        assert finished.wait(LIMIT)
        thread.join()
        ws.wait_closed(LIMIT)


def test_posting_waits_for_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that has interrupted a post may wait for a thread that posts."""
    loop, ran = the_loop.current(), threading.Event()
    original = loop._queue._put_send

    async def command() -> None:
        ran.set()

    def interrupted() -> None:
        monkeypatch.undo()
        other = threading.Thread(target=loop.post, args=(command,))
        other.start()
        other.join(LIMIT)
        assert not other.is_alive()
        original()

    monkeypatch.setattr(loop._queue, "_put_send", interrupted)
    loop.post(command)
    assert ran.wait(LIMIT)


def test_a_signal_handler_may_start_the_loop_that_its_thread_is_starting() -> None:
    started: list[Any] = []
    nested = threading.Event()

    class Loop:
        alive = False

        def start(self) -> None:
            self.alive = True
            if not nested.is_set():
                nested.set()
                other = threading.Thread(target=lambda: started.append(the_loop._renewed(Loop)))  # type: ignore[arg-type]
                other.start()
                other.join()

        def stop(self, timeout: float) -> None:
            self.alive = False

    before = dict(the_loop._started)
    the_loop._started.clear()
    try:
        started.append(the_loop._renewed(Loop))  # type: ignore[arg-type]
    finally:
        the_loop._started.clear()
        the_loop._started.update(before)
    assert len(set(map(id, started))) == 1
    assert started[0].alive
