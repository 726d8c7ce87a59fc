"""The garbage collector, when a test is to see what it takes."""

from __future__ import annotations

import gc
import threading
import time

LIMIT = 10.0
"""Seconds for another thread to end the collection it is at."""


def collect() -> None:
    """Collect all garbage there is. `gc.collect()` alone does nothing while another thread collects."""
    me, done = threading.get_ident(), threading.Event()

    def told(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2 and threading.get_ident() == me:
            done.set()

    gc.callbacks.append(told)
    try:
        deadline = time.monotonic() + LIMIT
        while not done.is_set():
            assert time.monotonic() < deadline, "another thread has not ended its collection"
            gc.collect()
            time.sleep(0)
    finally:
        gc.callbacks.remove(told)
