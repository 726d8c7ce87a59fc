"""The locks of a connection, made in one place, so that the tests can make ones that know their owner and their order.

1. There are two for each connection: `wire` (input, output, and the protocol's state), then `lock` (all the rest). Who
   needs both takes them in this order. No other two locks of the library are ever held together.
2. No code of anybody else's runs while one is held: what is to be told is decided under the lock, and told after it.
3. Commands to the loop thread need no lock (`loop_thread.py`): they may be posted with any of these held.
"""

from __future__ import annotations

import threading


def recursive(name: str) -> threading.RLock:
    """A lock that its owner may take again: a signal handler or a finalizer may have interrupted that."""
    return threading.RLock()


def owned(lock: threading.RLock) -> bool:
    """Whether the calling thread holds it."""
    return lock._is_owned()  # type: ignore[attr-defined, no-any-return]
