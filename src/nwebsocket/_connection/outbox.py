"""What a socket that comes back has beside the others: what is sent while there is no connection waits for the next.

    send() ──> kept ──────(open, and its handlers have run)──────> queue ──> writer ──> operating system
                 ^                                                              │
                 └──(the connection is lost)── what the operating system has not taken, to its end

The rules of `bridge.py` and `outgoing.py` hold. Its phase goes back from OPEN to CONNECTING when a connection is lost,
until close(), or an end for good.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock, get_ident
from typing import Any

from .._base.clock import monotonic
from .._base.log import Trace
from .._protocol.payload import Message
from ..exceptions import InvalidStateError, OutboxFull
from ..options import Options
from .bridge import Bridge, LoopSide
from .life import Ending, describe
from .outgoing import Outgoing, size_of
from .phase import CONNECTING, OPEN
from .sender import Sender, WritingSide
from .waiters import Waiters


class NotKept(tuple[Any, ...]):
    """A Message that is not to be kept for another connection."""


class KeepingOutgoing(Outgoing):
    """The messages of one connection after another that go out."""

    keeps = True

    def __init__(self, lock: RLock, waiters: Waiters, write_limit: int, max_outbox: int) -> None:
        super().__init__(lock, waiters, write_limit)
        self._max_outbox = max_outbox
        self.kept: deque[Message] = deque()
        """What waits for the next connection, or for the open handlers of this one."""
        self.kept_bytes = 0
        self.holding = False
        """The connection is open, but its open handlers have not run yet: what they send goes before what is kept."""
        self._confirmed = 0  # messages, counted as framed_messages are, that the server is known to have read
        self._pinged: dict[bytes, int] = {}  # that count as it was when each ping went out
        self.at_risk = 0
        """Messages taken by the operating system before a loss, of which nobody can say whether they arrived."""

    def waits(self) -> bool:
        return (self.holding and bool(self.kept)) or super().waits()

    def over_limit(self) -> bool:
        """Without what is kept: who waited for that in an open handler would wait for himself."""
        return self._over_limit(self.kept_bytes, len(self.kept))

    def count_again(self) -> None:
        with self._lock:
            if not super().waits():  # something may be kept already while the server is closing
                self.accepted_bytes = self.framed_bytes + self.kept_bytes
                self.accepted_messages = self.framed_messages + len(self.kept)

    # ---- who sends; with the lock held

    def keep(self, message: Message) -> None:
        """Accept a message for the next connection. Raises OutboxFull."""
        self._check_outbox(message[2])
        # In a row, with one call at the end: nothing interrupts it.
        self.kept_bytes += message[2]
        self.accepted_bytes += message[2]
        self.accepted_messages += 1
        self.kept.append(message)

    def _check_outbox(self, size: int) -> None:
        if len(self.kept) >= self._max_outbox:
            raise OutboxFull(f"the outbox is full: {len(self.kept):,} messages wait, max_outbox={self._max_outbox:,}")
        if self.kept and self.kept_bytes + size > self._write_limit:
            raise OutboxFull(
                f"the outbox is full: {self.kept_bytes:,} bytes wait, {size:,} more are over "
                f"write_limit={self._write_limit:,}"
            )

    def forget(self, messages: set[Message]) -> None:
        """Let these not wait for another connection any more."""
        forgotten = self._forget_one(*messages) if len(messages) == 1 else self._forget_many(messages)
        self._count_out(forgotten)

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

    def clear_kept(self) -> int:
        """Forget what waits for a connection; return how many messages that was."""
        with self._lock:
            forgotten = list(self.kept)
            self.kept.clear()
            self._count_out(forgotten)
        return len(forgotten)

    def _count_out(self, forgotten: list[Message]) -> None:
        size, count = size_of(forgotten), len(forgotten)
        self.kept_bytes -= size
        self.accepted_bytes -= size
        self.accepted_messages -= count

    # ---- the open handlers

    def hold(self, held: bool) -> None:
        """Whether what is kept waits for the open handlers; with the lock held."""
        self.holding = held

    def release_kept(self) -> bool:
        """The open handlers have run: what was kept goes out now. Return whether it was held; with the lock held."""
        if not self.holding:
            return False
        self.queue.extend(self.kept)  # first: waits() looks without the lock
        self.holding = False
        self.kept.clear()
        self.kept_bytes = 0
        return True

    # ---- loop thread

    def wants_confirmation(self) -> bool:
        """Whether there are messages of which nobody knows, and no ping that will tell is on its way."""
        return self.framed_messages > self._confirmed and not self._pinged

    def pinged(self, payload: bytes) -> None:
        """A ping goes out behind all that is framed."""
        self._pinged[payload] = self.framed_messages

    def ponged(self, payloads: list[bytes]) -> None:
        """The server has read what was sent before these pings."""
        for payload in payloads:
            self._confirmed = max(self._confirmed, self._pinged.pop(payload, 0))

    def take_back(self, untaken: list[Message], *, all_read: bool) -> None:
        """The connection is lost: keep what the operating system has not taken. With the lock held; `all_read`: the
        server has had the rest.
        """
        left = [*untaken, *self.queue, *self.kept]
        dropped = [message for message in left if isinstance(message, NotKept)]
        size, count = size_of(dropped), len(dropped)
        self.accepted_bytes -= size
        self.accepted_messages -= count
        self.queue, self.taken = [], []
        self.kept = deque(message for message in left if not isinstance(message, NotKept))
        self.kept_bytes = size_of(self.kept)
        self.framed_messages = self.accepted_messages - len(self.kept)
        self.framed_bytes = self.accepted_bytes - self.kept_bytes
        self.has_written(self.framed_bytes, self.framed_messages)
        if not all_read:
            self.at_risk += self.framed_messages - self._confirmed
        self._confirmed = self.framed_messages
        self._pinged.clear()
        self.holding = False

    def send_again(self, messages: list[Message]) -> None:
        """Have these go out first on the next connection, but for those that wait already."""
        with self._lock:
            waiting = set(self.kept)
            again = [message for message in messages if message not in waiting]
            self.kept.extendleft(reversed(again))
            size, count = size_of(again), len(again)
            self.kept_bytes += size
            self.accepted_bytes += size
            self.accepted_messages += count

    def after_fork_in_child(self, lock: RLock) -> None:
        super().after_fork_in_child(lock)
        self.kept.clear()


class KeepingSender(Sender):
    """The sending side of a socket that comes back."""

    _outgoing: KeepingOutgoing

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # What send() must not accept any more: a loss came in between, and has settled it.
        self._settled: set[Message] = set()
        self._announcing: int | None = None  # the thread that runs the open handlers

    def _send_through(self, message: Message, writer: WritingSide | None) -> bool:
        # The writer was asked for before all this: that of a connection lost meanwhile refuses, and a new one, which
        # must not be given this before what is kept, comes before its connection is OPEN.
        if self._life.phase is not OPEN or self._settled or self._must_wait():
            return False
        return super()._send_through(message, writer)

    def _must_wait(self) -> bool:
        return self._outgoing.holding and self._announcing != get_ident()

    def _accept(self, message: Message, *, wanting_room: bool = True) -> bool:
        with self._lock:
            if self._life.ending is not None or self._life.closed_locally:
                self._life.require_open("send()")
            if self._settled and message in self._settled:
                return True
            if self._life.phase is OPEN and not self._must_wait():
                return super()._accept(message, wanting_room=wanting_room)
            if isinstance(message, NotKept) and self._life.phase is not OPEN:
                raise self._refusal()
            self._outgoing.keep(message)
        return True

    def _see_off(self, size: int) -> None:
        if not self._must_wait():
            super()._see_off(size)

    def _refusal(self) -> InvalidStateError:
        error = InvalidStateError("there is no connection now, and with keep=False nothing is kept for the next")
        vars(error)["_refused_by"] = id(self)
        return error

    def has_refused(self, error: InvalidStateError) -> bool:
        """Whether send() of this very socket has raised it because the connection of a handler is lost."""
        return vars(error).get("_refused_by") == id(self)

    def settle(self, messages: set[Message]) -> None:
        """Accept these no more: the loss of a connection has settled them; with the lock held."""
        self._settled |= messages

    def forget_settled(self, messages: Sequence[Message]) -> None:
        """send() has returned for these; with the lock held."""
        if self._settled:
            self._settled.difference_update(messages)

    def announce(self, thread: int | None) -> None:
        """The open handlers run on this thread now; None: they do not any more."""
        self._announcing = thread


class OutboxBridge(Bridge):
    """The shared part of one connection after another."""

    comes_back = True
    outgoing: KeepingOutgoing
    sender: KeepingSender

    def __init__(self, options: Options, max_outbox: int) -> None:
        self._max_outbox = max_outbox
        super().__init__(options, Trace())
        # Bytes on the wire, by connections before this one.
        self._sent_before = self._received_before = 0
        # The end of the last connection, and the seconds to the next one, for the handlers.
        self._loss: tuple[Ending, float] | None = None
        self.next_attempt_at: float | None = None  # monotonic clock; None before the first loss
        self._on_close: Callable[[], object]
        self._on_rest: Callable[[], None]
        self._in_handler: Callable[[], bool]

    def _make_sending_side(self, options: Options) -> tuple[KeepingOutgoing, KeepingSender]:
        outgoing = KeepingOutgoing(self.lock, self.waiters, options.write_limit, self._max_outbox)
        sender = KeepingSender(self.lock, self.life, outgoing, self.waiters, self.loop_ident, self.post_flush)
        return outgoing, sender

    def supervise(
        self, *, on_close: Callable[[], object], on_rest: Callable[[], None], in_handler: Callable[[], bool]
    ) -> None:
        """Know whom to tell when close() was called, on any thread, and when no handler is running any more; and who
        knows whether the calling thread runs the handlers. Before the first connection.
        """
        self._on_close, self._on_rest, self._in_handler = on_close, on_rest, in_handler

    # ---- user threads

    def bytes_on_wire(self) -> tuple[int, int]:
        with self.lock:  # or the next session may begin in the middle
            session, sent, received = self.session, self._sent_before, self._received_before
        return sent + session.bytes_sent, received + session.bytes_received

    def check_wait(self) -> None:
        super().check_wait()
        if self.life.phase is CONNECTING and self._in_handler():
            raise RuntimeError("there is no connection, and the next one is not made before this handler has returned")

    def has_refused(self, error: InvalidStateError) -> bool:
        return self.sender.has_refused(error)

    def why_not_open(self) -> str:
        return "" if self._loss is None else f"; the last attempt: {describe(self._loss[0])}"

    def forget(self, messages: set[Message]) -> None:
        with self.lock:
            self.outgoing.forget(messages)

    def post_close(self) -> None:
        super().post_close()
        self._on_close()

    def settle(self, messages: set[Message]) -> None:
        self.sender.settle(messages)

    def forget_settled(self, messages: Sequence[Message]) -> None:
        self.sender.forget_settled(messages)

    # ---- callbacks

    def to_be_heard(self) -> tuple[Ending | None, float | None]:
        loss, ending = self._loss, self.life.ending
        return loss if ending is None and loss is not None else (ending, None)

    def announcing(self) -> None:
        self.sender.announce(get_ident())

    def announced(self) -> None:
        with self.lock:
            self.sender.announce(None)
            if not self.outgoing.release_kept():
                return
        self.post_flush()
        if self.life.closed_locally:
            self.post_close()  # the Close frame has waited for this

    def callbacks_rest(self) -> None:
        self._on_rest()

    # ---- loop thread

    def pinged(self, payload: bytes) -> None:
        self.outgoing.pinged(payload)

    def ponged(self, payloads: list[bytes]) -> None:
        self.outgoing.ponged(payloads)

    def opened(self) -> bool:
        with self.lock:
            self.outgoing.hold(True)
            if super().opened():
                return True
            self.outgoing.hold(False)
            return False

    def next_session(self, session: LoopSide) -> None:
        """There is a new attempt."""
        with self.lock:
            self._sent_before += self.session.bytes_sent
            self._received_before += self.session.bytes_received
            self.session = session

    def lost(self, ending: Ending) -> None:
        """A connection has ended, or could not be made: keep what the operating system has not taken. The session has
        closed its writer.
        """
        writer = self.sender.writer
        untaken = [] if writer is None else writer.untaken()
        with self.lock:
            # After a clean end that we began, the server has read all before our Close frame.
            self.outgoing.take_back(untaken, all_read=ending.clean and ending.closed_first == "client")
            self.outgoing.stop()
            self.reader = None
            self.sender.detach()
            self.sender.announce(None)
            self.inbox.detach()
            self.life.connect_again()
        sifter = self.inbox.sifter
        if sifter is not None and self.life.opened_at is not None and not self.life.closed_locally:
            again, failed = sifter.lost(lambda: self.life.error_of(ending))
            self.forget(failed)
            self.outgoing.send_again(again)

    def comes_back_in(self, seconds: float, ending: Ending) -> None:
        """This is what the handlers will hear of."""
        self._loss = (ending, seconds)
        self.next_attempt_at = monotonic() + seconds
