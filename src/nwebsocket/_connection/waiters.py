"""Threads that wait for something of one connection, each for a lock of its own, which is released to wake it.

Who waits looks again at what it has waited for when it is woken. Before it does, it writes what it has sent; and before
it sleeps while the socket is lent, it asks the loop to read that again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import RLock
from typing import Protocol

from .._threads import waiting

Queue = list[threading.Lock]


class Asker(Protocol):
    """A thread that waits for the answer to a query."""

    def look_again(self) -> None: ...


class Connection(Protocol):
    """What those who wait ask of what they wait for."""

    def write_now(self) -> None: ...
    def check_wait(self) -> None: ...
    def want_socket_back(self) -> None: ...


class Waiters:
    """Those who wait in recv(), in send() for room, for the answers to queries, and for anything else.

    ``lock``  the connection's
    """

    def __init__(self, lock: RLock, connection: Connection) -> None:
        self._lock = lock
        self._connection = connection
        self.receivers: Queue = []
        self.senders: Queue = []
        self.others: Queue = []
        self.askers: list[Asker] = []

    def anyone_waits(self) -> bool:
        """Whether a thread waits for anything but an answer."""
        return bool(self.receivers or self.others or self.senders)

    def waiting_for_messages(self) -> int:
        """How many threads wait for a message or for an answer."""
        return len(self.receivers) + len(self.askers)

    def wait_until(self, ready: Callable[[], object], deadline: float | None, queue: Queue) -> bool:
        """Wait in `queue` until `ready()` is true; False at the deadline (monotonic clock)."""
        self._connection.write_now()
        woken = True
        while not ready():
            if not woken:
                return False
            with self._lock:
                self._connection.check_wait()
                waiter = waiting.enlist(queue)
            woken = self.sleep_unless(ready, waiter, deadline, queue)
        return True

    def sleep_unless(
        self, ready: Callable[[], object], waiter: threading.Lock, deadline: float | None, queue: Queue
    ) -> bool:
        """Wait for another thread to release `waiter`, which is in `queue`, unless `ready()`: it may have become so
        before that. False at the deadline; it is not in the queue any more then.
        """
        woken = False
        try:
            if ready():
                return True
            self._connection.want_socket_back()
            woken = waiting.acquire(waiter, deadline)
        finally:
            if not woken:
                with self._lock:
                    if waiter in queue:
                        queue.remove(waiter)
        return woken

    def wake_receivers(self) -> None:
        """Messages have come."""
        if self.receivers:  # the lock is not needed to look: who enlists looks at the inbox after that
            with self._lock:
                waiting.release(self.receivers)

    def release_receivers(self) -> None:
        """The same, with the lock held."""
        waiting.release(self.receivers)

    def release_senders(self) -> None:
        """There is room for more messages; with the lock held."""
        waiting.release(self.senders)

    def release_all(self) -> None:
        """Something has happened that each of them may have waited for; with the lock held."""
        for queue in (self.receivers, self.others, self.senders):
            if queue:
                waiting.release(queue)

    def wake_leaders(self) -> None:
        """The socket is lent: a thread that waits for what comes may read it."""
        self.wake_receivers()
        for asker in self.askers.copy():
            asker.look_again()

    def after_fork_in_child(self, lock: RLock) -> None:
        """Nobody waits in the child."""
        self._lock = lock
        self.receivers, self.senders, self.others, self.askers = [], [], [], []
