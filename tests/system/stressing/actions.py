"""What the threads of the stress do to sockets, at random: every public method, rightly and wrongly used.

Each action may raise what the documentation says, and nothing else.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout  # another one than TimeoutError before Python 3.11
from typing import Any, NamedTuple

from nwebsocket import (
    ConnectionClosed,
    ConnectionFailed,
    InvalidArgument,
    InvalidClose,
    InvalidStateError,
    OutboxFull,
    QueryMixin,
    QueryTimeout,
    ReconnectingWebSocket,
    WaitTimeout,
    WebSocket,
    close_all,
    open_sockets,
)

Dice = random.Random
NOT_OPEN = (InvalidStateError, ConnectionClosed)
MOMENT = 0.02


class Action(NamedTuple):
    """What is done, how often in comparison with others, and what may come out."""

    do: Callable[[Any, Dice], object]
    weight: float = 1.0
    may_raise: tuple[type[BaseException], ...] = ()
    waits: bool = False
    """In a handler, RuntimeError may come out: there waiting would be for oneself."""
    in_handlers: bool = True
    """Not what two handlers, each waiting for the other's socket, would never return from."""


class Querying(QueryMixin, WebSocket):
    """A WebSocket that queries; its server sends back what it gets."""

    max_queries = 20


class ReconnectingQuerying(QueryMixin, ReconnectingWebSocket):
    """The same that comes back."""

    max_queries = 20


def is_answer(ws: WebSocket, message: str | bytes) -> bool:
    """Whether this is the answer to a query, which nobody but the query must get, and be it late."""
    return isinstance(ws, QueryMixin) and isinstance(message, str) and message.startswith('{"n"')


# --- Sending and closing


def send(ws: Any, dice: Dice) -> None:
    ws.send(dice.choice(("", "text", "ä" * 300, b"", b"bytes" * 50, bytearray(b"x"), bytes(70_000))))


def send_many(ws: Any, dice: Dice) -> None:
    for number in range(dice.randrange(300)):
        ws.send(str(number))


def send_fragments(ws: Any, dice: Dice) -> None:
    ws.send([b"a", b"", b"b" * dice.randrange(3000)])


def send_wrongly(ws: Any, dice: Dice) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        ws.send("\ud800")
    ws.send(dice.choice((None, 1, [1], {})))


def send_now_or_never(ws: Any, dice: Dice) -> None:
    ws.send("now", keep=False) if isinstance(ws, ReconnectingWebSocket) else ws.send("now")


def close(ws: Any, dice: Dice) -> None:
    ws.close(*dice.choice(((), (1000,), (3000, "reason"), (None, "only a reason"))))


def close_wrongly(ws: Any, dice: Dice) -> None:
    ws.close(*dice.choice(((1006,), (1000, "x" * 200), (0,))))


# --- Receiving and waiting


def receive(ws: Any, dice: Dice) -> None:
    assert not is_answer(ws, ws.recv(dice.choice((0, 0.001, MOMENT))))


def receive_all(ws: Any, dice: Dice) -> None:
    ws.close()
    assert not any(is_answer(ws, message) for message in ws)


def ping(ws: Any, dice: Dice) -> None:
    assert ws.ping(MOMENT) >= 0


def wait_open(ws: Any, dice: Dice) -> None:
    assert ws.wait_open(MOMENT) is ws


def wait_closed(ws: Any, dice: Dice) -> None:
    event = ws.wait_closed(MOMENT)
    assert event.code >= 1000
    assert ws.readyState is ws.CLOSED


def use_with(ws: Any, dice: Dice) -> None:
    if not isinstance(ws, ReconnectingWebSocket):  # which may never be open
        with ws:
            ws.send("within")


# --- Looking


def look(ws: Any, dice: Dice) -> None:
    ws.binaryType = "arraybuffer"
    name = type(ws).__name__
    assert repr(ws).startswith(f"<{name}")
    assert isinstance(ws.url + ws.protocol + ws.extensions + ws.binaryType, str)
    latency, response = ws.latency, ws.response  # once: of a socket that comes back they are None again after a loss
    assert latency is None or latency >= 0
    assert response is None or response.status == 101
    assert ws.bufferedAmount >= 0


def look_around(ws: Any, dice: Dice) -> None:
    assert all(isinstance(each, WebSocket) for each in open_sockets())


def look_at_outbox(ws: Any, dice: Dice) -> None:
    if isinstance(ws, ReconnectingWebSocket):
        assert len(ws.outbox) >= 0 <= ws.outbox.bytes
        assert all(isinstance(message, (str, bytes)) for message in ws.outbox)
        assert ws.at_risk >= 0 <= ws.retry_count


def clear_outbox(ws: Any, dice: Dice) -> None:
    if isinstance(ws, ReconnectingWebSocket):
        assert ws.outbox.clear() >= 0


def end_all(ws: Any, dice: Dice) -> None:
    close_all(1000, "all of them")


# --- Handlers


def set_handler(ws: Any, dice: Dice) -> None:
    name = dice.choice(("onopen", "onerror", "onclose"))
    setattr(ws, name, dice.choice((None, _ignore)))


def set_message_handler(ws: Any, dice: Dice) -> None:
    ws.onmessage = dice.choice((None, None, _ignore))


def set_wrong_handler(ws: Any, dice: Dice) -> None:
    ws.onmessage = 5


def add_listener(ws: Any, dice: Dice) -> None:
    ws.addEventListener(dice.choice(("open", "close", "error")), _ignore, once=dice.random() < 0.5)


def add_wrong_listener(ws: Any, dice: Dice) -> None:
    ws.addEventListener("nothing", _ignore)


def remove_listener(ws: Any, dice: Dice) -> None:
    ws.removeEventListener(dice.choice(("open", "close", "error")), _ignore)


def _ignore(*_: Any) -> None:
    pass


# --- Queries


def query(ws: Any, dice: Dice) -> None:
    if isinstance(ws, QueryMixin):
        number = dice.randrange(1000)
        under_way = ws.query({"n": number}, timeout=dice.choice((0, MOMENT, 0.2)))
        under_way.add_done_callback(_ignore)
        if dice.random() < 0.2:
            under_way.cancel()
        assert under_way.result(0.5)["n"] == number


def ask_again(ws: Any, dice: Dice) -> None:
    if isinstance(ws, QueryMixin):
        ws.query({"n": 1}, timeout=0.1, retry=isinstance(ws, ReconnectingWebSocket))


ACTIONS = (
    Action(send, 20, (*NOT_OPEN, OutboxFull)),
    Action(send_many, 3, (*NOT_OPEN, OutboxFull)),
    Action(send_fragments, 4, (*NOT_OPEN, OutboxFull)),
    Action(send_wrongly, 1, (TypeError,)),
    Action(send_now_or_never, 2, (*NOT_OPEN, OutboxFull)),
    Action(close, 0.5),
    Action(close_wrongly, 1, (InvalidClose,)),
    Action(receive, 8, (ConnectionClosed, WaitTimeout, RuntimeError)),
    Action(receive_all, 0.2, (ConnectionClosed, RuntimeError)),
    Action(ping, 3, (*NOT_OPEN, WaitTimeout), waits=True),
    Action(wait_open, 4, (ConnectionFailed, ConnectionClosed, WaitTimeout), waits=True),
    Action(wait_closed, 3, (WaitTimeout,), waits=True),
    Action(use_with, 0.3, (ConnectionFailed, *NOT_OPEN), in_handlers=False),
    Action(look, 8),
    Action(look_around, 1),
    Action(look_at_outbox, 3),
    Action(clear_outbox, 1),
    Action(end_all, 0.02),
    Action(set_handler, 2),
    Action(set_message_handler, 2),
    Action(set_wrong_handler, 1, (TypeError,)),
    Action(add_listener, 2),
    Action(add_wrong_listener, 1, (InvalidArgument,)),
    Action(remove_listener, 2),
    Action(query, 6, (*NOT_OPEN, OutboxFull, QueryTimeout, FutureTimeout, CancelledError), waits=True),
    Action(ask_again, 2, (*NOT_OPEN, OutboxFull)),
)


def choose(dice: Dice, *, in_handler: bool) -> Action:
    """Return the next action."""
    possible = [action for action in ACTIONS if action.in_handlers or not in_handler]
    return dice.choices(possible, [action.weight for action in possible])[0]


warnings.filterwarnings("ignore", category=ResourceWarning)
