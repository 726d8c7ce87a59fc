"""Races that the soak and the stress have found, each of them made certain here."""

from __future__ import annotations

from peers import LIMIT, Peer, RawServer, close_frame

from nwebsocket import ReconnectingWebSocket


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
