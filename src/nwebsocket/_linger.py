"""Waiting for a socket right here, for a moment, when its data comes at short intervals.

curio's way from a wait to the next takes longer than all that this library does with a small message. A task that
lingers keeps the kernel from running; so it does that only until anything else happens in the kernel's selector, whose
own descriptor, epoll's, is waited for as well.
"""

from __future__ import annotations

import select
from time import monotonic

from ._curio import epoll_descriptor

_QUICK = 1e-3
"""Seconds between two waits for the socket for which the second may be a lingering one."""

_MOMENT = 1
"""Milliseconds to linger: so much later may a timer or a task be that is ready to run without its descriptor."""

_OTHERS_TURN = 50
"""Waits in which it is not tried again, after something else has happened."""


class Linger:
    """Waits for one socket, on the loop thread."""

    __slots__ = ("_fileno", "_others_turn", "_poller", "_waited")

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._poller: select.poll | None = None
        self._waited = 0.0
        self._others_turn = 0

    async def wait(self) -> bool:
        """Return whether the socket has data or has ended. Where not, it is to be waited for as always."""
        now = monotonic()
        quick = now - self._waited < _QUICK
        self._waited = now
        if not quick:
            return False
        if self._others_turn:
            self._others_turn -= 1
            return False
        poller = self._poller or await self._new_poller()
        if poller is None:
            return False
        ready = poller.poll(_MOMENT)
        if any(fileno == self._fileno for fileno, _ in ready):
            return True
        if ready:
            self._others_turn = _OTHERS_TURN
        return False

    async def _new_poller(self) -> select.poll | None:
        epoll = await epoll_descriptor()
        if epoll is None:
            return None
        self._poller = poller = select.poll()
        poller.register(self._fileno, select.POLLIN)
        poller.register(epoll, select.POLLIN)
        return poller
