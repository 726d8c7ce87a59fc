"""What the library asks of its surroundings, in a simulated form: locks, threads, waits for sockets, the clock.

The library knows nothing of this. For the length of a run its modules have other objects under the names `threading`,
`select`, `socket` and `monotonic`. Sockets are pairs of Unix ones: what is written on one end can be read at once on
the other, so that all that happens is what the scheduler chooses.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from threading import get_ident
from types import SimpleNamespace
from typing import Any

from nwebsocket._connection import lent_sockets, opening, session, sockets, supervisor  # noqa: F401 - to have all imported
from nwebsocket._network import brief_poll, tcp, transport  # noqa: F401
from nwebsocket._protocol import framing
from nwebsocket._threads import locks, loop_thread, safe_curio, the_loop

from .scheduler import Abandoned, Scheduler

_MODULES = "nwebsocket."


class SimLock:
    """threading.Lock. To take it is a point of choice, and to let it go none: no thread is interrupted in that."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._locked = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._scheduler.point("a lock")
        if not self._scheduler.wait_for_lock("a lock", lambda: not self._locked, blocking, timeout):
            return False
        self._locked = True
        return True

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False

    def locked(self) -> bool:
        return self._locked

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class SimRLock:
    """threading.RLock, with a name for the trace. To take it and to have let it go are points of choice."""

    def __init__(self, scheduler: Scheduler, name: str = "lock") -> None:
        self._scheduler = scheduler
        self._name = name
        self._owner: int | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = get_ident()
        if self._owner != me:
            self._scheduler.point(self._name)
            if not self._scheduler.wait_for_lock(self._name, lambda: self._owner is None, blocking, timeout):
                return False
            self._owner = me
        self._count += 1
        return True

    def release(self) -> None:
        if self._owner != get_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None
            self._scheduler.point(f"{self._name} released")

    def _is_owned(self) -> bool:
        return self._owner == get_ident()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class SimThread:
    """threading.Thread, as far as the library uses it."""

    def __init__(self, scheduler: Scheduler, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> None:
        self._scheduler = scheduler
        self._function = lambda: target(*args)
        self.name = name
        self._thread: Any = None

    def start(self) -> None:
        self._thread = self._scheduler.spawn(self._function, self.name)
        self._scheduler.point(f"has started {self.name}")

    def join(self, timeout: float | None = None) -> None:
        self._scheduler.wait(f"the end of {self.name}", lambda: self._thread.ended, timeout)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.ended

    @property
    def ident(self) -> int | None:
        return None if self._thread is None else self._thread.ident


class SimPoll:
    """select.poll: the system is asked without waiting, and the scheduler waits."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._poll = select.poll()
        self.register = self._poll.register

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        self._scheduler.point("a poll")
        timeout = None if milliseconds is None or milliseconds < 0 else milliseconds / 1000
        if not (found := self._poll.poll(0)) and timeout != 0:
            self._scheduler.wait("a poll", lambda: self._poll.poll(0), timeout)
            found = self._poll.poll(0)
        return found


class World:
    """The surroundings of one run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._paths = itertools.count()

    def path(self) -> str:
        """A new path for a Unix socket."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
        return f"{self._folder.name}/{next(self._paths)}"

    def lock(self) -> SimLock:
        return SimLock(self.scheduler)

    def thread(
        self, target: Callable[..., object], name: str = "user", args: tuple[Any, ...] = (), daemon: bool = True
    ) -> SimThread:
        return SimThread(self.scheduler, target, name, args)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The library is in this world."""
        undo: list[tuple[Any, str, Any]] = []

        def put(module: Any, name: str, value: Any) -> None:
            undo.append((module, name, getattr(module, name)))
            setattr(module, name, value)

        scheduler = self.scheduler
        simulated = _Shadow(
            threading,
            Lock=self.lock,
            RLock=lambda: SimRLock(scheduler),
            Thread=self.thread,
            current_thread=lambda: scheduler.current(),
            main_thread=lambda: SimpleNamespace(ident=scheduler.main.ident, is_alive=lambda: True),
        )
        for name, module in list(sys.modules.items()):
            if not name.startswith(_MODULES):
                continue
            if hasattr(module, "monotonic") and name != "nwebsocket._base.clock":
                put(module, "monotonic", lambda: scheduler.now)
            if getattr(module, "threading", None) is threading:
                put(module, "threading", simulated)
            if getattr(module, "select", None) is select:
                put(module, "select", _Shadow(select, poll=lambda: SimPoll(scheduler)))
        put(tcp, "socket", _Shadow(socket, socket=_socket_class(scheduler)))
        put(safe_curio.curio.kernel, "time", SimpleNamespace(monotonic=lambda: scheduler.now))
        put(locks, "recursive", lambda name: SimRLock(scheduler, name))
        put(loop_thread, "_Selector", _selector_class(scheduler, loop_thread._Selector))
        put(loop_thread._Commands, "wake", _waking(scheduler, loop_thread._Commands.wake))
        put(the_loop, "_loop", None)
        put(the_loop, "_started", {})
        put(the_loop, "_start_lock", SimRLock(scheduler, "start"))
        put(lent_sockets, "_lent_sockets", None)
        put(sockets, "_registry", {})
        framing._keys.clear()
        random.seed(0)  # tags of queries, delays
        try:
            yield
        finally:
            for module, name, value in reversed(undo):
                setattr(module, name, value)
            if self._folder is not None:
                self._folder.cleanup()


class _Shadow:
    """A module with some names exchanged."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _socket_class(scheduler: Scheduler) -> type[socket.socket]:
    class SimSocket(socket.socket):
        def send(self, data: Any, flags: int = 0) -> int:
            scheduler.point(f"sends {len(data)} bytes")
            return super().send(data, flags)

        def recv(self, size: int, flags: int = 0) -> bytes:
            scheduler.point("reads")
            return super().recv(size, flags)

    return SimSocket


def _selector_class(scheduler: Scheduler, base: type[Any]) -> type[Any]:
    class SimSelector(base):
        def select(self, timeout: float | None = None) -> Any:
            scheduler.point("the selector")
            if scheduler.over:
                raise Abandoned
            if not (found := super().select(0)) and (timeout is None or timeout > 0):
                again = super().select
                found = []
                scheduler.wait("the selector", lambda: found or found.extend(again(0)) or found, timeout)
            return found

    return SimSelector


def _waking(scheduler: Scheduler, wake: Callable[[Any], None]) -> Callable[[Any], None]:
    def waking(queue: Any) -> None:
        scheduler.point("posts a command")
        scheduler.look_for_signals()
        wake(queue)

    return waking
