"""The bridge of a socket that connects again: what is sent while there is no connection waits here for the next one.

    send() ──> kept ──────(open, and its handlers have run)──────> outgoing ──> writer ──> operating system
                 ^                                                                │
                 └──(the connection is lost)── what the operating system has not taken, to its end

The rules of `bridge.py` hold. Its state goes back from OPEN to CONNECTING when a connection is lost, until close(), or
an end for good.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

from .._base.clock import monotonic
from .._base.log import Trace
from .._protocol.payload import Message
from ..exceptions import InvalidStateError, OutboxFull
from ..options import Options
from .bridge import Bridge, Ending, LoopSide, WritingSide, describe
from .phase import Phase


class Passing(tuple[Any, ...]):
    """A Message that is not to be kept for another connection."""


class OutboxBridge(Bridge):
    """The shared part of one connection after another."""

    keeps = True

    def __init__(self, options: Options, max_outbox: int) -> None:
        super().__init__(options, Trace())
        # What waits for the next connection, or for the open handlers of this one.
        self.kept: deque[Message] = deque()
        self.kept_bytes = 0
        self._max_outbox = max_outbox
        self._max_bytes = options.write_limit
        self.seen_to = set()
        self._holding = False  # open, but the open handlers have not run yet: what they send goes before what is kept
        self._announcing: int | None = None  # the thread that runs them
        self._confirmed = 0  # messages, counted as framed_messages are, that the server is known to have read
        self._pinged: dict[bytes, int] = {}  # that count as it was when each ping went out
        self.at_risk = 0
        """Messages taken by the operating system before a loss, of which nobody can say whether they arrived."""
        # The end of the last connection, and the seconds to the next one, for the handlers.
        self._loss: tuple[Ending, float] | None = None
        self.next_attempt_at: float | None = None  # monotonic clock; None before the first loss
        self.on_close: Callable[[], object] = lambda: None
        """Called when close() was, on any thread."""
        self.on_rest: Callable[[], None] = lambda: None
        """Called when no handler is running any more."""
        self.in_handler: Callable[[], bool] = lambda: False
        """Whether the calling thread is the one that runs the handlers."""

    # ---- user threads

    def _send_through(self, message: Message, writer: WritingSide | None) -> bool:
        # The writer was asked for before all this: that of a connection lost meanwhile refuses, and a new one, which
        # must not be given this before what is kept, comes before its connection is OPEN.
        if self.phase is not Phase.OPEN or self.seen_to or self._must_wait():
            return False
        return super()._send_through(message, writer)

    def _must_wait(self) -> bool:
        return self._holding and self._announcing != get_ident()

    def _accept(self, message: Message, *, wanting_room: bool = True) -> bool:
        with self.lock:
            if self.ending is not None or self.closed_locally:
                self.require_open("send()")
            if self.seen_to and message in self.seen_to:
                return True
            if self.phase is Phase.OPEN and not self._must_wait():
                return super()._accept(message, wanting_room=wanting_room)
            if isinstance(message, Passing) and self.phase is not Phase.OPEN:
                raise self._refusal()
            self._check_outbox(message[2])
            # In a row, with one call at the end: nothing interrupts it.
            self.kept_bytes += message[2]
            self.accepted_bytes += message[2]
            self.accepted_messages += 1
            self.kept.append(message)
        return True

    def _check_outbox(self, size: int) -> None:
        if len(self.kept) >= self._max_outbox:
            raise OutboxFull(f"the outbox is full: {len(self.kept):,} messages wait, max_outbox={self._max_outbox:,}")
        if self.kept and self.kept_bytes + size > self._max_bytes:
            raise OutboxFull(
                f"the outbox is full: {self.kept_bytes:,} bytes wait, {size:,} more are over "
                f"write_limit={self._max_bytes:,}"
            )

    def _keep(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.kept.append(message)
            self.kept_bytes += message[2]

    def _see_off(self, size: int) -> None:
        if not self._must_wait():
            super()._see_off(size)

    def over_write_limit(self) -> bool:
        """Without what is kept: who waited for that in an open handler would wait for himself."""
        return self._over_limit(self.kept_bytes, len(self.kept))

    def check_wait(self) -> None:
        super().check_wait()
        if self.phase is Phase.CONNECTING and self.in_handler():
            raise RuntimeError("there is no connection, and the next one is not made before this handler has returned")

    def _refusal(self) -> InvalidStateError:
        error = InvalidStateError("there is no connection now, and with keep=False nothing is kept for the next")
        vars(error)["_refused_by"] = id(self)
        return error

    def has_refused(self, error: InvalidStateError) -> bool:
        return vars(error).get("_refused_by") == id(self)

    def why_not_open(self) -> str:
        return "" if self._loss is None else f"; the last attempt: {describe(self._loss[0])}"

    def forget(self, messages: set[Message]) -> None:
        with self.lock:
            forgotten = self._forget_one(*messages) if len(messages) == 1 else self._forget_many(messages)
            size, count = sum(message[2] for message in forgotten), len(forgotten)
            self.kept_bytes -= size
            self.accepted_bytes -= size
            self.accepted_messages -= count

    def _forget_one(self, message: Message) -> list[Message]:
        """Without a copy of all: of thousands of queries each may be cancelled by itself."""
        if self.kept and self.kept[-1] == message:
            return [self.kept.pop()]
        with contextlib.suppress(ValueError):
            self.kept.remove(message)
            return [message]
        return []

    def _forget_many(self, messages: set[Message]) -> list[Message]:
        forgotten = [message for message in self.kept if message in messages]
        if forgotten:
            self.kept = deque(message for message in self.kept if message not in messages)
        return forgotten

    def clear_outbox(self) -> int:
        """Forget what waits for a connection; return how many messages that was."""
        with self.lock:
            count = len(self.kept)
            self.accepted_bytes -= self.kept_bytes
            self.accepted_messages -= count
            self.kept.clear()
            self.kept_bytes = 0
        return count

    def _may_close(self) -> bool:
        """Also while the server closes: there would be another connection."""
        return self.ending is None and not self.closed_locally

    def _post_close(self) -> None:
        super()._post_close()
        self.on_close()

    # ---- callbacks

    def to_be_heard(self) -> tuple[Ending | None, float | None]:
        loss = self._loss
        return loss if self.ending is None and loss is not None else (self.ending, None)

    def announcing(self) -> None:
        self._announcing = get_ident()

    def announced(self) -> None:
        """What was kept goes out now."""
        with self.lock:
            self._announcing = None
            if not self._holding:
                return
            self.outgoing.extend(self.kept)  # first: has_outgoing() looks without the lock
            self._holding = False
            self.kept.clear()
            self.kept_bytes = 0
        self.post_flush()
        if self.closed_locally:
            self._post_close()  # the Close frame has waited for this

    def callbacks_rest(self) -> None:
        self.on_rest()

    # ---- whoever holds the wire

    def has_outgoing(self) -> bool:
        return (self._holding and bool(self.kept)) or super().has_outgoing()

    def count_again(self) -> None:
        with self.lock:
            if not super().has_outgoing():  # something may be kept already while the server is closing
                self.accepted_bytes = self.framed_bytes + self.kept_bytes
                self.accepted_messages = self.framed_messages + len(self.kept)

    # ---- loop thread

    def opened(self) -> bool:
        with self.lock:
            self._holding = True
            if super().opened():
                return True
            self._holding = False
            return False

    def wants_confirmation(self) -> bool:
        """Whether there are messages of which nobody knows, and no ping that will tell is on its way."""
        return self.framed_messages > self._confirmed and not self._pinged

    def pinged(self, payload: bytes) -> None:
        self._pinged[payload] = self.framed_messages

    def ponged(self, payloads: list[bytes]) -> None:
        """The server has read what was sent before."""
        for payload in payloads:
            self._confirmed = max(self._confirmed, self._pinged.pop(payload, 0))

    def next_session(self, session: LoopSide) -> None:
        """There is a new attempt."""
        with self.lock:
            self.sent_before += self.session.bytes_sent
            self.received_before += self.session.bytes_received
            self.session = session

    def lost(self, ending: Ending) -> bool:
        """A connection has ended, or could not be made: keep what the operating system has not taken. The session has
        closed its writer. Return whether it had been open.
        """
        taken_back = [] if self.writer is None else self.writer.untaken()
        with self.lock:
            was_open = self.was_open
            left = [*taken_back, *self.outgoing, *self.kept]
            dropped = [message for message in left if isinstance(message, Passing)]
            size, count = sum(message[2] for message in dropped), len(dropped)
            self.accepted_bytes -= size
            self.accepted_messages -= count
            self.outgoing, self.taken = [], []
            self.kept, self.kept_bytes = deque(), 0
            self._keep(message for message in left if not isinstance(message, Passing))
            self._count_kept_as_unwritten()
            if not (ending.clean and ending.closed_first == "client"):  # else the server has read all before our Close
                self.at_risk += self.framed_messages - self._confirmed
            self._confirmed = self.framed_messages
            self._forget_connection()
            self._wake()
        if self.sifter is not None and was_open and not self.closed_locally:
            again, failed = self.sifter.lost(lambda: self._error_of(ending))
            self.forget(failed)
            self._send_again(again)
        return was_open

    def _send_again(self, messages: list[Message]) -> None:
        """Have these go out first on the next connection, but for those that wait already."""
        with self.lock:
            waiting = set(self.kept)
            again = [message for message in messages if message not in waiting]
            self.kept.extendleft(reversed(again))
            size, count = sum(message[2] for message in again), len(again)
            self.kept_bytes += size
            self.accepted_bytes += size
            self.accepted_messages += count

    def _count_kept_as_unwritten(self) -> None:
        self.framed_messages = self.accepted_messages - len(self.kept)
        self.framed_bytes = self.accepted_bytes - self.kept_bytes
        self.has_written(self.framed_bytes, self.framed_messages)

    def _forget_connection(self) -> None:
        self.writer = self.reader = None
        self.flush_comes = self.flushes_later = self.reading_stopped = False
        self._pinged.clear()
        self.was_open = self._holding = False
        self.opened_at = None
        self._announcing = None
        if not self.closed_locally:
            self.enter(Phase.CONNECTING)

    def comes_back(self, ending: Ending, seconds: float) -> None:
        """This is what the handlers will hear of."""
        self._loss = (ending, seconds)
        self.next_attempt_at = monotonic() + seconds

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self.kept.clear()
