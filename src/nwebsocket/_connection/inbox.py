"""What has come on one connection and nobody has taken: bytes that are not parsed, arrivals, messages.

    unparsed ──reader──> arrivals ──sift()──> messages ──> recv(), or the handlers
                   intake ──^         │
                                      └──> the sifter: answers to queries

1. The lock is the connection's. What a comment gives to one thread, or to who holds the wire, needs none.
2. Who consumes messages, recv() or the handlers, is the `consumer`, and nobody else takes any: so none is lost or
   overtaken when handlers come and go.
3. Each step is a row of assignments, or one call of C: a main thread that is interrupted has taken it, or has not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from sys import getsizeof, maxsize
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Protocol

from ..exceptions import ConnectionClosed
from ..options import INBOX_BYTES
from . import arrivals
from .arrivals import Arrivals

if TYPE_CHECKING:
    from .._protocol.payload import Message
    from .waiters import Waiters

_NONE_YET: deque[str | bytes] = deque(maxlen=0)
"""The messages where none has ever come: an empty deque of its own takes 760 bytes."""


class Sifter(arrivals.Sifter, Protocol):
    """What is interested in the messages before anybody else, and in the end."""

    def lost(self, error: Callable[[], ConnectionClosed]) -> tuple[list[Message], set[Message]]: ...
    def ended(self, error: Callable[[], ConnectionClosed]) -> list[Callable[[], None]]: ...
    def after_fork_in_child(self) -> None: ...


class IntakeSide(Protocol):
    """What the inbox asks of who reads, on any thread."""

    def ask_to_resume(self) -> None: ...
    def ask_to_sift_again(self) -> None: ...


class Inbox:
    """The messages of one connection, or of one after another, that nobody has taken.

    ``lock``       the connection's
    ``waiters``    those who are woken when messages have come
    ``max_queue``  so many messages make it full; and `INBOX_BYTES` do
    """

    def __init__(self, lock: RLock, waiters: Waiters, max_queue: int) -> None:
        self._lock = lock
        self._waiters = waiters
        self._max_queue = max_queue
        self._intake: IntakeSide
        self.sifter: Sifter | None = None
        """Sees the messages first."""
        self.messages: deque[str | bytes] = _NONE_YET
        self.received = 0
        """Messages that have come in all: it only grows. Changed by the thread that reads."""
        self.consumer: int | None = None
        """The thread whose message handlers are running; None: recv() may take messages."""
        self.reading_stopped = False
        """The intake has stopped reading and wants to hear when there is room."""
        self.resume_at = 0
        """While that is so: with so few messages left, who consumes looks whether there is."""
        # Bytes of memory that have come since there were no messages, or were last measured; the loop thread, and while
        # reading is stopped the one who consumes.
        self._bytes = 0
        self.unparsed: list[bytes] = []
        """What threads have read and not parsed; this and the next three belong to who holds the wire."""
        self.position = 0
        """Where the first frame begins in that whose messages have not been taken over."""
        self.inflated = 0
        """Compressed messages that were taken over since take_unparsed()."""
        self.arrivals: list[Arrivals] = []
        """What the sifter has not seen yet."""
        self._sifting: int | None = None  # the thread that has it do so
        self._sifts_late = False  # the loop has stopped reading because of a slow one

    def attach(self, intake: IntakeSide) -> None:
        """A connection is open, which ``intake`` reads."""
        self.reading_stopped = False
        self.unparsed, self.position, self.inflated = [], 0, 0
        self._intake = intake

    def detach(self) -> None:
        """The connection is lost; on the loop thread."""
        self.reading_stopped = False

    def sift_by(self, sifter: Sifter) -> None:
        """Have ``sifter`` see all messages first; before the connection is made."""
        self.sifter = sifter

    # ---- the thread that reads

    def take_over(self, messages: list[str | bytes], rest: list[bytes], position: int, inflated: int) -> None:
        """Put messages in the place of the bytes they were parsed from; of those `rest` is left, from `position` on.

        Nothing has waited here, nor for the sifter. With the wire held.
        """
        count = len(messages)
        # Assignments in a row, which nothing interrupts.
        if self.sifter is None:
            new = deque(messages)
            self.messages = new
        else:
            arrivals = [Arrivals(messages)]
            self.arrivals = arrivals
        self.unparsed = rest
        self.position = position
        self.inflated += inflated
        self.received += count

    def take_unparsed(self) -> tuple[bytes, int]:
        """Return what threads have left unparsed, and how many compressed messages were taken over since the last time.
        On the loop thread, with the wire held.
        """
        data, inflated = b"".join(self.unparsed)[self.position :], self.inflated
        self.unparsed, self.position, self.inflated = [], 0, 0
        return data, inflated

    def count(self, messages: int) -> None:
        """So many have come."""
        self.received += messages

    def deliver(self, messages: list[str | bytes]) -> None:
        """Put in messages that have been counted, and wake who waits for them; on the loop thread."""
        own = self._own_messages()
        if not own:
            self._bytes = 0
        self._bytes += sum(map(getsizeof, messages))
        own.extend(messages)
        self._waiters.wake_receivers()

    def _own_messages(self) -> deque[str | bytes]:
        if self.messages is _NONE_YET:
            with self._lock:
                if self.messages is _NONE_YET:
                    self.messages = deque()
        return self.messages

    def sifted(self, messages: list[str | bytes]) -> list[str | bytes]:
        """Return what the sifter leaves of messages that have come; nothing if another thread sees to that."""
        if self.sifter is None:
            return messages
        left: deque[str | bytes] = deque()
        with self._lock:
            self.arrivals.append(Arrivals(messages))
        self.sift(left)
        return list(left)

    def sift(self, sink: deque[str | bytes] | None = None) -> bool:
        """Have the sifter see what has come, and the rest moved to `sink`, or the messages, on the calling thread.
        False if another one is at it already: that one goes on with what has come since.
        """
        sink = self._own_messages() if sink is None else sink
        try:
            while self.arrivals:
                mine = False
                try:
                    with self._lock:
                        if self._sifting is not None:
                            return False
                        # Assignments in a row, which nothing interrupts.
                        self._sifting = get_ident()
                        mine = True
                    self._sift_in_turn(sink)
                finally:
                    if mine:
                        self._sifting = None  # with nothing before it that could be interrupted
                if self._sifts_late:
                    self._sifts_late = False
                    self._intake.ask_to_resume()
        except BaseException:
            self._intake.ask_to_sift_again()
            raise
        return True

    def _sift_in_turn(self, sink: deque[str | bytes]) -> None:
        assert self.sifter is not None
        while self.arrivals:
            self.arrivals[0].sift(self.sifter, sink)
            del self.arrivals[:1]  # in a child that the sifter has forked there are none

    def is_sifting(self) -> bool:
        """Whether the calling thread is in the sifter."""
        return self._sifting == get_ident()

    def wait_for_sifter(self) -> bool:
        """Whether another thread is in the sifter; if so, the intake will be asked to resume."""
        if self._sifting is None:
            return False
        self._sifts_late = True  # first: who ends it looks at this after that
        self._sifts_late = self._sifting not in (None, get_ident())
        return self._sifts_late

    def stop_reading_if_full(self, *, closing: bool) -> bool:
        """Whether there are too many messages; if so, the intake will be asked to resume.

        After close() the count no longer matters and the bytes may double: the server's Close frame stands behind what
        it has sent already, and must be reached even if nobody consumes.
        """
        most, limit = (maxsize, 2 * INBOX_BYTES) if closing else (self._max_queue, INBOX_BYTES)
        while len(self.messages) >= most or self._bytes >= limit:
            # They are measured, by a look at each, only when what has come may have filled it. So an eighth of the
            # limit must be free for the next ones.
            length = len(self.messages)
            self._bytes = self._measure()
            if length < most and self._bytes < limit // 8 * 7:
                break
            self.resume_at = min(self._max_queue, length) // 2
            self.reading_stopped = True  # from now on who consumes looks whether there is room
            if length == len(self.messages):
                return True
            self._bytes = limit  # some have been consumed meanwhile
        self.reading_stopped = False
        return False

    def _measure(self) -> int:
        return sum(map(getsizeof, self.messages.copy()))

    # ---- the thread that consumes

    def begin_consuming(self) -> None:
        """From now on the messages are the calling thread's, for its handlers."""
        with self._lock:
            self.consumer = get_ident()

    def end_consuming(self) -> None:
        """Nobody's handler is running for a message any more: recv() may take the next one."""
        with self._lock:
            self.consumer = None
            self._waiters.release_receivers()

    def may_consume(self) -> bool:
        """Whether the calling thread may take messages; with the lock held."""
        return self.consumer is None or self.consumer == get_ident()

    def take(self) -> str | bytes | None:
        """The next message; None if there is none, or a signal handler was faster. By the `consumer`."""
        try:
            message = self.messages.popleft()
        except IndexError:
            return None
        if self.reading_stopped and len(self.messages) <= self.resume_at:
            self.resume_reading_if_room()
        return message

    def put_back(self, message: str | bytes) -> None:
        """It is the next one again: who took it was interrupted. With the wire held."""
        self.messages.appendleft(message)

    def resume_reading_if_room(self) -> None:
        """Have the intake go on if enough has been consumed: half of the bounds. To measure the bytes takes a look at
        each message: so that is done only when half of them have been consumed since the last time.
        """
        length = len(self.messages)
        if length > self.resume_at:
            return
        self._bytes = self._measure()
        if self._bytes > INBOX_BYTES // 2:
            self.resume_at = length // 2
            return
        try:
            self.reading_stopped = False
            self._intake.ask_to_resume()
        except BaseException:
            self.reading_stopped = True  # the next one who looks asks again
            raise

    # ---- any thread

    def after_fork_in_child(self, lock: RLock) -> None:
        """What has come is the parent's."""
        self._lock = lock
        self.consumer = self._sifting = None
        self.messages.clear()
        self.arrivals = []
        if self.sifter is not None:
            self.sifter.after_fork_in_child()
