"""The WebSocket that the handlers of a connection belong to: how long it lives, and when they may run first."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .._base.log import log
from .bridge import Bridge

INIT_PATIENCE = 5.0
"""Seconds that an ``__init__`` may run while events wait, before a warning says why no callback has run yet."""


class Owner:
    """A WebSocket, as its callbacks know it; calling this gives it, or None when it is gone. From any thread.

    ``gone``  called with something when it is gone
    """

    def __init__(self, owner: Any, bridge: Bridge, gone: Callable[[Any], None]) -> None:
        self.reference = weakref.ref(owner, gone)
        """What calling this calls: the shorter way for who asks at each message."""
        self._bridge = bridge
        # Held while it is `needed`; see keep().
        self._kept: Any = None
        self._keepings = 0  # calls of keep(): the last one decides; guarded by the bridge's lock
        self.inits = 0
        """How many __init__ are running; callbacks are held until the outermost has returned."""
        self._waits_told = False

    def __call__(self) -> Any:
        return self.reference()

    @property
    def name(self) -> str:
        """That of its class."""
        return type(self.reference()).__name__

    def keep(self, needed: Callable[[], bool]) -> None:
        """Hold it from now on if it is `needed`: a socket with handlers lives until it has heard everything; without,
        nobody but its user holds it.
        """
        with self._bridge.lock:
            self._keepings += 1
            number = self._keepings
        owner = self.reference() if needed() else None
        with self._bridge.lock:
            if number == self._keepings:  # else another thread has looked later
                owner, self._kept = self._kept, owner
        del owner  # without the lock: it may have been the last reference

    def let_go(self) -> None:
        """Hold it no more."""
        self._kept = None

    def enter_init(self) -> None:
        """An __init__ begins."""
        self.inits += 1

    def leave_init(self) -> bool:
        """It has ended. Return whether it was the outermost."""
        self.inits -= 1
        return self.inits == 0

    def waits(self) -> None:
        """Events wait for an __init__ to end: say so, if that takes long."""
        if not self._waits_told:
            self._waits_told = True
            owner = weakref.ref(self)  # which may have ended long before

            def warn() -> None:
                alive = owner()
                if alive is not None and alive.inits:
                    log.warning(
                        "%s.__init__ has been running for %g s: callbacks run only after it has returned",
                        alive.name,
                        INIT_PATIENCE,
                    )

            self._bridge.call_later(INIT_PATIENCE, warn)
