"""How a user's thread waits for the loop thread: for a lock of its own, which is released to wake it.

Never for longer than makes sense: Ctrl-C interrupts it, and a wait for what the waiting thread itself was interrupted
in, which would never end, is found out.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from itertools import repeat
from operator import methodcaller
from threading import get_ident
from types import FrameType
from typing import Protocol

from .._base.clock import monotonic

_SLICE = 0.05 if sys.platform == "win32" else 1.0
"""Seconds after which the main thread looks whether Ctrl-C was pressed. On Windows that interrupts no wait for a lock;
elsewhere not if it comes after Python has looked for signals, and before the system waits (2 of 1,034, sent 50 ms after
recv() to a busy machine), or to another thread.
"""

_MOMENT = 0.05
"""Seconds to wait before looking whether this is a wait that could never end."""

_release = methodcaller("release")

_PACKAGE = str(__package__).partition(".")[0]


class WaitsForItself(RuntimeError):
    """The wait would be for what the waiting thread itself was interrupted in."""


class Holder(Protocol):
    """Something with locks that the loop thread needs to go on."""

    def is_entered(self) -> bool: ...


_watched: set[weakref.ref[Holder]] = set()


def watch(holder: Holder) -> None:
    """Know `holder` as long as it exists."""
    _watched.add(weakref.ref(holder, _watched.discard))


def enlist(waiters: list[threading.Lock]) -> threading.Lock:
    """A lock for one to wait for, among those that release() releases; with the bridge's lock held."""
    waiter = threading.Lock()
    waiter.acquire()
    waiters.append(waiter)
    return waiter


def release(waiters: list[threading.Lock]) -> None:
    """Wake all of them; with the lock held, or a thread that gives up waiting at this moment raises IndexError: then
    the others are awake.

    In one call of C: who is interrupted between taking one out and releasing it would leave that asleep. The first ones
    first: without the lock, new ones may come behind them meanwhile.
    """
    any(map(_release, map(waiters.pop, repeat(0, len(waiters)))))


def release_first(waiters: deque[threading.Lock]) -> None:
    """Wake the one who has waited longest, if there is any; as release() does."""
    any(map(_release, map(deque.popleft, filter(None, (waiters,)))))


def acquire(waiter: threading.Lock, deadline: float | None) -> bool:
    """Acquire `waiter`, which another thread will release; False at `deadline`. Ctrl-C interrupts it.

    Raises WaitsForItself, after a moment.
    """
    first = _MOMENT if deadline is None else min(_MOMENT, max(0.0, deadline - monotonic()))
    if waiter.acquire(timeout=first):
        return True
    in_slices = _SLICE if get_ident() == threading.main_thread().ident else None
    while True:
        left = None if deadline is None else deadline - monotonic()
        if left is not None and left <= 0:
            return waiter.acquire(blocking=False)
        if _has_interrupted():
            _check_locks()
        timeout = min((t for t in (left, in_slices) if t is not None), default=-1.0)
        if waiter.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            return True


def _has_interrupted() -> bool:
    """Whether the waiting thread was, below foreign code, in this library already: only then can it hold a lock of it.

    A look at all sockets at each wait would cost a thousand waiting threads much of a processor.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
    while frame is not None and not _is_ours(frame):
        frame = frame.f_back
    return frame is not None


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__package__")).partition(".")[0] == _PACKAGE


def _check_locks() -> None:
    """Raise WaitsForItself if this thread, about to wait, holds a lock that the loop thread needs to go on.

    No code of this library waits while it holds one, but a signal handler or a finalizer of the user's may interrupt it
    there and wait for a socket, this one or another.
    """
    watched = [holder for reference in _watched.copy() if (holder := reference()) is not None]
    if any(holder.is_entered() for holder in watched):
        raise WaitsForItself("a signal handler or a finalizer that interrupted a call of a socket cannot wait for one")
