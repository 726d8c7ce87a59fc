"""The one loop of the process, as the user's side knows it: started with the first connection, renewed after a fork.

Here, and where websocket.py makes its first Session, the loop's side is imported, and with it curio and wsproto: they
take far longer than all the rest of `import nwebsocket`, which a program may do without ever opening a connection.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from importlib import import_module
from threading import get_ident
from typing import TYPE_CHECKING

from .._base import orphan
from .._base.late import importing

if TYPE_CHECKING:
    from .loop_thread import LoopThread

# Called on the loop thread when it ends, whether stopped or crashed.
end_hooks: list[Callable[[LoopThread], None]] = []

_loop: LoopThread | None = None
# All that have been started, by number: who makes one with a number that another thread has used already, drops it.
_started: dict[int, LoopThread] = {}
# Keeps threads from making one each. Nothing depends on it: its owner may have been interrupted by a signal handler,
# which may wait for another thread that asks for it, too.
_start_lock = threading.RLock()
_START_PATIENCE = 1.0  # seconds


def current() -> LoopThread:
    """The loop thread of this process, started if need be."""
    global _loop
    loop = _loop
    if loop is not None and loop.alive:
        return loop
    with importing():
        from .loop_thread import LoopThread  # takes long, and is not for the lock

    _check_interpreter()
    lock = _start_lock
    held = lock.acquire(timeout=_START_PATIENCE)
    try:
        loop = _loop = _renewed(lambda: LoopThread(end_hooks))
    finally:
        if held:
            lock.release()
    return loop


def _renewed(make: Callable[[], LoopThread]) -> LoopThread:
    """The last loop thread if it lives, else a new one; the same for two threads, or one and its signal handler."""
    number = max(_started, default=0)
    while (last := _started.get(number)) is not None and not last.alive:
        number += 1
    if last is not None:
        return last
    mine = make()
    mine.start()
    winner = _started.setdefault(number, mine)
    if winner is not mine:
        mine.stop(0)
    else:
        _started.pop(number - 2, None)
    return winner


def _check_interpreter() -> None:
    """Refuse a sub-interpreter: it either cannot have a background thread, or takes the process along when it ends."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # Python 3.13 and later; before
        with contextlib.suppress(ImportError):
            interpreters = import_module(name)
            if interpreters.get_current() != interpreters.get_main():
                raise RuntimeError(
                    "nwebsocket works in the main interpreter only, not in a sub-interpreter "
                    "(mod_wsgi: set WSGIApplicationGroup to %{GLOBAL})"
                )
            return


def is_loop_thread() -> bool:
    """Whether the caller runs on the loop thread."""
    return _loop is not None and _loop.ident == get_ident()


def stop(timeout: float) -> None:
    """End the loop thread, if there is one, waiting for it at most `timeout` seconds."""
    if _loop is not None:
        _loop.stop(timeout)


def _after_fork_in_child() -> None:
    global _loop, _start_lock
    orphan.found(is_loop_thread() or orphan.thread == get_ident())
    _start_lock = threading.RLock()
    for loop in _started.values():
        loop.abandon_after_fork()
    _started.clear()
    _loop = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
