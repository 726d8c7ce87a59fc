"""Waiting for what the library shows, but tells nobody about: there is no event to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from peers import LIMIT


def until(done: Callable[[], object], what: str = "it did not come", patience: float = LIMIT) -> None:
    """Wait until `done()` is true; after `patience` seconds fail, and say `what` has not happened."""
    deadline = time.monotonic() + patience
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.0005)
