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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._loop_thread import LoopThread

# Called on the loop thread when it ends, whether stopped or crashed.
end_hooks: list[Callable[[LoopThread], None]] = []

_loop: LoopThread | None = None
_start_lock = threading.Lock()


def current() -> LoopThread:
    """The loop thread of this process, started if need be."""
    global _loop
    loop = _loop
    if loop is not None and loop.alive:
        return loop
    from ._loop_thread import LoopThread  # not under the lock, which a signal handler could then not take

    with _start_lock:
        if _loop is None or not _loop.alive:
            _check_interpreter()
            loop = LoopThread(end_hooks)
            loop.start()
            _loop = loop
        return _loop


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
    return _loop is not None and _loop.is_current()


def is_posting() -> bool:
    """Whether the caller has interrupted, on its own thread, a call of post()."""
    return _loop is not None and _loop._lock._is_owned()  # type: ignore[attr-defined]


def stop(timeout: float) -> None:
    """End the loop thread, if there is one, waiting for it at most `timeout` seconds."""
    if _loop is not None:
        _loop.stop(timeout)


def _after_fork_in_child() -> None:
    global _loop, _start_lock
    _start_lock = threading.Lock()
    if _loop is not None:
        _loop.abandon_after_fork()
        _loop = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
