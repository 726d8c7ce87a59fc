"""Requests that find their replies: a tag goes out with each, and comes back with the answer.

    USER THREADS   query() ── tag_request() ── send()
                   result() <── Query <── read_reply() <── messages that have come     ANY THREAD

Which reply belongs to which query is found out by the thread that has read it, before messages go to handlers or to
recv(): so a callback may wait for the answer to its own query.

Who takes a query out of `_Queries.open`, which is one atomic step, is the one who settles it: the reply, its timeout,
cancel(), or the end of the connection.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures._base import FINISHED
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ._base.clock import monotonic
from ._base.json_text import decode, encode
from ._base.log import log
from ._base.logger import contains
from ._base.numbers import count_of
from ._connection.parts import sifters
from ._connection.query import Query
from ._connection.sender import message_of
from ._protocol.payload import Message
from ._threads import the_loop, waiting
from .exceptions import ConnectionClosed, InvalidArgument, QueryTimeout
from .options import check_timeout
from .websocket import Stats, WebSocket, reading

if TYPE_CHECKING:
    from ._connection.bridge import Bridge
    from .websocket import Data

__all__ = ["Query", "QueryMixin", "QueryStats"]

_NEVER = object()

MAX_GIVEN_UP = 65_536
"""Queries without an answer, the last so many, whose replies are known to be late should they still come."""


@dataclass(frozen=True, slots=True)
class QueryStats(Stats):
    """Stats, and what has become of the queries: each is in one of the first five counts."""

    in_flight: int
    answered: int
    timed_out: int
    cancelled: int
    failed: int  # the connection ended, or the message could not be sent
    late_replies: int  # replies to queries that had timed out or been cancelled, dropped


class _Queries:
    """The queries of one socket that have no answer yet."""

    def __init__(self, owner: QueryMixin, bridge: Bridge) -> None:
        self.bridge = bridge
        self.open: dict[int, Query] = {}
        self.sending: set[Query] = set()  # send() of these has not returned yet; only for a bridge that keeps
        self.counts = dict.fromkeys(("answered", "timed_out", "cancelled", "failed", "late_replies"), 0)
        self._owner = weakref.ref(owner)
        # Far from the small numbers that messages of other kinds may carry, and within what JavaScript counts exactly.
        self._tags = itertools.count(random.getrandbits(44))
        self._given_up: dict[int, None] = {}
        # The counts, and these, are guarded by the bridge's lock.
        self._deadlines: list[tuple[float, int]] = []  # a heap of (monotonic clock, tag)
        self._armed: float | None = None  # when expire() will be called
        self._waiting: deque[threading.Lock] = deque()  # those who wait for room, each for its lock

    # ---- any thread

    def count(self, what: str) -> None:
        with self.bridge.lock:
            self.counts[what] += 1

    def make(self, limit: int) -> Query:
        """Return a new query, to be entered in `open`; wait while there are so many."""
        if len(self.open) >= limit and not the_loop.is_loop_thread():
            self._wait_for_room(limit)
        return Query(self, next(self._tags))

    def withdraw(self, query: Query) -> None:
        """The query could not be sent; or was, if its thread was interrupted: then its reply is a late one."""
        self.unsend([query])
        if self._take_out(query.tag) is not None:
            self.count("failed")
            self._wake_one()

    def give_up(self, tag: int) -> bool:
        """Take a query out of those under way; False if it is not among them any more."""
        query = self._take_out(tag)
        if query is None:
            return False
        self.unsend([query])
        self._wake_one()
        return True

    def was_given_up(self, tag: int) -> bool:
        """Whether give_up() has done so, and no late reply has come."""
        return tag in self._given_up and tag not in self.open

    def settle(self, query: Query, name: str, state: str, result: Any, exception: BaseException | None) -> None:
        """Have a query done that is not among those under way any more, count it as `name`, and tell those who wait; a
        second time changes nothing.
        """
        with self.bridge.lock:
            if not query.done():
                query.finish(state, result, exception, self.counts, name)
        query.tell()

    def _take_out(self, tag: int) -> Query | None:
        with self.bridge.lock:
            if tag not in self.open:
                return None
            self._given_up[tag] = None  # first: its reply, which may come at this very moment, is one or the other
            query = self.open.pop(tag, None)
            if query is None:
                self._given_up.pop(tag, None)
                return None
            if len(self._given_up) > MAX_GIVEN_UP:
                with suppress(KeyError, RuntimeError):  # a late reply is just taking it, or another one, out
                    del self._given_up[next(iter(self._given_up))]
        return query

    def unsend(self, queries: Sequence[Query]) -> None:
        """Have their messages, if they still wait for a connection, not be sent any more: one look for all of them."""
        messages = {message for query in queries for message in query.messages}
        if messages:
            self.bridge.forget(messages)

    def has_sent(self, query: Query) -> None:
        """send() has returned."""
        with self.bridge.lock:
            self.sending.discard(query)
            self.bridge.forget_settled(query.messages)

    def expire_at(self, deadline: float, query: Query) -> None:
        """Have the query time out then."""
        with self.bridge.lock:
            heapq.heappush(self._deadlines, (deadline, query.tag))
            if len(self._deadlines) > 2 * len(self.open) + 1024:
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self.open]
                heapq.heapify(self._deadlines)
        self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        if self._armed is None or deadline < self._armed:
            self._armed = deadline
            queries = weakref.ref(self)  # which may have ended long before

            def expire() -> None:
                alive = queries()
                if alive is not None:
                    alive._expire()

            self.bridge.call_later(max(0.0, deadline - monotonic()), expire)

    def _wait_for_room(self, limit: int) -> None:
        self.bridge.write_now()
        while len(self.open) >= limit and self.bridge.life.ending is None:
            waiter = threading.Lock()
            waiter.acquire()
            try:
                self._waiting.append(waiter)
                if len(self.open) >= limit and self.bridge.life.ending is None:
                    self.bridge.check_wait()
                    waiting.acquire(waiter, None)
            except BaseException:
                self._wake_one()  # what woke us may have been for us alone
                raise
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def _wake_one(self) -> None:
        waiting.release_first(self._waiting)

    # ---- the thread that reads

    def takes(self, message: str | bytes, taken_out: list[Any]) -> bool:
        """Settle the query to which this message is the reply; False if it is an ordinary one.

        ``taken_out`` is for one message: it is empty, or holds what an interrupted call has left there: the query, or
        _NEVER and, of one given up, what stands for it.
        """
        owner = self._owner()
        if owner is None or not (self.open or self._given_up or taken_out):
            return False
        try:
            reply = owner.read_reply(message)
            if reply is None:
                return False
            tag, answer = reply
            failed = isinstance(answer, BaseException)
            if not taken_out:
                taken_out.extend(map(self.open.pop, (tag,), (_NEVER,)))
            if taken_out[0] is _NEVER:
                return self._is_late(tag, taken_out)
        except BaseException as error:  # sys.exit(), too, must not end the loop thread
            if not (isinstance(error, Exception) or contains()):
                raise
            log.exception("exception in read_reply(): its message is taken for an ordinary one")
            return False
        self.settle(taken_out[0], "answered", FINISHED, None if failed else answer, answer if failed else None)
        if self._waiting:
            self._wake_one()
        return True

    def _is_late(self, tag: Any, taken_out: list[Any]) -> bool:
        if len(taken_out) == 1:  # without the lock: a tag may be an object of the user's
            taken_out.extend(map(self._given_up.pop, (tag,), (_NEVER,)))
        if taken_out[1] is _NEVER:
            return False
        self.count("late_replies")
        return True

    def _expire(self) -> None:
        """Fail the queries whose time has come."""
        self._armed = None  # before looking: who comes later arms again
        now = monotonic()
        expired: list[Query] = []
        with self.bridge.lock:
            deadlines = self._deadlines
            while deadlines and deadlines[0][0] <= now:
                query = self._take_out(heapq.heappop(deadlines)[1])
                if query is not None:
                    expired.append(query)
            self.counts["timed_out"] += len(expired)
            following = deadlines[0][0] if deadlines else None
        self.unsend(expired)
        for query in expired:
            query.settle(FINISHED, exception=QueryTimeout("no answer came within the query's timeout"))
            self._wake_one()
        if following is not None:
            self._arm(following)

    def after_fork_in_child(self) -> None:
        """Answers go to the parent; its threads, of which one may have held the lock, are not here."""
        self._waiting.clear()
        for query in list(self.open.values()):
            query.forget_threads()
        self.ended(self.bridge.life.closed_error)  # and tell nobody: no code of the user's runs inside fork()

    def lost(self, error: Callable[[], ConnectionClosed]) -> tuple[list[Message], set[Message]]:
        """A connection has ended, and another one will follow: return the messages of the queries to be sent again, and
        those of the others, which fail, each with an `error` of its own, and are not to be sent any more.
        """
        again: list[Message] = []
        failed: set[Message] = set()
        for query in list(self.open.values()):
            if not query.under_way:
                continue  # all that follows is the next connection's
            if query.retries:
                again += query.messages
                query.look_again()
            else:
                self._fail(query, error)
                failed.update(query.messages)
        with self.bridge.lock:
            being_sent = {message for query in self.sending.copy() for message in query.messages}
            self.bridge.settle(being_sent & failed.union(again))
        for _ in range(len(self._waiting)):
            self._wake_one()  # to look whether they still may wait
        return again, failed

    def ended(self, error: Callable[[], ConnectionClosed]) -> list[Callable[[], None]]:
        """The connection has ended for good, and with it all its queries. Return what tells so: with the bridge's lock
        held they are decided only.
        """
        tell = []
        while self.open:
            for query in list(self.open.values()):
                if self.open.pop(query.tag, None) is not None:
                    self.counts["failed"] += 1
                    query.decide(FINISHED, exception=error())
                    tell.append(query.tell)
        while self._waiting:
            self._wake_one()
        return tell

    def _fail(self, query: Query, error: Callable[[], ConnectionClosed]) -> None:
        if self.open.pop(query.tag, None) is not None:
            self.count("failed")
            query.settle(FINISHED, exception=error())
            self._wake_one()


class QueryMixin(WebSocket if TYPE_CHECKING else object):  # type: ignore[misc]
    """A WebSocket that can query: ``class Feed(QueryMixin, WebSocket)``.

    The server must send back, with its answer, the tag that came with the request. By default messages are JSON objects
    and the tag is the field `reflect`; override tag_request() and read_reply() for any other format. A message that
    is no reply to a query of this socket is an ordinary one, for onmessage() or recv().
    """

    reflect = "id"
    """The field of the JSON objects that carries the tag."""

    max_queries = 1024
    """In flight; above that, query() waits for an answer, but for on the loop thread."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if WebSocket in order and order.index(WebSocket) < order.index(QueryMixin):
            raise TypeError(f"class {cls.__name__}: QueryMixin must stand before WebSocket among its bases")

    def query(self, request: Any, timeout: float | None = None, *, retry: bool = False) -> Query:
        """Send a request with a fresh tag; return the Query, a concurrent.futures.Future of the answer.

        ``request``  whatever tag_request() takes: a mapping, to be sent as a JSON object
        ``timeout``  seconds until the query fails with QueryTimeout (a TimeoutError); None: with the connection
        ``retry``    of a ReconnectingWebSocket: do not fail when the connection is lost, but send the request again on
                     the next one. The server may then see it twice: for what may be asked twice

        Waits while `max_queries` are in flight, and as send() does. Raises what tag_request() and send() raise; then
        nothing has been sent. The query fails with ConnectionClosed when the connection ends. From any thread, also
        in callbacks, where result() may be waited for; not with callbacks="loop".
        """
        timeout = check_timeout(timeout)
        queries = self._nwebsocket.sifter
        assert isinstance(queries, _Queries)
        if retry and not queries.bridge.comes_back:
            raise InvalidArgument("retry=True is for a ReconnectingWebSocket: this one does not come back")
        limit = self.max_queries
        if type(limit) is not int or limit < 1:
            limit = count_of("max_queries", "queries", limit)
        query = queries.make(limit)
        try:
            queries.open[query.tag] = query  # here: who is interrupted withdraws it
            data = self.tag_request(request, query.tag)
            if retry and not isinstance(data, (str, bytes)):
                raise TypeError(f"with retry=True, tag_request() must return str or bytes, not {type(data).__name__}")
            if queries.bridge.comes_back:
                queries.sending.add(query)
                query.begin([message_of(data)] if isinstance(data, (str, bytes)) else [], retries=retry)
            self.send(data)
            if timeout is not None:
                queries.expire_at(monotonic() + timeout, query)
            if queries.bridge.comes_back:
                queries.has_sent(query)
        except BaseException:
            queries.withdraw(query)
            if queries.bridge.comes_back:
                queries.has_sent(query)
            raise
        return query

    def tag_request(self, request: Any, tag: int) -> Data:
        """Return the message to send for a request: a JSON object with `tag` in the field `reflect`.

        On the caller's thread. Raises TypeError or InvalidArgument if it cannot be one.
        """
        if not isinstance(request, Mapping):
            raise TypeError(f"a query is a mapping, to be sent as a JSON object, not {type(request).__name__}")
        if not isinstance(self.reflect, str):
            raise TypeError(f"reflect must be a str, the name of a field, not {type(self.reflect).__name__}")
        if self.reflect in request:
            raise InvalidArgument(f"the field {self.reflect!r} is for the tag; a request must not have it")
        try:
            return encode({**request, self.reflect: tag})
        except RecursionError:
            raise InvalidArgument("the query cannot be a JSON object: it is nested too deeply") from None
        except ValueError as error:
            raise InvalidArgument(f"the query cannot be a JSON object: {error}") from error

    def read_reply(self, message: str | bytes) -> tuple[int, Any] | None:
        """Return the tag and the answer in a message, or None if it is no reply: a JSON object, and all of it.

        On the thread that has read it, which may be the loop's, which all sockets share: it must be short. If the
        answer is an exception, result() raises it.
        """
        if not isinstance(message, str):
            return None
        if f'"{self.reflect}"' not in message and "\\" not in message:
            return None  # it is soon seen: not even with an escape in it is there such a field
        try:
            answer = decode(message)
        except (ValueError, RecursionError):
            return None
        tag = answer.get(self.reflect) if isinstance(answer, dict) else None
        return (tag, answer) if type(tag) is int else None

    @reading
    def stats(self) -> QueryStats:
        """Counts so far, a snapshot."""
        queries, base = self._nwebsocket.sifter, super().stats
        assert isinstance(queries, _Queries)
        counts = {field.name: getattr(base, field.name) for field in fields(base)}
        return QueryStats(**counts, in_flight=len(queries.open), **queries.counts)


sifters.append((QueryMixin, _Queries))
