"""What goes out on one connection: messages that send() has accepted, their frames, and how far all that has come.

    send() ──accept()──> queue ──take()──> taken ──writer──> frames: `batch` ──transport──> operating system
                accepted_...                      framed_...                 written_...

1. `queue` and what is accepted are changed with the lock held or the wire; all behind `taken` belongs to who holds the
   wire.
2. Each step is a row of assignments, which nothing interrupts: a message waits, or it is framed; never both, never
   neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from threading import RLock
from typing import TYPE_CHECKING

from .._protocol.payload import Buffer, Message

if TYPE_CHECKING:
    from .waiters import Waiters

MESSAGE_OVERHEAD = 128
"""Bytes of memory that a message waiting to be sent takes beside its payload, roughly."""

_SMALL = 1024
"""Bytes of a batch that may stay in memory when it is written."""

InBatch = list[tuple[Message, int]]
"""The messages of a batch, with the sizes of their frames."""

NOTHING_KEPT: InBatch = []
"""That of who does not keep what is not written."""

sent_too_much: set[Outgoing] = set()
"""Those to which handlers on the loop thread have sent more than their `write_limit` since the intake looked last."""


class Outgoing:
    """The messages of one connection, or of one after another, that go out.

    ``lock``         the connection's
    ``waiters``      of which the senders are woken when there is room
    ``write_limit``  bytes that may wait to be written, before send() waits
    """

    keeps = False
    """Whether messages that the operating system has not taken are kept for the next connection."""

    def __init__(self, lock: RLock, waiters: Waiters, write_limit: int) -> None:
        self._lock = lock
        self._waiters = waiters
        self._write_limit = write_limit
        self.queue: list[Message] = []
        """Accepted, and seen by nobody yet."""
        self.taken: list[Message] = []
        """What the writer has taken and not framed yet."""
        # Payload bytes and messages in all: accepted, framed, and taken by the operating system.
        self.accepted_bytes = self.accepted_messages = 0
        self.framed_bytes = self.framed_messages = 0
        self._written_bytes = self._written_messages = 0
        self.batch: Buffer = b""
        """The frames that were made last, as long as they are not written."""
        self.number = 0
        """Of the batch: so many have been made for this connection."""
        # Its messages with the sizes of their frames, only if it `keeps`; and what had been framed before it.
        self._in_batch = NOTHING_KEPT
        self._bytes_before = self._messages_before = 0
        self.stopped = False
        """Nothing is written any more, on this connection."""
        # What is to be called when there is room; see hold_up(). Most connections never have any.
        self._held_up: set[Callable[[], object]] | None = None

    # ---- the thread that sends

    @property
    def buffered(self) -> int:
        """Bytes of payload accepted that the operating system has not taken yet."""
        return max(0, self.accepted_bytes - self._written_bytes)

    def waits(self) -> bool:
        """Whether messages wait to be framed."""
        return bool(self.queue or self.taken)

    def over_limit(self) -> bool:
        """Whether send() should wait. Each message counts for its overhead, too: a million empty ones are not free."""
        return self._over_limit(0, 0)

    def _over_limit(self, bytes_apart: int, messages_apart: int) -> bool:
        """The same without so much of what waits."""
        messages = self.accepted_messages - self._written_messages - messages_apart
        waiting = self.accepted_bytes - self._written_bytes - bytes_apart
        return waiting + MESSAGE_OVERHEAD * messages >= self._write_limit

    def accept(self, message: Message) -> None:
        """Queue a message; with the lock held."""
        # In a row, with one call at the end: nothing interrupts it.
        self.accepted_bytes += message[2]
        self.accepted_messages += 1
        self.queue.append(message)

    # ---- who holds the wire

    def take(self) -> list[Message]:
        """Return `taken`, which has all that is accepted so far if it was empty."""
        nothing: list[Message] = []
        if self.queue and not self.taken:
            with self._lock:
                # Python looks for signals at calls and at jumps back: nothing comes between assignments in a row.
                self.taken = self.queue
                self.queue = nothing
        return self.taken

    def has_framed(
        self, frames: Buffer, count: int, size: int, in_batch: InBatch = NOTHING_KEPT, *, new: bool = False
    ) -> None:
        """`frames` are those of the first `count` messages taken, of `size` bytes; the last batch has been written.
        ``new``: of messages instead that were not accepted before, and are by this; then none is taken.
        """
        framed_bytes, framed_messages = self.framed_bytes, self.framed_messages
        self.batch = frames
        self.number += 1
        if new:
            self.accepted_bytes += size
            self.accepted_messages += count
        del self.taken[:count]
        self._in_batch = in_batch
        self._bytes_before = framed_bytes
        self._messages_before = framed_messages
        self.framed_bytes = framed_bytes + size
        self.framed_messages = framed_messages + count

    def has_written_all(self) -> None:
        """The operating system has taken all that is framed."""
        self._written_bytes = self.framed_bytes
        self._written_messages = self.framed_messages
        if len(self.batch) > _SMALL and not self.keeps:
            # In a row, which nothing interrupts: of an empty batch nothing is unsent.
            self.batch = b""
            self._bytes_before = self.framed_bytes
            self._messages_before = self.framed_messages
        if self._waiters.senders or self._held_up:
            self._tell_of_room()

    def has_written_of_batch(self, sent: int) -> None:
        """The operating system has taken so many bytes of the batch: bufferedAmount falls by them; framing counts for
        nothing in the end.
        """
        self.has_written(min(self._bytes_before + sent, self.framed_bytes), self._messages_before)

    def has_written(self, total_bytes: int, total_messages: int) -> None:
        """The operating system has taken so much payload and so many whole messages, since the beginning."""
        self._written_bytes = total_bytes
        self._written_messages = total_messages
        if self._waiters.senders or self._held_up:
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        if self.over_limit():
            return
        with self._lock:
            self._waiters.release_senders()
        self._let_go_on()

    def untaken(self, taken: int) -> list[Message]:
        """The messages of which the operating system has not taken all, in order; of the batch, `taken` bytes."""
        end, left = 0, []
        for message, size in self._in_batch:
            end += size
            if end > taken:
                left.append(message)
        return [*left, *self.taken]

    def count_again(self) -> None:
        """Count what was accepted anew, if all of it is framed: an interrupted send() may have left it uncounted."""
        with self._lock:
            if not self.waits():
                self.accepted_bytes = self.framed_bytes
                self.accepted_messages = self.framed_messages

    # ---- others who send too much

    def hold_up(self, resume: Callable[[], object]) -> bool:
        """Whether too much waits to be written; if so, `resume` is called, on any thread, when it does not any more. On
        the loop thread.
        """
        if self.stopped:
            return False
        if self._held_up is None:
            self._held_up = set()
        self._held_up.add(resume)  # before looking: the writer writes first, and looks for whom to tell after that
        if self.over_limit():
            return True
        self._held_up.discard(resume)
        return False

    def begin(self) -> None:
        """A connection is open; on the loop thread."""
        self.stopped = False
        self.batch = b""
        self.number = 0
        self._in_batch = NOTHING_KEPT
        self._bytes_before = self.framed_bytes
        self._messages_before = self.framed_messages

    def stop(self) -> None:
        """Nothing is written any more; on the loop thread."""
        self.stopped = True
        if self._held_up:
            self._let_go_on()

    def _let_go_on(self) -> None:
        """Have those go on that hold_up() has held up."""
        while self._held_up:
            with contextlib.suppress(KeyError):
                self._held_up.pop()()

    def after_fork_in_child(self, lock: RLock) -> None:
        """What goes out is the parent's."""
        self._lock = lock
        self.queue, self.taken = [], []


def size_of(messages: Sequence[Message]) -> int:
    """Bytes of their payload."""
    return sum(message[2] for message in messages)
