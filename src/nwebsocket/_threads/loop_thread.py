"""The one background thread of the process, curio's kernel in it, and the queue of commands that leads there.

    any thread --post(command)--> UniversalQueue --descriptor readable--> _main() --await command()--> loop thread

1. post() waits for nothing and needs no lock: it may be called with any lock held, and by a signal handler or a
   finalizer that has interrupted any line, of this file too. It appends, then wakes: two atomic steps.
2. Whatever a command or a timer raises is logged, and ends neither the loop nor the timers.
3. A command that is posted as the loop ends may not run. Who must know asks `alive` afterwards: an end hook, which
   runs after `alive` has become false, sees all that was registered before the post.

This module knows nothing of WebSockets.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from heapq import heappop, heappush
from threading import get_ident
from typing import Any

from .._base import orphan
from .._base.clock import monotonic
from .._base.logger import ContainedLogger
from . import starting
from .safe_curio import CancelledError, Event, Kernel, TaskTimeout, UniversalQueue, before, spawn, wait_readable

log = ContainedLogger("nwebsocket")

Command = Callable[[], Coroutine[Any, Any, None]]


_CANNOT_START = "the background thread for all WebSockets cannot be started"


LONGEST_WAIT = 86_400.0
"""Seconds after which the timers are looked at in any case: a selector takes no more than some 24 days."""


_COURTESY = 1e-3
"""Seconds that the loop waits for a thread to return from post(), at most."""


class _Commands(UniversalQueue):  # type: ignore[misc]
    """curio's queue between threads, without a bound and without its mutex.

    It is made with ``withfd=True``, and the one consumer waits for its descriptor, never inside ``get()``. So the ways
    in which curio 1.6 loses data there are out of reach: a cancelled ``get()`` drops an item; ``put()`` completes a
    getter's Future in several steps, between which a KeyboardInterrupt leaves the consumer asleep for ever. What is
    left of its critical sections is an append and a popleft, which are atomic. The mutex would be in the way: a
    re-entered ``put()`` waits for it for ever, and so does any thread while its holder runs a signal handler.
    """

    def put(self, item: Command) -> None:
        """From plain functions only; curio's finds out first, and slowly, whether a coroutine calls it."""
        self._queue.append(item)
        self.wake()

    def take_all(self) -> list[Command]:
        """On the loop thread: curio's get() takes one, with six calls."""
        queue = self._queue
        commands = []
        while queue:
            commands.append(queue.popleft())
        return commands

    def wake(self) -> None:
        """Have the consumer look."""
        try:  # contextlib.suppress() takes as long as the rest of post()
            self._put_send()
        except OSError:  # the loop has ended
            return

    def forget_wakes(self) -> None:
        """Before the consumer looks: who appends later wakes it again."""
        try:
            while len(self._get_sock.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """curio does this only when the queue is collected, which a traceback somewhere may put off."""
        self._put_sock.close()
        self._get_sock.close()


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


_select = selectors.DefaultSelector.select


class _Selector(selectors.DefaultSelector):
    """Ends the process before it waits, if that is a child which code of the user's has forked on the loop thread."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if orphan.thread is not None:
            orphan.end()
        return _select(self, timeout)


class LoopThread:
    """A thread that runs one curio kernel and, in it, the commands that other threads post."""

    def __init__(self, end_hooks: Sequence[Callable[[LoopThread], None]] = ()) -> None:
        # Called on the loop thread when it ends, whether stopped or crashed.
        self._end_hooks = end_hooks
        _check_descriptors()
        self._queue = _Commands(withfd=True)
        self._kernel = Kernel(selector=_Selector())
        # Held by the first of those who post, while it does. Nobody waits for it but the loop, for a moment:
        # or it would take the interpreter over while the byte is sent, and close() would often return in CLOSED.
        self._posting = threading.Lock()
        self._timers: list[Timer] = []  # a heap
        self._timers_changed = Event()  # the first of them is a new one
        self.alive = True
        self.ident: int | None = None
        self._thread = threading.Thread(target=self._run, name="nwebsocket-loop", daemon=True)

    def start(self) -> None:
        """Raises RuntimeError if the system gives no more threads; then nothing is left behind."""
        try:
            starting.start(self._thread)
        except RuntimeError as error:
            self.alive = False
            self._queue.close()
            self._forget_kernel()
            raise RuntimeError(f"{_CANNOT_START}: {error}") from error
        self.ident = self._thread.ident

    def is_current(self) -> bool:
        """Whether the caller runs on this loop's thread."""
        return get_ident() == self.ident

    def post(self, command: Command) -> bool:
        """Have `command` awaited on the loop thread, after those posted before it. False if the loop has ended.

        From any thread, whatever that has been interrupted in: rule 1.
        """
        if self.alive:
            posting = self._posting
            first = posting.acquire(blocking=False)
            try:
                self._queue.put(command)
            except BaseException:
                # A KeyboardInterrupt may have come after the item was stored and before its wake-up byte was sent.
                self._queue.wake()
                raise
            finally:
                if first:
                    posting.release()
        return self.alive

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
        self.alive = False
        self._forget_kernel()

    def _forget_kernel(self) -> None:
        """Without having run it to its end: its __del__ would raise."""
        vars(self._kernel)["_shutdown_funcs"] = None

    def _run(self) -> None:
        self.ident = get_ident()
        try:
            with self._kernel as kernel:
                kernel.run(self._main)
        except BaseException:
            log.critical("the loop thread has crashed; all connections are lost", exc_info=True)
        finally:
            self.alive = False
            self._queue.close()
            for hook in self._end_hooks:
                hook(self)

    async def _main(self) -> None:
        await spawn(self._keep_time, daemon=True)
        while self.alive:
            await wait_readable(self._queue)
            await self._run_taken()

    async def _run_taken(self) -> None:
        """Not in _main(), whose variables would hold the last command, and its connection, for as long as it waits."""
        for command in self._take():
            await _run_command(command)

    async def _keep_time(self) -> None:
        timers = self._timers
        while True:
            await self._run_due()
            self._timers_changed.clear()
            with contextlib.suppress(TaskTimeout):
                latest = monotonic() + LONGEST_WAIT
                await before(min(timers[0].when, latest) if timers else latest, self._timers_changed.wait())

    async def _run_due(self) -> None:
        timers = self._timers
        while timers and (timers[0].command is None or timers[0].when <= monotonic()):
            command = heappop(timers).command
            if command is not None:
                await _run_command(command)

    def _take(self) -> list[Command]:
        self._let_poster_go_on()
        self._queue.forget_wakes()
        return self._queue.take_all()

    def _let_poster_go_on(self) -> None:
        posting = self._posting
        if posting.acquire(timeout=_COURTESY):
            posting.release()
        else:  # a signal handler has interrupted it, or an exception before it could let go
            self._posting = threading.Lock()

    async def _end(self) -> None:
        self.alive = False


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
    except CancelledError:
        raise  # the loop ends
    except BaseException:
        log.exception("internal error in %r", command)
