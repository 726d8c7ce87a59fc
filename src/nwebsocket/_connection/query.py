"""A query under way: a concurrent.futures.Future that is cheap to make, for most are never waited for by strangers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, PENDING
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

    def count(self, what: str) -> None: ...
    def give_up(self, tag: int) -> bool: ...


class _OnDemand:
    """An attribute that is made when it is first asked for: most queries never need what a Future is made of."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.__dict__.setdefault(self._name, self._make())


class Query(Future[Any]):
    """A query under way: a concurrent.futures.Future of the answer.

    result(), exception(), cancel() and all else that a Future can do may be called from any thread; but what would
    wait raises RuntimeError on the loop thread. A done callback may run there, too: it must be short.
    """

    # What makes a Future a thing to wait for takes longer to make than all the rest.
    _condition = _OnDemand(threading.Condition)
    _waiters = _OnDemand(list)
    _done_callbacks = _OnDemand(list)
    _sleepers = _OnDemand(list)

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

    def cancel(self) -> bool:
        """Give the query up, unless it is done; return whether it is cancelled. A reply that still comes is dropped."""
        if self._queries.give_up(self.tag):
            self._queries.count("cancelled")
            self.settle(CANCELLED_AND_NOTIFIED)
        return self.cancelled()

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
        self._queries.bridge.write_now()
        while self._state == PENDING:
            self._queries.bridge.check_wait()
            waiter = threading.Lock()
            waiter.acquire()
            self._sleepers.append(waiter)
            try:
                if self._state == PENDING and not waiting.acquire(waiter, deadline) and self._state == PENDING:
                    raise QueryTimeout(f"no answer within {timeout:g} s")
            finally:
                if waiter in self._sleepers:
                    self._sleepers.remove(waiter)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Nobody would ever settle a copy."""
        raise TypeError("a query cannot be copied or pickled: wait for its result()")

    def look_again(self) -> None:
        """Have those who wait for it look whether they still may."""
        sleepers = self.__dict__.get("_sleepers", [])
        while sleepers:
            sleepers.pop().release()

    def settle(self, state: str, result: Any = None, exception: BaseException | None = None) -> None:
        """Have it done; by whoever has taken it out of where it was kept, who holds no lock."""
        self.decide(state, result, exception)
        self.tell()

    def decide(self, state: str, result: Any = None, exception: BaseException | None = None) -> None:
        """The same, but for tell(), which must follow."""
        self._result = result
        self._exception = exception
        self._state = state  # last: who sees it sees the others

    def tell(self) -> None:
        """Wake those who wait for it, and run the done callbacks."""
        made = self.__dict__
        if "_condition" in made:
            self._tell_waiters()
        if "_sleepers" in made:
            self.look_again()
        if "_done_callbacks" in made:
            self._run_done_callbacks()

    def _run_done_callbacks(self) -> None:
        """As Future does it, but what one raises, sys.exit() included, ends no thread of the library's."""
        for callback in self._done_callbacks:
            self._run_done_callback(callback)

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

    def _tell_waiters(self) -> None:
        """Tell concurrent.futures.wait() and as_completed()."""
        with self._condition:
            for waiter in self._waiters:
                if self._state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
