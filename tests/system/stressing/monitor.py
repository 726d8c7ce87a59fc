"""What must be true of every socket at any moment, seen from any thread."""

from __future__ import annotations

import traceback
from typing import Any

from nwebsocket import CloseEvent, ConnectionClosed, Event, MessageEvent, ReconnectingWebSocket, WebSocket
from stressing.actions import is_answer


class Broken(AssertionError):
    """An invariant does not hold."""


class Watched(WebSocket):
    """A base for sockets with a monitor, which hears everything: no callback runs before __init__ has returned."""

    def __init__(self, *arguments: Any, faults: list[str], hears_messages: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.monitor = Monitor(self, faults, hears_messages=hears_messages)


class Monitor:
    """Listens to one socket from its first moment, and checks what can be seen of it."""

    def __init__(self, ws: WebSocket, faults: list[str], *, hears_messages: bool) -> None:
        self.heard: list[str] = []
        self._comes_back = isinstance(ws, ReconnectingWebSocket)
        self._faults = faults
        self._lowest_state = 0  # what somebody has seen already
        for event_type in ("open", "error", "close"):
            ws.addEventListener(event_type, self._hear)
        if hears_messages:
            ws.addEventListener("message", self._hear)

    def _hear(self, event: Event) -> None:
        kind: str = event.type
        if isinstance(event, CloseEvent) and event.retry_in is not None:
            kind = "loss"
        if isinstance(event, MessageEvent) and is_answer(event.target, event.data):
            self._fault(f"an answer was heard as a message: {event.data}")
        if "close" in self.heard:
            self._fault(f"{kind} was heard after close: {self.heard}")
        if not self._comes_back:
            self._check_order(kind)
        if kind != "message":  # these would be too many
            self.heard.append(kind)

    def _check_order(self, kind: str) -> None:
        if kind in self.heard or (kind == "open" and self.heard) or (kind == "message" and "open" not in self.heard):
            self._fault(f"{kind} was heard after {self.heard}")
        if kind in ("message", "open") and "error" in self.heard:
            self._fault(f"{kind} was heard after {self.heard}")

    def _fault(self, text: str) -> None:
        self._faults.append(f"{text}\n{''.join(traceback.format_stack())}")

    def check(self, ws: WebSocket) -> None:
        """Look at it from a thread that is none of its handlers."""
        lowest = self._lowest_state
        state = int(ws.readyState)
        if state < lowest and (lowest == WebSocket.CLOSED or not self._comes_back):
            raise Broken(f"readyState went from {lowest} back to {state}")
        self._lowest_state = max(self._lowest_state, state)
        if ws.bufferedAmount < 0:
            raise Broken(f"bufferedAmount is {ws.bufferedAmount}")
        before, after = ws.stats, ws.stats
        for name in ("messages_received", "bytes_received"):
            if not 0 <= getattr(before, name) <= getattr(after, name):
                raise Broken(f"{name} went from {before} to {after}")
        if after.inbox < 0 or before.messages_sent < 0:
            raise Broken(f"{after}")

    def check_end(self, ws: Any) -> None:
        """Look at it after it has ended and was heard of."""
        if ws.readyState is not WebSocket.CLOSED or self.heard.count("close") != 1 or self.heard[-1] != "close":
            raise Broken(f"{ws!r} has ended, and what was heard is {self.heard}")
        inbox, drained = ws.stats.inbox, drain(ws)
        if drained not in (inbox, None):
            raise Broken(f"{ws!r} had {inbox} messages in its inbox, and gave {drained}")
        if self._comes_back and (len(list(ws.outbox)) != len(ws.outbox) or ws.outbox.bytes > ws.bufferedAmount):
            raise Broken(f"{ws!r}: {ws.outbox}, {ws.bufferedAmount} bytes buffered")


def drain(ws: WebSocket) -> int | None:
    """Take all that is in the inbox of a socket that has ended; None if that goes to a handler."""
    count = 0
    try:
        while True:
            if is_answer(ws, message := ws.recv(0)):
                raise Broken(f"an answer was in the inbox: {message!r}")
            count += 1
    except ConnectionClosed:
        return count
    except RuntimeError:
        return None
