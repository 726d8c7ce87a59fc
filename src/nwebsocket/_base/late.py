"""Modules that are imported when they are first needed: `with importing(): import ...`.

A fork waits for that: in the child, a module whose import another thread has begun would stay locked for ever.
"""

from __future__ import annotations

import contextlib
import logging  # noqa: F401 - registers first, below: a fork takes its lock, which imports need, after ours
import os
import threading
from collections.abc import Iterator

_lock = threading.RLock()
_PATIENCE = 1.0  # seconds
_FORK_PATIENCE = 5.0  # seconds
_held_for_fork = False


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Have forks wait. Nothing else depends on it: whoever holds it may have been interrupted by a signal handler,
    which may wait for another thread that imports something.
    """
    lock = _lock
    held = lock.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        if held:
            lock.release()


def _before_fork() -> None:
    global _held_for_fork
    _held_for_fork = _lock.acquire(timeout=_FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    if _held_for_fork:
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
