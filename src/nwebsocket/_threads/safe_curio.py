"""The one place that imports curio: 1.6, the last release, cannot be imported on Python 3.12 and later as it is.

`curio/channel.py` reads ``multiprocessing.connection.CHALLENGE``, ``WELCOME`` and ``FAILURE``, which have had a
leading underscore since 3.12, and `curio/ssl.py` decorates with ``ssl.wrap_socket``, which 3.12 removed.
Neither is used by this library: the names are lent for the length of the import and taken back.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import selectors
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, InvalidStateError
from types import SimpleNamespace
from typing import Any, TypeVar

from .._base.clock import monotonic

T = TypeVar("T")


@contextlib.contextmanager
def _lend_names() -> Iterator[None]:
    lent: list[tuple[Any, str]] = []

    def lend(module: Any, name: str, value: Any) -> None:
        if not hasattr(module, name):
            setattr(module, name, value)
            lent.append((module, name))

    for name in ("CHALLENGE", "WELCOME", "FAILURE"):
        lend(multiprocessing.connection, name, getattr(multiprocessing.connection, f"_{name}", None))
    lend(ssl, "wrap_socket", lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for module, name in lent:
            delattr(module, name)


with _lend_names():
    import curio
    import curio.traps
    from curio import (
        Event,
        Kernel,
        Task,
        TaskGroup,
        TaskTimeout,
        UniversalQueue,
        current_task,
        disable_cancellation,
        sleep,
        spawn,
    )
    from curio.errors import CancelledError
    from curio.traps import _get_kernel, _set_timeout, _unset_timeout
    from curio.traps import _read_wait as wait_readable
    from curio.traps import _write_wait as wait_writable

# The kernel asks ``time.monotonic``, all that it wants of this module, each time it runs: freezegun would have replaced
# it. So curio's kernels of the user's own, if there are any, are not frozen either.
vars(curio.kernel)["time"] = SimpleNamespace(monotonic=monotonic)

__all__ = [
    "CancelledError",
    "Descriptor",
    "Event",
    "Kernel",
    "Task",
    "TaskGroup",
    "TaskTimeout",
    "UniversalQueue",
    "before",
    "curio",
    "current_task",
    "disable_cancellation",
    "epoll_descriptor",
    "forbid_cancellation",
    "in_thread",
    "sleep",
    "spawn",
    "wait_readable",
    "wait_writable",
]


class Descriptor:
    """A descriptor to wait for; not the number itself, for which curio would have to ask the system twice a wait.

    What it is asked for is answered in C, as curio's own class for that does not.
    """

    __slots__ = ("fileno",)

    def __init__(self, number: int) -> None:
        self.fileno = number.__index__


async def before(deadline: float | None, coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `coroutine`; TaskTimeout if it is still waiting at `deadline` (monotonic clock; None: no limit).

    curio's own timeout_after() logs a warning whenever something succeeded a little late, as everything does while
    another thread holds the interpreter, and ignore_after(None, ...) fails with a TypeError.
    """
    if deadline is None:
        return await coroutine
    previous = await _set_timeout(deadline)
    try:
        return await coroutine
    finally:
        await _unset_timeout(previous)


def forbid_cancellation(task: Task) -> None:
    """Have ``task``, the caller's, not be cancelled any more: as disable_cancellation() does, which asks the kernel."""
    vars(task)["allow_cancel"] = False


async def in_thread(function: Callable[[], T], name: str) -> T:
    """Run ``function`` in a daemon thread called ``name``; when cancelled, forget about it."""
    # Not curio.run_in_thread(): a call that is cancelled and ends after its kernel, as a slow DNS lookup does, writes
    # into the kernel's closed socket and dies with a traceback on stderr. A cancelled concurrent Future stays silent.
    future: Future[T] = _Waking()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):
            try:
                result = function()
            except BaseException as error:  # SystemExit, too: a thread waits
                future.set_exception(error)
            else:
                future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    await curio.traps._future_wait(future)
    return future.result()


class _Waking(Future[T]):
    """A Future whose completion wakes the kernel, for which curio writes a byte into a socket.

    That is full when some hundreds end while the loop is busy. Nothing is lost then: the kernel, which has a byte to
    read anyway, looks through all that has ended.
    """

    def add_done_callback(self, wake: Callable[[Future[T]], object]) -> None:
        def wake_at_any_rate(future: Future[T]) -> None:
            with contextlib.suppress(BlockingIOError):
                wake(future)

        super().add_done_callback(wake_at_any_rate)


async def epoll_descriptor() -> int | None:
    """The descriptor of the epoll instance in which the kernel waits; None if it waits otherwise."""
    selector: Any = (await _get_kernel())._selector  # curio has no public name for it
    kind = getattr(selectors, "EpollSelector", None)  # or one of its subclasses, as the loop thread's is
    return selector.fileno() if kind is not None and isinstance(selector, kind) else None
