"""Races that the soak and the stress have found, each of them made certain here."""

from __future__ import annotations

from typing import Any

import pytest
from peers import LIMIT, Peer, RawServer, close_frame, echo_server

from nwebsocket import ReconnectingWebSocket, WebSocket, _bridge, _waiting
from nwebsocket._log import Trace


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
        _waiting._check_locks()
        return Trace()

    monkeypatch.setattr(_bridge, "Trace", look_meanwhile)
    with WebSocket(echo):
        pass


@pytest.mark.parametrize("method", ["send", "close"])
def test_a_loss_between_two_lines_of_a_method_is_none_of_the_callers_business(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of the lost connection was gone then, and an AssertionError came out."""
    with echo_server() as server:
        ws = ReconnectingWebSocket(server.url, compression=None).wait_open(LIMIT)
        bridge = ws._nwebsocket.bridge
        name = {"send": "_see_off", "close": "_close_through"}[method]
        original = getattr(_bridge.Bridge, name)

        def lose_before(self: Any, *arguments: Any) -> Any:
            monkeypatch.setattr(self, "writer", None)
            try:
                return original(self, *arguments)
            finally:
                monkeypatch.undo()

        monkeypatch.setattr(bridge, "_send_through", lambda _: False)
        monkeypatch.setattr(_bridge.Bridge, name, lose_before)
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
            patch.setattr(bridge, "was_open", False)
            return waited

        patch.setattr(bridge, "wait", lose_afterwards)
        assert ws.wait_open(LIMIT) is ws
