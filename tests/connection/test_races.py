"""Races that the soak and the stress have found, each of them made certain here."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

import pytest
from peers import CLOSE, LIMIT, Peer, RawServer, close_frame, echo_server

from nwebsocket import ReconnectingWebSocket, WebSocket
from nwebsocket._base.log import Trace
from nwebsocket._connection import backoff
from nwebsocket._connection import bridge as bridge_module
from nwebsocket._connection import session as session_module
from nwebsocket._connection.sender import Sender
from nwebsocket._threads import waiting
from nwebsocket._threads.safe_curio import spawn


def test_close_while_the_server_closes_is_for_good() -> None:
    """It was forgotten: the socket came back, and `with` waited for ever."""

    def script(peer: Peer) -> None:
        peer.accept(after=close_frame(1001))
        peer.read_until_close()
        peer.stall()

    with RawServer(script) as server:
        ws = ReconnectingWebSocket(server.url, close_timeout=0.2).wait_open(LIMIT)
        assert ws._nwebsocket.bridge.wait(lambda: ws.readyState is ws.CLOSING, LIMIT)
        ws.close()
        assert ws.wait_closed(LIMIT).code == 1001


def test_a_thread_may_wait_while_another_makes_a_socket(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks at the locks of all sockets: one that was just being made had none yet, and recv() failed."""

    def look_meanwhile() -> Any:
        waiting._check_locks()
        return Trace()

    monkeypatch.setattr(bridge_module, "Trace", look_meanwhile)
    with WebSocket(echo):
        pass


@pytest.mark.parametrize("method", ["send", "close"])
def test_a_loss_between_two_lines_of_a_method_is_none_of_the_callers_business(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of the lost connection was gone then, and an AssertionError came out."""
    with echo_server() as server:
        ws = ReconnectingWebSocket(server.url, compression=None).wait_open(LIMIT)
        sender = ws._nwebsocket.bridge.sender
        owner, name = {"send": (Sender, "_see_off"), "close": (bridge_module.Bridge, "_close_through")}[method]
        original = getattr(owner, name)

        def lose_before(self: Any, *arguments: Any) -> Any:
            monkeypatch.setattr(sender, "writer", None)
            try:
                return original(self, *arguments)
            finally:
                monkeypatch.undo()

        monkeypatch.setattr(sender, "_send_through", lambda *_: False)
        monkeypatch.setattr(owner, name, lose_before)
        ws.send("x") if method == "send" else ws.close()
        ws.close()
        ws.wait_closed(LIMIT)


def test_a_loss_right_after_wait_open_has_waited(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection was neither open then, nor had it ended, and an AssertionError came out."""
    with ReconnectingWebSocket(echo) as ws, monkeypatch.context() as patch:
        bridge = ws._nwebsocket.bridge
        wait = bridge.wait

        def lose_afterwards(*arguments: Any) -> Any:
            waited = wait(*arguments)
            patch.setattr(bridge.life, "opened_at", None)
            return waited

        patch.setattr(bridge, "wait", lose_afterwards)
        assert ws.wait_open(LIMIT) is ws


def test_a_send_that_sleeps_through_a_loss_does_not_overtake_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had seen that nothing was kept, on the connection before, and wrote to the next one at once."""
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.01)
    cut, opened_again, go_on = threading.Event(), threading.Event(), threading.Event()
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 0:
            assert cut.wait(LIMIT)
            peer.close()
            return
        while (frame := peer.read_frame()).opcode != CLOSE:
            received.put(frame.payload)
        peer.send(close_frame(1000))

    def onopen() -> None:
        if cut.is_set():
            opened_again.set()
            assert go_on.wait(LIMIT)

    with RawServer(script) as server:
        ws = ReconnectingWebSocket(server.url, compression=None).wait_open(LIMIT)
        ws.onopen = onopen
        bridge = ws._nwebsocket.bridge

        def sleep_through_it() -> bool:
            monkeypatch.delattr(bridge.sender, "_must_wait")
            cut.set()
            assert bridge.wait(lambda: bridge.life.state is ws.CONNECTING, LIMIT)
            ws.send("kept")
            assert opened_again.wait(LIMIT)
            return False

        monkeypatch.setattr(bridge.sender, "_must_wait", sleep_through_it)
        ws.send("late")
        go_on.set()
        assert [received.get(timeout=LIMIT) for _ in range(2)] == [b"kept", b"late"]
        ws.close()
        ws.wait_closed(LIMIT)


def silent(peer: Peer) -> None:
    peer.accept()
    peer.read_eof()


def test_one_silent_server_after_another_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first one was: a task of curio's can be cancelled once, and there was one task for all connections."""
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.01)
    visits: queue.SimpleQueue[int] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        visits.put(peer.number)
        with contextlib.suppress(ConnectionError, EOFError):  # close() may come at any moment
            silent(peer)

    with RawServer(script) as server:
        ws = ReconnectingWebSocket(server.url, ping_interval=0.05, ping_timeout=0.05, close_timeout=0.5)
        assert [visits.get(timeout=LIMIT) for _ in range(3)] == [0, 1, 2]
        ws.close()
        ws.wait_closed(LIMIT)


def test_close_between_two_attempts_ends_it_at_once_also_after_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY", 1e6)
    lost = threading.Event()
    with RawServer(silent) as server:
        ws = ReconnectingWebSocket(server.url, ping_interval=0.05, ping_timeout=0.05, close_timeout=0.5)
        ws.onclose = lambda event: lost.set()
        assert lost.wait(LIMIT)
        ws.close()
        assert ws.wait_closed(LIMIT).code == 1006


def test_giving_up_a_connection_that_ends_in_that_moment_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation came too late for it, hit whatever the socket did next, and ended it for good."""
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.01)
    original = session_module.Session._serve

    async def serve_and_give_up(session: Any) -> None:
        await original(session)
        give_up = session._give_up
        await (await spawn(give_up(), daemon=True)).join()

    monkeypatch.setattr(session_module.Session, "_serve", serve_and_give_up)
    again = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number > 0:
            again.set()
            peer.read_until_close()
            peer.send(close_frame(1000))

    with RawServer(script) as server:
        ws = ReconnectingWebSocket(server.url)
        assert again.wait(LIMIT)
        ws.wait_open(LIMIT)
        ws.close(1000)
        ws.wait_closed(LIMIT)
