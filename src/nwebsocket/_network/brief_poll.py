"""Waiting for a socket right here, for a moment, when its data comes at short intervals.

curio's way from a wait to the next takes longer than all that this library does with a small message. A task that
polls keeps the kernel from running; so it does that only until anything else happens in the kernel's selector, whose
own descriptor, epoll's, is waited for as well.
"""

from __future__ import annotations

import select

from .._base import orphan
from .._base.clock import monotonic
from .._base.shortcuts import taken

AVAILABLE = taken("brief_poll")
"""Whether handlers on the loop poll; elsewhere the kernel always waits."""

_QUICK = 1e-3
"""Seconds between two waits for the socket for which the second may be such a poll."""

_STAY = 5e-3
"""Seconds after which the kernel runs in any case: so late may a timer be, or a task that is ready without a socket."""

_MOMENT = 4
"""Milliseconds to poll at once; a timer is late by so much more."""

_OTHERS_TURN = 50
"""Waits in which it is not tried again, after something else has happened."""


class BriefPoll:
    """Waits for one socket, on the loop thread, whose kernel waits in the epoll instance of descriptor ``epoll``."""

    __slots__ = ("_fileno", "_left", "_others_turn", "_poller", "_waited")

    def __init__(self, fileno: int, epoll: int) -> None:
        self._fileno = fileno
        self._poller = select.poll()
        self._poller.register(fileno, select.POLLIN)  # and is the first, then, of what poll() returns
        self._poller.register(epoll, select.POLLIN)
        self._waited = self._left = 0.0
        self._others_turn = 0

    def wait(self) -> bool:
        """Return whether the socket has data or has ended. Where not, it is to be waited for as always."""
        if orphan.thread is not None:
            return False  # in a child that ends before its kernel waits
        now = monotonic()
        quick = now - self._waited < _QUICK
        self._waited = now
        if quick and not self._others_turn and now - self._left < _STAY:
            ready = self._poller.poll(_MOMENT)
            if ready and ready[0][0] == self._fileno:
                return True
            if ready:
                self._others_turn = _OTHERS_TURN
        elif self._others_turn:
            self._others_turn -= 1
        self._left = now
        return False
