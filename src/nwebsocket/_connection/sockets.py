"""The sockets of the process: listing them, closing them all, also at the interpreter's exit, and what a fork does."""

from __future__ import annotations

import atexit
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from .._base.clock import monotonic
from .._threads import the_loop
from ..close_codes import check_close

if TYPE_CHECKING:
    from .._threads.loop_thread import LoopThread
    from ..websocket import WebSocket
    from .bridge import Bridge
    from .callbacks import Callbacks
    from .session import Session


class Parts(Protocol):
    """What is asked of the parts of a socket."""

    bridge: Bridge
    callbacks: Callbacks

    @property
    def session(self) -> Session: ...

    def wait_settled(self, timeout: float | None) -> bool: ...


EXIT_TIMEOUT = 2.0
"""Seconds that the interpreter's exit may wait for all connections together."""

# Sockets that were opened and are still referred to, oldest first; the key is the id of the Parts, which must not be
# held here: it holds the connection's error, whose traceback may hold the socket.
_registry: dict[int, weakref.ref[WebSocket]] = {}


def register(socket: WebSocket, parts: Parts) -> None:
    """Know `socket`, for as long as it is referred to."""
    key = id(parts)
    _registry[key] = weakref.ref(socket, lambda _: _registry.pop(key, None))


def _alive() -> list[tuple[WebSocket, Parts]]:
    sockets = [reference() for reference in list(_registry.values())]
    return [(socket, socket._nwebsocket) for socket in sockets if socket is not None]


def open_sockets() -> list[WebSocket]:
    """The sockets of this process that are not CLOSED, oldest first."""
    return [socket for socket, parts in _alive() if parts.bridge.life.ending is None]


def close_all(code: int | None = None, reason: str = "") -> list[WebSocket]:
    """Call close() on every open socket, and return these sockets: their wait_closed() tells when they have ended."""
    check_close(code, reason)
    sockets = open_sockets()
    for socket in sockets:
        socket.close(code, reason)
    return sockets


def _close_at_exit() -> None:
    """Let a script that forgets close() neither hang nor cut the line: 1001, within EXIT_TIMEOUT for all together."""
    deadline = monotonic() + EXIT_TIMEOUT
    alive = _alive()
    for _, parts in alive:
        with suppress(Exception):  # of a log handler of the user's, say: the others are closed all the same
            parts.bridge.close(1001, "")
    for _, parts in alive:
        with suppress(Exception):
            parts.wait_settled(max(0.0, deadline - monotonic()))
    the_loop.stop(max(0.1, deadline - monotonic()))


def _after_fork_in_child() -> None:
    for _, parts in _alive():
        parts.bridge.after_fork_in_child()
        parts.callbacks.after_fork_in_child()
        parts.session.after_fork_in_child()


def _loop_ended(loop: LoopThread) -> None:
    for _, parts in _alive():
        parts.bridge.loop_ended(loop)


atexit.register(_close_at_exit)
the_loop.end_hooks.append(_loop_ended)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
