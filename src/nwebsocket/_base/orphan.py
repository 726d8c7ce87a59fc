"""A process that code of the user's has forked on the loop thread: a handler, a done callback, a property...

That code runs to its end there, and the process with it: what would go on is the loop of the parent, with its sockets.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from threading import get_ident

thread: int | None = None
"""The thread that was the parent's loop, if this is such a process."""


def found(is_one: bool) -> None:
    """The calling thread, in a forked child, was the parent's loop, or not."""
    global thread
    thread = get_ident() if is_one else None


def end(error: BaseException | None = None) -> None:
    """End the process if the calling thread was the parent's loop: the code has returned, or has raised `error`."""
    if thread != get_ident():
        return
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    code = error.code if isinstance(error, SystemExit) else error is not None
    os._exit(code if isinstance(code, int) else int(code is not None))
