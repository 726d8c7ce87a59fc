"""A query under way: a concurrent.futures.Future that is cheap to make, for most are never waited for by strangers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, PENDING
from contextlib import suppress
from operator import attrgetter
from threading import get_ident
from typing import Any, Protocol

from .._base.clock import monotonic
from .._base.log import log
from .._base.logger import contains
from .._protocol.payload import Message
from .._threads import the_loop, waiting
from ..exceptions import QueryTimeout
from ..options import check_timeout
from .bridge import Bridge


class Home(Protocol):
    """Where the queries of a socket are kept that have no answer yet."""

    bridge: Bridge

    def give_up(self, tag: int) -> bool: ...
    def was_given_up(self, tag: int) -> bool: ...
    def settle(self, query: Query, name: str, state: str, result: Any, exception: BaseException | None) -> None: ...


class _OnDemand:
    """An attribute that is made when it is first asked for: most queries never need what a Future is made of."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.__dict__.setdefault(self._name, self._make())


class _Condition(threading.Condition):
    """One that is entered and left in one call of C, by Future's methods, too: its own methods can be interrupted when
    they have the lock and nobody has been promised to let it go.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class Query(Future[Any]):
    """A query under way: a concurrent.futures.Future of the answer.

    result(), exception(), cancel() and all else that a Future can do may be called from any thread; but what would
    wait raises RuntimeError on the loop thread. A done callback runs on the thread that has read the answer, which may
    be that one: it must be short, and cannot wait for its own socket.
    """

    # What makes a Future a thing to wait for takes longer to make than all the rest.
    _condition = _OnDemand(_Condition)
    _waiters = _OnDemand(list)
    _done_callbacks = _OnDemand(list)
    _sleepers = _OnDemand(list)

    _told = False  # those who wait in ways of concurrent.futures

    def __init__(self, queries: Home, tag: int) -> None:
        self._state = PENDING
        self._result = None
        self._exception = None
        self._queries = queries
        # For a socket that comes back: what is sent, if it can be told from other messages; whether to send it again on
        # another connection; and whether the one that is lost may have had it, which is set last.
        self.messages: Sequence[Message] = ()
        self.retries = False
        self.under_way = False
        self.tag = tag
        """What tells the reply to this query from others."""

    def begin(self, messages: Sequence[Message], *, retries: bool) -> None:
        """It is about to be sent, by a socket that comes back."""
        # Assignments in a row, which nothing interrupts.
        self.messages = messages
        self.retries = retries
        self.under_way = True

    def cancel(self) -> bool:
        """Give the query up, unless it is done; return whether it is cancelled. A reply that still comes is dropped."""
        try:
            if self._queries.give_up(self.tag):
                self._settle_cancelled()
        except BaseException:
            self._queries.bridge.post(self._cancel_on_loop)
            raise
        return self.cancelled()

    def _settle_cancelled(self) -> None:
        self._queries.settle(self, "cancelled", CANCELLED_AND_NOTIFIED, None, None)

    async def _cancel_on_loop(self) -> None:
        """cancel() was interrupted: has it given the query up, and not said so? (command)"""
        if not self.done() and self._queries.was_given_up(self.tag):
            self._settle_cancelled()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return bool(self._state == CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """False: until there is an answer, a query can be cancelled."""
        return False

    def done(self) -> bool:
        """Whether it has an answer, has failed, or was cancelled."""
        return bool(self._state != PENDING)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the answer and return it.

        Raises what the query failed with, CancelledError, QueryTimeout (a TimeoutError) after `timeout` seconds (the
        query goes on), and RuntimeError on the loop thread.
        """
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del error, self  # the traceback refers to them, and they to it
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer; return what the query failed with, or None. Raises what result() raises otherwise."""
        if self._state == PENDING:
            self._wait(timeout)
        if self._state == CANCELLED_AND_NOTIFIED:
            raise CancelledError
        error: BaseException | None = self._exception
        return error

    def _wait(self, timeout: float | None) -> None:
        timeout = check_timeout(timeout)
        if the_loop.is_loop_thread():
            raise RuntimeError("waiting for a query would block the loop thread, which has to bring its answer")
        deadline = None if timeout is None else monotonic() + timeout
        bridge = self._queries.bridge
        bridge.write_now()
        try:
            bridge.waiters.askers.append(self)
            while self._state == PENDING:
                bridge.check_wait()
                bridge.lead(deadline, self.done)
                if not self.done() and not self._sleep(deadline) and not self.done():
                    raise QueryTimeout(f"no answer within {timeout:g} s")
        finally:
            if self in bridge.waiters.askers:  # not suppress(), a call: who is interrupted there would stay
                bridge.waiters.askers.remove(self)

    def _sleep(self, deadline: float | None) -> bool:
        """Wait until another thread wakes us; False at the deadline."""
        waiter, sleepers = threading.Lock(), self._sleepers
        waiter.acquire()
        try:
            sleepers.append(waiter)
            self._queries.bridge.want_socket_back()
            return self.done() or waiting.acquire(waiter, deadline)
        finally:
            if waiter in sleepers:
                sleepers.remove(waiter)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Nobody would ever settle a copy."""
        raise TypeError("a query cannot be copied or pickled: wait for its result()")

    def look_again(self) -> None:
        """Have those who wait for it look whether they still may. Each once: some will wait again at once."""
        with suppress(IndexError):
            waiting.release(self.__dict__.get("_sleepers", []))

    def settle(self, state: str, result: Any = None, exception: BaseException | None = None) -> None:
        """Have it done; by the thread that has taken it out of where it was kept, who holds no lock."""
        self.decide(state, result, exception)
        self.tell()

    def decide(self, state: str, result: Any = None, exception: BaseException | None = None) -> None:
        """The same, but for tell(), which must follow."""
        self._result = result
        self._exception = exception
        self._state = state  # last: who sees it sees the others

    def finish(
        self, state: str, result: Any, exception: BaseException | None, counts: dict[str, int], name: str
    ) -> None:
        """The same for one that is not done, and count it; with the lock of the counts held."""
        count = counts[name] + 1
        # Assignments in a row, which nothing interrupts.
        counts[name] = count
        self._result = result
        self._exception = exception
        self._state = state

    def tell(self) -> None:
        """Wake those who wait for it, and run the done callbacks."""
        made = self.__dict__
        if "_condition" in made and not self._told and not self._leave_waiters_to_loop():
            self._tell_waiters()
        if "_sleepers" in made:
            self.look_again()
        if "_done_callbacks" in made:
            self._run_done_callbacks()

    def _run_done_callbacks(self) -> None:
        """As Future does it, but what one raises, sys.exit() included, ends no thread of the library's."""
        while self._done_callbacks:
            self._run_done_callback(self._done_callbacks.pop(0))

    def _run_done_callback(self, callback: Callable[[Query], object]) -> None:
        try:
            callback(self)
        except BaseException as error:
            if not (isinstance(error, Exception) or contains()):
                raise
            log.exception("exception in a done callback of a query")

    def forget_threads(self) -> None:
        """In a forked child: nobody waits here, and what guarded them may have been held by a thread of the parent."""
        for name in ("_condition", "_waiters", "_sleepers", "_done_callbacks"):
            self.__dict__.pop(name, None)

    def _leave_waiters_to_loop(self) -> bool:
        """On the main thread: what Future's waiters do can neither be interrupted nor done twice."""
        return get_ident() == threading.main_thread().ident and self._queries.bridge.post(self._tell_on_loop)

    async def _tell_on_loop(self) -> None:
        """(command)"""
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        """Tell concurrent.futures.wait() and as_completed(), once."""
        with self._condition:
            if self._told:
                return
            self._told = True
            for waiter in self._waiters:
                if self._state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
