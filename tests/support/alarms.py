"""Signals at any moment: handlers that raise, or do something else, in the middle of what the main thread does."""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any

import garbage


@contextlib.contextmanager
def alarm(handler: Callable[..., Any], first: float, interval: float = 0.0) -> Iterator[None]:
    """Have `handler` called as a signal handler after `first` seconds, and then every `interval` seconds."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, first, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Interruption(Exception):
    """Raised by the signal handler."""


class Barrage:
    """A signal handler that raises while `armed`."""

    def __init__(self) -> None:
        self.armed = False
        self.count = 0

    def __call__(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            self.count += 1
            raise Interruption

    def attempt(self, function: Callable[..., object], *arguments: object) -> bool:
        """Call the function under fire; whether it returned."""
        try:
            try:
                self.armed = True
                function(*arguments)
            finally:
                self.armed = False
        except (Interruption, TimeoutError):
            return False
        return True


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No finalizer runs in which an exception would be lost, whoever's it is."""
    garbage.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
