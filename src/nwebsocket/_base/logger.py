"""The library's logger, and what becomes of exceptions that code of the user's raises where nobody can catch them.

A `logging.Handler` is anybody's code: what it raises must not end the thread that had something to say.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from threading import get_ident
from typing import Any

from . import orphan
from .escape import escaped


def contains() -> bool:
    """Whether what foreign code raises here ends where it was called.

    Not in the main thread: there it may come from Ctrl-C, or from a signal handler that wants to end a wait.
    """
    thread = get_ident()
    return thread != threading.main_thread().ident or thread == orphan.thread


def repr_of(error: BaseException) -> str:
    """What Python would show of it; that is code of the user's, too, and may raise."""
    try:
        return repr(error)
    except BaseException:
        if not contains():
            raise
        return type(error).__name__


class ContainedLogger:
    """The part of logging.Logger that the library needs; its methods raise nothing but on the main thread."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._logger.addFilter(_escape_traceback)

    def isEnabledFor(self, level: int) -> bool:
        """Whether any handler of the log wants this."""
        return self._logger.isEnabledFor(level)

    def debug(self, message: str, *args: Any) -> None:
        self._log(logging.DEBUG, message, args)

    def info(self, message: str, *args: Any) -> None:
        self._log(logging.INFO, message, args)

    def warning(self, message: str, *args: Any) -> None:
        self._log(logging.WARNING, message, args)

    def exception(self, message: str, *args: Any) -> None:
        """With the traceback of the exception that is being handled."""
        orphan.end(sys.exc_info()[1])
        self._log(logging.ERROR, message, args, exc_info=True)

    def critical(self, message: str, *args: Any, exc_info: bool = False) -> None:
        self._log(logging.CRITICAL, message, args, exc_info=exc_info)

    def _log(self, level: int, message: str, args: tuple[Any, ...], *, exc_info: bool = False) -> None:
        args = tuple(escaped(arg) if isinstance(arg, str) else _Escaped(arg) if _is_text(arg) else arg for arg in args)
        try:
            self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)
        except BaseException as error:
            if not contains():
                raise
            _show(error)


def _escape_traceback(record: logging.LogRecord) -> bool:
    """A filter that passes everything, with the text of the exception escaped as `logging.Formatter` would keep it."""
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None and not record.exc_text:
        vars(record)["exc_text"] = _traceback_of(record.exc_info[1])  # where `logging.Formatter` keeps it
    return True


def _traceback_of(error: BaseException) -> str:
    """What Python would show, but that no line of what the exceptions say begins where those of the log do."""
    lines = []
    for part in traceback.format_exception(type(error), error, error.__traceback__):
        first, *others = part.removesuffix("\n").split("\n")
        indent = "" if part.startswith(("  File", "\n")) else "    "  # else it says what an exception says
        lines += [escaped(first), *(indent + escaped(line) for line in others)]
    return "\n".join(lines)


def _is_text(value: Any) -> bool:
    return not isinstance(value, (int, float))


class _Escaped:
    """What is written as text, when and if it is."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return escaped(str(self._value))

    def __repr__(self) -> str:
        return escaped(repr(self._value))


def _show(error: BaseException) -> None:
    """As `logging` itself shows what goes wrong in its handlers."""
    if not logging.raiseExceptions or sys.stderr is None:
        return
    with contextlib.suppress(BaseException):  # there is nobody left to tell
        sys.stderr.write(f"--- a handler of the logger nwebsocket has raised ---\n{_traceback_of(error)}\n")
