"""The thread that runs the handlers of one WebSocket: it starts with the first event, and waits for the next.

With nothing to run it waits for its socket, as recv() does, if that is lent to it; else it sleeps until notify().
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import Protocol

from .._base.log import log
from ..events import EventType
from .bridge import Bridge

LATE_HANDLER_PATIENCE = 0.25
"""Seconds that it outlives its connection while events wait for a handler: set soon, it runs there."""


class Runner(Protocol):
    """What the thread asks of the callbacks."""

    def run_all(self) -> None: ...
    def next_type(self) -> EventType | None: ...
    def is_done(self) -> bool: ...
    def run_without_thread(self) -> None: ...


class CallbackThread:
    """The thread of one WebSocket, if it runs; from any thread. All is guarded by the bridge's lock."""

    def __init__(self, bridge: Bridge, runner: Runner) -> None:
        self._bridge = bridge
        self._runner = runner
        self._notices = 0  # calls of notify()
        self._thread: threading.Thread | None = None
        self._ident: int | None = None
        self.idle = False
        """It sleeps, or is about to, on `_wakeup`."""
        self._wakeup: threading.Lock  # made when the thread begins

    def is_current(self) -> bool:
        """Whether the caller is it."""
        return get_ident() == self._ident

    def notify(self) -> None:
        """There may be something to run, or a new handler to hear it."""
        with self._bridge.lock:
            self._notices += 1
            if self._thread is not None:
                self._wake()
                return
        if self._runner.next_type() is None:
            return
        try:
            with self._bridge.lock:
                if self._thread is not None:
                    self._wake()
                    return
                self._thread = threading.Thread(target=self._run, name="nwebsocket-callbacks", daemon=True)
        except BaseException:
            self._bridge.post(self._start)
            raise
        # Not on the main thread: a signal handler that interrupts start() breaks the thread.
        if get_ident() != threading.main_thread().ident or not self._bridge.post(self._start):
            self._start_here()

    def wake(self) -> None:
        """Have it look again, if it sleeps: the socket is lent, or its owner is gone."""
        with self._bridge.lock:
            self._wake()

    def _wake(self) -> None:
        idle, self.idle = self.idle, False
        if idle:
            self._wakeup.release()

    async def _start(self) -> None:
        if self._thread is None:
            self.notify()
        else:
            self._start_here()

    def _start_here(self) -> None:
        thread = self._thread
        if thread is None or thread.ident is not None:
            return
        try:
            thread.start()
        except RuntimeError:
            # No more threads: the system's limit is reached, or the interpreter is exiting (Python 3.12+).
            if threading.main_thread().is_alive():
                log.warning("no thread can be started for callbacks: they run on the loop thread")
            self._thread = None
            self._runner.run_without_thread()

    def _run(self) -> None:
        self._ident = get_ident()
        self._wakeup = threading.Lock()
        self._wakeup.acquire()
        while True:
            self._runner.run_all()
            self._bridge.write_now()
            self._bridge.lead(None)
            notices = self._notices
            if self._runner.next_type() is not None:
                continue
            with self._bridge.lock:
                if notices != self._notices:
                    continue
                if self._runner.is_done():
                    break
                self.idle = True
                patience = -1 if self._bridge.life.ending is None else LATE_HANDLER_PATIENCE
            if patience > 0:
                self._bridge.wake()  # wait_closed() waits for just this
            self._bridge.want_socket_back()
            if not self._wakeup.acquire(timeout=patience) and self._stays_idle():
                break
        self._finish()

    def _stays_idle(self) -> bool:
        """Whether nobody woke the thread between its time-out and now."""
        with self._bridge.lock:
            idle, self.idle = self.idle, False
            if not idle:
                self._wakeup.acquire()
            return idle

    def _finish(self) -> None:
        with self._bridge.lock:
            self._thread = None
            self._ident = None
        self._bridge.wake()
        self.notify()  # a handler set in this very moment is not forgotten

    def after_fork_in_child(self) -> None:
        """There is no such thread in the child."""
        self.idle = False
        self._thread = self._ident = None
