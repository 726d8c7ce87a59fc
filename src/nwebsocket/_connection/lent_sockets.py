"""Who looks after the sockets that are lent to threads: those where nobody reads any more are taken back.

Nothing of the loop waits for such a socket. So, as long as there are any, a timer looks at all of them together, with
an epoll instance of their own, which tells at once which have something to read; once in a while it looks at each.
"""

from __future__ import annotations

import select
from collections import deque
from typing import Protocol

from .._base.clock import monotonic
from .._base.shortcuts import taken
from .._threads import the_loop
from .._threads.loop_thread import LoopThread

AVAILABLE = hasattr(select, "epoll") and taken("lending")
"""Whether sockets can be lent here; elsewhere the loop always reads."""

INTERVAL = 0.01
"""Seconds between two looks: what nobody has read in that time, the loop reads."""

IDLE = 1.0
"""Seconds without a message after which the loop waits for the socket again."""


class Reader(Protocol):
    """What it asks of a socket that is lent."""

    @property
    def fileno(self) -> int: ...
    @property
    def reads(self) -> int: ...
    @property
    def has_left(self) -> bool: ...

    async def want_back(self) -> None: ...
    def heard(self) -> None: ...
    def write_burst_end(self) -> None: ...


class LentSockets:
    """The sockets that are lent, of one loop; all but `left` and `burst_ends` belong to its thread."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._lent: dict[int, Reader] = {}  # by descriptor
        self.left: deque[Reader] = deque()
        """Those that have read more than they took; any thread may append to it, and to `burst_ends`."""
        self.burst_ends: set[Reader] = set()
        """Those whose senders are left with the last messages of a burst (`burst_end.py`)."""
        # How much each had read when it was seen with something to read, and when each was looked at.
        self._seen: dict[Reader, int] = {}
        self._seen_of_all: dict[Reader, int] = {}
        self._all_at = 0.0
        self._runs = False

    async def add(self, reader: Reader) -> None:
        """Look after a socket."""
        self._epoll.register(reader.fileno, select.EPOLLIN)
        self._lent[reader.fileno] = reader
        if not self._runs:
            self._runs = True
            self._all_at = monotonic() + IDLE
            await self._loop.call_at(monotonic() + INTERVAL, self._look)

    def remove(self, reader: Reader) -> None:
        """The loop has it back."""
        self._epoll.unregister(reader.fileno)
        del self._lent[reader.fileno]
        self._seen.pop(reader, None)
        self._seen_of_all.pop(reader, None)

    async def _look(self) -> None:
        """(timer)"""
        for _ in range(len(self.burst_ends)):  # there may be new ones at once
            self.burst_ends.pop().write_burst_end()
        if not self._lent:
            self._runs = False
            for collection in (self.left, self._seen, self._seen_of_all):
                collection.clear()
            return
        await self._look_where_something_waits()
        if monotonic() >= self._all_at:
            self._all_at = monotonic() + IDLE
            await self._look_at_all()
        await self._loop.call_at(monotonic() + INTERVAL, self._look)

    async def _look_where_something_waits(self) -> None:
        """Take back where nobody has come to read it in a whole interval."""
        waiting = {self._lent[fileno] for fileno, _ in self._epoll.poll(0)}
        while self.left:
            waiting.add(self.left.popleft())
        waiting.intersection_update(self._lent.values())
        for reader in waiting:
            if self._seen.get(reader) == reader.reads:
                await reader.want_back()
        self._seen = {reader: reader.reads for reader in waiting}
        self.left.extend(reader for reader in waiting if reader.has_left)

    async def _look_at_all(self) -> None:
        """Take back where nothing has come since the last time."""
        for reader in self._lent.values():
            if self._seen_of_all.get(reader) == reader.reads:
                await reader.want_back()
            else:
                reader.heard()
        self._seen_of_all = {reader: reader.reads for reader in self._lent.values()}


_lent_sockets: LentSockets | None = None


def current() -> LentSockets:
    """The one of the loop that runs; on its thread."""
    global _lent_sockets
    loop = the_loop.current()
    if _lent_sockets is None or _lent_sockets._loop is not loop:
        _lent_sockets = LentSockets(loop)
    return _lent_sockets
