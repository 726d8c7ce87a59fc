"""The one background thread of the process, curio's kernel in it, and the queue of commands that leads there.

    any thread --post(command)--> UniversalQueue --descriptor readable--> _main() --await command()--> loop thread

The queue is made with ``withfd=True`` and the one consumer waits for its descriptor, never inside ``get()``. So no
``get()`` is ever suspended, and the three ways in which curio 1.6 loses data there are out of reach: a cancelled
``get()`` drops an item; ``put()`` completes a getter's Future in several steps, between which a KeyboardInterrupt in
the putting thread leaves the consumer asleep for ever; and a re-entered ``put()`` meets its own mutex. It is also
faster by a fifth than the Future's way.

This module knows nothing of WebSockets.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from heapq import heappop, heappush
from threading import get_ident
from time import monotonic
from typing import Any

from ._curio import Event, Kernel, TaskTimeout, UniversalQueue, before, spawn, wait_readable

log = logging.getLogger("nwebsocket")

Command = Callable[[], Coroutine[Any, Any, None]]


_CANNOT_START = "the background thread for all WebSockets cannot be started"


class Timer:
    """A command to be awaited at a time of the monotonic clock."""

    __slots__ = ("command", "when")

    def __init__(self, when: float, command: Command) -> None:
        self.when = when
        self.command: Command | None = command

    def cancel(self) -> None:
        self.command = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class LoopThread:
    """A thread that runs one curio kernel and, in it, the commands that other threads post."""

    def __init__(self, end_hooks: Sequence[Callable[[LoopThread], None]] = ()) -> None:
        # Called on the loop thread when it ends, whether stopped or crashed.
        self._end_hooks = end_hooks
        _check_descriptors()
        self._queue = UniversalQueue(withfd=True)
        self._kernel = Kernel()
        # Held while putting, so that nothing is put after the loop has ended. Re-entrant: a signal handler of the main
        # thread may post while that thread holds it.
        self._lock = threading.RLock()
        # The thread that is inside put(), and the loop's while it is inside get(): see post().
        self._putting: int | None = None
        self._getting: int | None = None
        # What a signal handler or a finalizer posted while its own thread was inside put() or get().
        self._late: deque[Command] = deque()
        self._timers: list[Timer] = []  # a heap
        self._timers_changed = Event()  # the first of them is a new one
        self._alive = True
        self.ident: int | None = None
        self._thread = threading.Thread(target=self._run, name="nwebsocket-loop", daemon=True)

    def start(self) -> None:
        """Raises RuntimeError if the system gives no more threads; then nothing is left behind."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._alive = False
            self._close_queue()
            self._kernel._shutdown_funcs = None  # its __del__ would raise
            raise RuntimeError(f"{_CANNOT_START}: {error}") from error
        self.ident = self._thread.ident

    @property
    def alive(self) -> bool:
        return self._alive

    def is_current(self) -> bool:
        """Whether the caller runs on this loop's thread."""
        return get_ident() == self.ident

    def post(self, command: Command) -> bool:
        """Have `command` awaited on the loop thread, after those posted before it. False if the loop has ended.

        From any thread, also from a signal handler or a finalizer that interrupts this very method.
        """
        if get_ident() in (self._putting, self._getting):
            self._late.append(command)  # the interrupted put() or get() of this thread sees to it when it goes on
            return self._alive
        alive = self._put(command)
        if self._late:
            for late in self._take_late():
                alive = self._put(late)
        return alive

    def spawn(self, function: Command) -> bool:
        """Have `function` run as a task of its own on the loop thread. False if the loop has ended."""

        async def command() -> None:
            await spawn(function(), daemon=True)

        return self.post(command)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call `function` on the loop thread after `seconds`."""
        when = monotonic() + seconds

        async def call() -> None:
            function()

        async def command() -> None:
            await self.call_at(when, call)

        self.post(command)

    async def call_at(self, when: float, command: Command) -> Timer:
        """Have `command` awaited at `when` (monotonic clock). On the loop thread."""
        timer = Timer(when, command)
        heappush(self._timers, timer)
        if self._timers[0] is timer:
            await self._timers_changed.set()
        return timer

    def stop(self, timeout: float) -> None:
        """End the loop after the commands posted so far, and wait at most `timeout` seconds for it."""
        self.post(self._end)
        self._thread.join(timeout)

    def abandon_after_fork(self) -> None:
        """In a forked child, where this loop's thread does not exist: make sure that nobody waits for it."""
        self._alive = False
        self._lock = threading.RLock()
        self._kernel._shutdown_funcs = None  # its __del__ would raise

    def _put(self, command: Command) -> bool:
        with self._lock:
            if not self._alive:
                return False
            self._putting = get_ident()
            try:
                self._queue.put(command)
            except BaseException:
                # A KeyboardInterrupt may have come after the item was stored and before its wake-up byte was sent.
                self._queue.put(_nothing)
                raise
            finally:
                self._putting = None
        return True

    def _run(self) -> None:
        self.ident = get_ident()
        try:
            with self._kernel as kernel:
                kernel.run(self._main)
        except BaseException:
            log.critical("the loop thread has crashed; all connections are lost", exc_info=True)
        finally:
            with self._lock:
                self._alive = False
                self._close_queue()
            for hook in self._end_hooks:
                hook(self)

    def _close_queue(self) -> None:
        # curio closes these only when the queue is collected, which a traceback somewhere may put off.
        self._queue._put_sock.close()
        self._queue._get_sock.close()

    async def _main(self) -> None:
        await spawn(self._keep_time, daemon=True)
        while self._alive:
            await wait_readable(self._queue)
            await self._run_taken()

    async def _run_taken(self) -> None:
        """Not in _main(), whose variables would hold the last command, and its connection, for as long as it waits."""
        for command in await self._take():
            await _run_command(command)

    async def _keep_time(self) -> None:
        timers = self._timers
        while True:
            await self._run_due()
            self._timers_changed.clear()
            with contextlib.suppress(TaskTimeout):
                await before(timers[0].when if timers else None, self._timers_changed.wait())

    async def _run_due(self) -> None:
        timers = self._timers
        while timers and (timers[0].command is None or timers[0].when <= monotonic()):
            command = heappop(timers).command
            if command is not None:
                await _run_command(command)

    async def _take(self) -> list[Command]:
        commands = []
        self._getting = get_ident()
        try:
            while not self._queue.empty():
                commands.append(await self._queue.get())
        finally:
            self._getting = None
        if self._late:
            commands.extend(self._take_late())
        return commands

    def _take_late(self) -> Iterator[Command]:
        """Each of `_late` once, though the loop thread and a posting thread may both be at it."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._late.popleft()

    async def _end(self) -> None:
        self._alive = False


def _check_descriptors() -> None:
    """Raise OSError if there are not as many as the queue and the kernel need, which would fail half-made."""
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(3):
                for end in socket.socketpair():
                    stack.enter_context(end)
        except OSError as error:
            raise OSError(error.errno, f"{_CANNOT_START}: {error.strerror}") from error


async def _run_command(command: Command) -> None:
    try:
        await command()
    except Exception:
        log.exception("internal error in %r", command)


async def _nothing() -> None:
    """A command that only wakes the loop."""
