"""How connections and the command end: what is said about it, the exit status, and signals, which close politely."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

from nwebsocket import (
    CloseCode,
    CloseEvent,
    ConnectionClosed,
    ReadyState,
    WebSocket,
    WebSocketError,
)

from .format import harmless

FAILED, USAGE = 1, 2

PATIENCE = 1.0
"""Seconds for the closing handshake when the user wants to leave, or has left already."""

_CLEAN = {CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RECEIVED}


class UsageError(Exception):
    """The command line cannot be understood."""


class Failed(Exception):
    """The work cannot be done; the text says why."""


class Stopped(SystemExit):
    """A signal ends the process, when the connection is closed."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def stop_politely() -> None:
    """Have SIGTERM and SIGHUP raise Stopped in the main thread, as SIGINT raises KeyboardInterrupt."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def end_by(number: int) -> int:
    """End the process as the signal would have: what started it, a shell above all, sees that it was one.

    Returns the exit status where there are no such signals.
    """
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number


_IN_OPTIONS = {
    "pass ssl=ssl.create_default_context(cafile='ca.pem')": "name it with --cacert ca.pem",
    "call load_cert_chain() on an SSLContext and pass that as ssl=": "name it with --cert client.pem",
    "open_timeout=": "--open-timeout ",
    "ping_interval=": "--ping-interval ",
    "ping_timeout=": "--ping-timeout ",
    "max_size allows": "--max-size allows",
}


def in_options(error: Exception) -> str:
    """What the error says, with the command's options in place of the library's."""
    text = str(error)
    for of_library, of_command in _IN_OPTIONS.items():
        text = text.replace(of_library, of_command)
    return text


def complain(text: str) -> None:
    """Write a line to standard error, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"nwebsocket: {harmless(text, lines=False)}", file=sys.stderr, flush=True)


def leave(ws: WebSocket) -> None:
    """Close the connection if it is not closed yet, and wait for that a little."""
    if ws.readyState is not ReadyState.CLOSED:
        ws.close(CloseCode.NORMAL_CLOSURE)
        with contextlib.suppress(WebSocketError):
            ws.wait_closed(PATIENCE)


def check_ending(ws: WebSocket, error: ConnectionClosed) -> str:
    """Say how the connection, which has ended, was closed. Raises Failed if that was not as it should be."""
    ending = ws.wait_closed()
    if not ending.wasClean:
        raise Failed(in_options(error))
    if error.closed_first == "client":
        return "closed"
    if ending.code not in _CLEAN:
        raise Failed(f"{without_query(ws.url)}: {describe(ending)}")
    return describe(ending)


def describe(ending: CloseEvent) -> str:
    """A closing by the server in words."""
    name = CloseCode(ending.code).name.replace("_", " ").lower() if ending.code in set(CloseCode) else ""
    reason = f": {ending.reason}" if ending.reason else ""
    return f"closed by the server, {ending.code}{f' ({name})' if name else ''}{reason}"


def without_query(url: str) -> str:
    """The URL for the screen and for errors: a query may hold a token."""
    path, question_mark, _ = url.partition("?")
    return f"{path}?..." if question_mark else path
