"""Keeping the loop thread from going on, so that what a test does comes first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from peers import LIMIT

from nwebsocket._threads import the_loop


@contextmanager
def held_loop() -> Iterator[None]:
    """The loop does nothing meanwhile."""
    busy, released = threading.Event(), threading.Event()
    the_loop.current().call_later(0, lambda: (busy.set(), released.wait(LIMIT)))
    assert busy.wait(LIMIT)
    try:
        yield
    finally:
        released.set()
