"""The client of a cell: what its user does, and all that the user sees."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from matrix import CLOSE_TIMEOUT, OPEN_TIMEOUT, PING_INTERVAL, PING_TIMEOUT, SILENT, Cell, expected
from talk import PLEASE_CLOSE, SWEEP, Message, fragments_of, is_fragmented

from nwebsocket import (
    CloseEvent,
    ConnectionClosed,
    KeepaliveTimeout,
    OpenTimeout,
    WaitTimeout,
    WebSocket,
    WebSocketError,
)

#: Seconds after which a connection that has not ended is given up.
LIMIT = 15.0

#: Seconds after which a user closes who has waited in vain: a bit in a frame's length can make the rest of the stream
#: the payload of one message, and nobody can know.
PATIENCE = 2.0

#: Seconds of `open_timeout` in a sweep, which has it in all cells: in some the connection opens, however busy we are.
SWEEP_OPEN_TIMEOUT = 1.5


@dataclass
class Seen:
    """What the user of one connection has seen, in the order in which it happened.

    ``began``, ``ended``  monotonic clock
    ``raised``            what each of some methods raised after the end; None for nothing
    """

    events: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    errors: list[WebSocketError] = field(default_factory=list)
    closes: list[CloseEvent] = field(default_factory=list)
    raised: dict[str, BaseException | None] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0

    def opened(self) -> None:
        self.events.append("open")

    def received(self, message: Message) -> None:
        self.events.append("message")
        self.messages.append(message)

    def failed(self, error: WebSocketError) -> None:
        self.events.append("error")
        self.errors.append(error)

    def closed(self, event: CloseEvent) -> None:
        self.events.append("close")
        self.closes.append(event)


def use(cell: Cell, url: str, trusting: ssl.SSLContext) -> Seen:
    """Connect as the cell says, echo what comes, and return what was seen."""
    seen = Seen(began=monotonic())
    ws = WebSocket(
        url,
        ssl=trusting if cell.secure else None,
        proxy=None,
        compression="deflate" if cell.deflate else None,
        callbacks="loop" if cell.way == "loop" else "thread",
        **time_outs(cell),
    )

    def onmessage(message: Message) -> None:
        seen.received(message)
        answer(ws, message)

    ws.onopen, ws.onerror = seen.opened, seen.failed
    ws.onclose = lambda event: seen.closed(event)
    patience = PATIENCE if cell.stage.phase.startswith(SWEEP) and cell.fault == "corrupt" else LIMIT
    if cell.way == "recv":
        seen.raised["reading"] = read(ws, onmessage, patience)
    else:
        ws.onmessage = onmessage
    try:
        ws.wait_closed(patience)
    except WaitTimeout:
        ws.close()
        ws.wait_closed(LIMIT)
    seen.ended = monotonic()
    look_again(ws, seen, cell.way == "recv")
    return seen


def time_outs(cell: Cell) -> dict[str, Any]:
    """A short one where it is expected to end the connection; elsewhere the defaults, which must not be what does."""
    keepalive = {"ping_interval": PING_INTERVAL, "ping_timeout": PING_TIMEOUT}
    if cell.stage.phase.startswith(SWEEP):
        all_of_them = {"open_timeout": SWEEP_OPEN_TIMEOUT, "close_timeout": CLOSE_TIMEOUT, **keepalive}
        return all_of_them if cell.fault in (*SILENT, "corrupt") else {}
    errors = expected(cell).errors
    if errors == (OpenTimeout,):
        return {"open_timeout": OPEN_TIMEOUT}
    if errors == (KeepaliveTimeout,):
        return keepalive
    return {"close_timeout": CLOSE_TIMEOUT} if cell.fault in SILENT else {}


def answer(ws: WebSocket, message: Message) -> None:
    """Echo it, or do what it says."""
    if message == PLEASE_CLOSE:
        ws.close(1000, "done")
        return
    with contextlib.suppress(ConnectionClosed):  # it has just been harmed
        ws.send(fragments_of(str(message)) if is_fragmented(message) else message)


def read(ws: WebSocket, onmessage: Callable[[Message], None], patience: float) -> BaseException:
    """Receive until that raises, and return what it raises; close after `patience` seconds without a message."""
    while True:
        try:
            onmessage(ws.recv(patience))
        except WaitTimeout:
            ws.close()
        except Exception as error:
            return error


def look_again(ws: WebSocket, seen: Seen, reads: bool) -> None:
    """Call what a user may call after the end."""
    seen.raised["wait_open"] = raised_by(ws.wait_open)
    seen.raised["send"] = raised_by(lambda: ws.send("too late"))
    if reads:
        seen.raised["recv"] = raised_by(lambda: ws.recv(0))
        seen.raised["iteration"] = raised_by(lambda: list(ws))


def raised_by(call: Callable[[], object]) -> BaseException | None:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None
