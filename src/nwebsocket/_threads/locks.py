"""The locks of a connection, made in one place, so that the tests can make ones that know their owner and their order.

1. There are two for each connection: `wire` (input, output, and the protocol's state), then `lock` (all the rest). Who
   needs both takes them in this order. No other two locks of the library are ever held together.
2. No code of anybody else's runs while one is held: what is to be told is decided under the lock, and told after it.
3. Inside of a `with` or a `try` of the same function no `except` clause goes on behind itself: CPython 3.12 and 3.13
   guard the jump back by nothing, and a KeyboardInterrupt that is noticed at it leaves the lock held. The clause
   returns, or is in a function of its own.
4. Commands to the loop thread need no lock (`loop_thread.py`): they may be posted with any of these held.
"""

from __future__ import annotations

import threading


def recursive(name: str) -> threading.RLock:
    """A lock that its owner may take again: a signal handler or a finalizer may have interrupted that."""
    return threading.RLock()


def owned(lock: threading.RLock) -> bool:
    """Whether the calling thread holds it."""
    return lock._is_owned()  # type: ignore[attr-defined, no-any-return]
