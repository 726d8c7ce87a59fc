"""Counts that users read from any thread: at no moment, however short, do they go back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from peers import LIMIT, Peer, RawServer, close_frame, text

from nwebsocket import QueryMixin, ReconnectingWebSocket, WebSocket
from nwebsocket._connection.inbox import Inbox
from nwebsocket._network.transport import Transport

MESSAGES = 1_000


class Asking(QueryMixin, WebSocket):
    pass


class AskingAgain(QueryMixin, ReconnectingWebSocket):
    pass


class NeverLess:
    """An attribute that notes what it goes back from and to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps_back: list[tuple[int, int]] = []

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else vars(instance)[self.name]

    def __set__(self, instance: Any, value: int) -> None:
        before = vars(instance).get(self.name, 0)
        if value < before:
            self.steps_back.append((before, value))
        vars(instance)[self.name] = value


def talk(peer: Peer) -> None:
    """Answer the query that comes, with ordinary messages before and after it."""
    peer.accept()
    asked = json.loads(peer.read_frame().payload)
    some = b"".join(text(f"message {number}") for number in range(MESSAGES // 2))
    peer.send(some + text(json.dumps(asked)) + some + close_frame(1000))
    peer.read_until_close()


@pytest.mark.parametrize("hears", ["nobody", "once", "always"])
@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("kind", [WebSocket, ReconnectingWebSocket, Asking, AskingAgain])
def test_counts_only_grow(
    monkeypatch: pytest.MonkeyPatch, kind: type[WebSocket], callbacks: Any, hears: str
) -> None:
    counts = [(Inbox, NeverLess("received")), (Transport, NeverLess("received"))]
    counts.append((Transport, NeverLess("_sent_before")))
    for owner, count in counts:
        monkeypatch.setattr(owner, count.name, count, raising=False)

    with RawServer(talk) as server:
        ws = kind(server.url, callbacks=callbacks).wait_open(LIMIT)

        def onmessage(message: str) -> None:
            if hears == "once":
                ws.onmessage = None

        if hears != "nobody":
            ws.onmessage = onmessage
        if isinstance(ws, QueryMixin):
            ws.query({"what": "?"}).result(LIMIT)
        else:
            ws.send("{}")
        if isinstance(ws, ReconnectingWebSocket):
            ws.close()
        ws.wait_closed(LIMIT)
        assert ws.stats.messages_received == MESSAGES + 1
    assert [count.steps_back for _, count in counts] == [[], [], []]
