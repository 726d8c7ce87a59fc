"""send(), on the thread that calls it: a message is written at once, or queued for the next thread that writes.

    message_of() ──> a message, which nothing that the caller changes later changes
    send() ──┬── after a pause ──> writer.write_through()
             └── else ──> outgoing.queue ──> if it is much, the sender writes it; the end of a burst, when it comes
                                             to recv() (`burst_end.py`), or the loop thread does
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from threading import RLock, get_ident
from typing import Any, Protocol

from .._base.clock import monotonic
from .._protocol.payload import BINARY, TEXT, Message
from .._threads import waiting
from .._threads.locks import owned
from ..exceptions import InvalidArgument, WebSocketError
from .burst_end import BurstEnd
from .life import Life
from .outgoing import Outgoing, sent_too_much
from .phase import OPEN
from .waiters import Waiters

_PAUSE = 20e-6
"""Seconds since the last write of a sender after which the next message is written at once."""

_MUCH = 64 * 1024
"""Bytes of a message that the sender writes itself."""


_NAMES_IN_FORMAT = re.compile(":[^:]*:")
"""Those of the fields of a structured array (PEP 3118)."""

_ADDRESSES = re.compile(r"[O&PXz]|Z(?![fdg])")
"""Python objects, pointers to data and to functions, C strings of bytes and, but for complex numbers, of characters."""


class WritingSide(Protocol):
    """What senders ask of the writer, on any thread; `wire` is its lock."""

    wire: threading.RLock
    any_thread: bool
    stuck: bool
    error: OSError | None

    def write(self) -> bool: ...
    def write_through(self, message: Message) -> bool: ...
    def close_through(self, code: int | None, reason: str) -> bool: ...
    def untaken(self) -> list[Message]: ...


class BurstEndWatcher(Protocol):
    """Who lends the socket, and looks after the ends of bursts meanwhile."""

    lent: bool

    def watch_burst_end(self) -> None: ...


class Sender:
    """The sending side of one socket.

    ``lock``        the connection's, which guards the queue
    ``loop_ident``  the loop thread, which never waits
    ``post_flush``  has the session write what waits, and see to a writer that is stuck or has failed
    """

    def __init__(
        self,
        lock: RLock,
        life: Life,
        outgoing: Outgoing,
        waiters: Waiters,
        loop_ident: int | None,
        post_flush: Callable[[], object],
    ) -> None:
        self._lock = lock
        self._life = life
        self._outgoing = outgoing
        self._waiters = waiters
        self._loop_ident = loop_ident
        self._post_flush = post_flush
        # None before the connection is open, and when it is lost.
        self.writer: WritingSide | None = None
        # None before the socket was first lent.
        self._lender: BurstEndWatcher | None = None
        # A flush command is on its way to the loop, or its timer will look, or the sender come, or the intake, when
        # handlers on the loop have returned: they will see whatever is queued until then.
        self._flush_comes = False
        self._burst_end = BurstEnd()
        self._written_at = 0.0  # when send() wrote last itself; monotonic clock

    def attach(self, writer: WritingSide) -> None:
        """A connection is open."""
        self.writer = writer

    def lend(self, lender: BurstEndWatcher) -> None:
        """From now on the socket may be lent."""
        self._lender = lender

    def detach(self) -> None:
        """The connection is lost; on the loop thread."""
        self.writer = self._lender = None
        self._flush_comes = False

    def send(self, message: Message) -> None:
        """Accept one message for sending; wait while the peer leaves more than `write_limit` bytes untaken.

        Raises InvalidStateError, ConnectionClosed. The loop thread never waits: there the intake stops reading.
        """
        try:
            if not self._outgoing.queue and self._send_through(message, self.writer):
                return
            if not self._accept(message):
                self._send_slowly(message)
            elif not self._flush_comes or len(self._outgoing.queue) >= self._burst_end.piece or message[2] >= _MUCH:
                self._see_off(message[2])
        except WebSocketError:
            raise
        except BaseException:
            # A KeyboardInterrupt may have come after the message was accepted.
            self._post_flush()
            raise

    def send_by(self, send: Callable[[Message], None]) -> None:
        """Have ``send`` called in the place of send(), which it calls."""
        self.send = send  # type: ignore[method-assign, assignment]

    def _send_through(self, message: Message, writer: WritingSide | None) -> bool:
        """Write a message that comes after a pause at once, past the queue, which is empty; False if it is not so.

        This is faster than to wake the loop thread. A message that follows the last one at once is queued, for more to
        come: so a burst costs few system calls.
        """
        if writer is None or not writer.any_thread:
            return False
        if monotonic() - self._written_at < _PAUSE or owned(self._lock):  # then in a signal handler
            return False
        done = writer.write_through(message)
        self._written_at = monotonic()
        return done

    def speak_at_once(self) -> None:
        """What is sent next may be the answer to what has come: it goes out at once."""
        self._written_at = 0.0

    def _accept(self, message: Message, *, wanting_room: bool = True) -> bool:
        """Queue a message; False if there is no room."""
        with self._lock:
            if self._life.phase is not OPEN:
                self._life.require_open("send()")
            if wanting_room and self._outgoing.over_limit():
                if get_ident() != self._loop_ident:
                    return False
                sent_too_much.add(self._outgoing)  # the loop cannot wait: the connection of that handler is not read
            self._outgoing.accept(message)
        return True

    def _send_slowly(self, message: Message) -> None:
        """The same when the write limit is reached: wait for room, if that does not mean to wait for oneself."""
        while True:
            wanting_room = self._wait_for_room()
            if self._accept(message, wanting_room=wanting_room):
                self._see_off(message[2])
                return

    def _wait_for_room(self) -> bool:
        """Wait until send() may go on; False if it must go on without room, because waiting would be for itself."""
        try:
            return self._waiters.wait_until(self._has_room, None, self._waiters.senders)
        except waiting.WaitsForItself:
            return False

    def _has_room(self) -> bool:
        return self._life.phase is not OPEN or not self._outgoing.over_limit()

    def _see_off(self, size: int) -> None:
        """Have what was accepted written: by the loop thread, or by the sender, as soon as there is much, or when it
        begins to wait for something.
        """
        writer = self.writer
        if writer is None or writer.stuck:
            return  # the session goes on when the operating system takes more, or the next connection is open
        much = len(self._outgoing.queue) >= self._burst_end.piece or size >= _MUCH
        if much and (writer.any_thread or get_ident() == self._loop_ident):
            self._write(writer)
            self._written_at = monotonic()
            self._burst_end.grow()
        elif not self._flush_comes:
            self._flush_comes = True
            if not self._leave_burst_end():
                self._post_flush()

    def _leave_burst_end(self) -> bool:
        """Leave the calling thread with what it sends now, if it will be in recv() in a moment."""
        lender = self._lender
        if lender is None or not lender.lent:
            self._burst_end.is_not_left()
            return False
        if not self._burst_end.leave():
            return False
        lender.watch_burst_end()
        return lender.lent  # if not any more, the timer may have looked for the last time

    def comes_to_receive(self) -> None:
        """The calling thread begins to wait for a message: it writes what it has sent."""
        self._burst_end.comes(self._written_at, len(self._outgoing.queue))
        self.write_now()

    def write_now(self) -> None:
        """Write what was accepted on this thread, which has nothing better to do."""
        if self._burst_end.left:
            self._burst_end.take()
            self._flush_comes = False
        writer = self.writer
        if self._outgoing.queue and writer is not None and writer.any_thread and not writer.stuck:
            self._write(writer)

    def _write(self, writer: WritingSide) -> None:
        if owned(self._lock):  # this is a signal handler: to wait for the wire now could be to wait for itself
            self._post_flush()
            return
        try:
            done = writer.write()
        except MemoryError:
            done = False  # it is all accepted: the loop tries again, and says why if it must give up
        except BaseException:
            self._post_flush()
            raise
        if not done:
            self._post_flush()

    # ---- loop thread

    def look_after_burst_end(self) -> None:
        """The end of a burst that its sender should have written by now is to be written."""
        if self._outgoing.queue:
            self._burst_end.found(self._written_at)

    def flush_comes(self) -> None:
        """What is queued from now on is written when flush_has_come() has been called."""
        self._flush_comes = True

    def flush_has_come(self) -> None:
        """The session looks at what waits: what is queued from now on needs another flush."""
        self._flush_comes = False

    def after_fork_in_child(self, lock: RLock) -> None:
        """The connection is the parent's; the wire may have been held."""
        self._lock = lock
        self.writer = self._lender = None


def message_of(data: Any) -> Message:
    """The message that `data` stands for: fragmented if it is a list, a tuple or an iterator.

    Raises TypeError, InvalidArgument (an empty one of these) or UnicodeEncodeError (a lone surrogate).
    """
    if isinstance(data, str):
        text = data.encode()
        return TEXT, text, len(text)
    if type(data) is bytes:
        return BINARY, data, len(data)
    if _is_buffer(data):
        payload = _copied(data)
        return BINARY, payload, len(payload)
    if isinstance(data, (list, tuple, Iterator)):
        return _fragmented(data)
    raise TypeError(
        f"send() takes str, bytes-like, or a list, a tuple or an iterator of these, not {type(data).__name__}; "
        f"send {_instead(data)}"
    )


def _instead(data: Any) -> str:
    """What a user may have meant, as an expression."""
    if hasattr(data, "to_json"):
        return "its .to_json(...)"  # of pandas, polars and others
    if hasattr(data, "tobytes") and not isinstance(data, memoryview):
        return "its .tobytes(), or json.dumps(...) of its .item()"  # a NumPy scalar
    try:
        memoryview(data).release()
    except ValueError as error:  # released, or closed
        return f"it before it is of no use any more ({error})"
    except (TypeError, BufferError):
        return "json.dumps(...) of it"
    return "bytes(...) of it"  # a ctypes.Structure


def _fragmented(items: Iterable[Any]) -> Message:
    opcode, fragments = 0, []
    for item in items:
        opcode_here, fragment = _fragment(item)
        if opcode not in (0, opcode_here):
            raise TypeError("the fragments of one message must be all text or all binary")
        opcode = opcode_here
        fragments.append(fragment)
    if not fragments:
        raise InvalidArgument("an empty iterable does not say whether the message is text or binary: send '' or b''")
    return opcode, tuple(fragments), sum(map(len, fragments))


def _fragment(item: Any) -> tuple[int, bytes]:
    if isinstance(item, str):
        return TEXT, item.encode()
    if not _is_buffer(item):
        raise TypeError(f"a fragment must be str, bytes or a buffer, not {type(item).__name__}")
    return BINARY, item if type(item) is bytes else _copied(item)


def _is_buffer(data: Any) -> bool:
    try:
        with memoryview(data) as view:
            return view.ndim > 0  # a single number of NumPy's has a buffer, too, and nobody means its bytes
    except (TypeError, BufferError, ValueError):
        return False


def _copied(data: Any) -> bytes:
    """The bytes of a buffer; of a view only its window, of a non-contiguous one its items in C order."""
    with memoryview(data) as view:
        if _ADDRESSES.search(_NAMES_IN_FORMAT.sub("", view.format)):
            raise TypeError("send() cannot send an array of Python objects or of pointers: its buffer holds addresses")
        return view.tobytes()
