"""What crosses between the threads, for one connection: its state, messages out, messages and endings in.

    USER THREADS     send() close() --> outgoing, close_request --post(flush)--> take()   LOOP THREAD
                            `---- writer.write(): who calls them may write, too -^
                     recv() wait_*() <-- inbox, state, ending <-- opened() deliver() ended()
                       `---- reader.read(): who waits may read, too, when the loop lends the socket
    CALLBACK THREAD  take_message() <---'

Rules that keep this file right:

1. `lock` guards every attribute unless its comment names the one thread that writes it. It is held for a few lines,
   never while waiting or running code of the user's; `_threads/locks.py` has the rules. Who consumes messages,
   recv() or the handlers, is `consumer`, and nobody else takes any: so none is lost or overtaken when handlers come
   and go.
2. The main thread may be interrupted between any two lines, by a KeyboardInterrupt or by a signal handler that calls
   these very methods. So the lock is re-entrant, each hand-over is one atomic step (an append, a popleft, an
   assignment), and what follows from a hand-over (the wake-up) is repeated when in doubt.
3. Who waits, waits for a lock of its own and looks again at what it waited for when woken. Whoever is about to sleep
   while the socket is lent asks the loop to read it again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from sys import getsizeof, maxsize
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .._base.clock import monotonic
from .._base.log import Trace
from .._protocol.payload import Message
from .._threads import locks, the_loop, waiting
from .._threads.locks import owned
from ..exceptions import ConnectionClosed, ConnectionLost, InvalidStateError, Side, WebSocketError
from ..options import INBOX_BYTES, Options
from . import arrivals
from .arrivals import Arrivals
from .phase import READY_STATES, STEPS, Phase, ReadyState
from .tail import BURST, FIRST_PIECE, Tail

if TYPE_CHECKING:
    from .._threads.loop_thread import Command, LoopThread

MESSAGE_OVERHEAD = 128
"""Bytes of memory that a message waiting to be sent takes beside its payload, roughly."""

_PAUSE = 20e-6
"""Seconds since the last write of a sender after which the next message is written at once."""

_MUCH = 64 * 1024
"""Bytes of a message that the sender writes itself."""

MIN_LOOK = 5.0
"""Seconds; with a `close_timeout` of so much or more the session looks for a close_request once in a close_timeout."""


_OPEN = Phase.OPEN


class Ending(NamedTuple):
    """How a connection ended."""

    code: int
    reason: str
    clean: bool
    closed_first: Side | None
    error: WebSocketError | None  # why it failed; None after a clean close


class WritingSide(Protocol):
    """What the bridge asks of the writer, on any thread; `wire` is its lock."""

    wire: threading.RLock
    any_thread: bool
    stuck: bool
    error: OSError | None

    def write(self) -> bool: ...
    def write_through(self, message: Message) -> bool: ...
    def close_through(self, code: int | None, reason: str) -> bool: ...
    def untaken(self) -> list[Message]: ...


class ReadingSide(Protocol):
    """What the bridge asks of the reader, on any thread."""

    lent: bool

    def read(self, deadline: float | None, ready: Callable[[], bool] | None) -> None: ...
    def watch_tail(self) -> None: ...


class Sifter(arrivals.Sifter, Protocol):
    """What is interested in the messages before anybody else, and in the end."""

    def lost(self, error: Callable[[], ConnectionClosed]) -> tuple[list[Message], set[Message]]: ...
    def ended(self, error: Callable[[], ConnectionClosed]) -> list[Callable[[], None]]: ...
    def after_fork_in_child(self) -> None: ...


class HandlersSide(Protocol):
    """What the bridge asks of the handlers."""

    def hear_on_thread(self) -> bool: ...
    def notify(self) -> None: ...
    def come_and_read(self) -> None: ...


class Asker(Protocol):
    """A thread that waits for the answer to a query, as the bridge sees it."""

    def look_again(self) -> None: ...


class LoopSide(Protocol):
    """What the bridge asks of the session, on the loop thread."""

    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...

    async def flush(self) -> None: ...
    async def start_closing(self) -> None: ...


class IntakeSide(Protocol):
    """What the bridge asks of the session's intake, on the loop thread."""

    async def resume_reading(self) -> None: ...
    async def read_again(self) -> None: ...
    async def sift_again(self) -> None: ...
    def hold_up_handlers(self) -> bool: ...


_NONE_YET: deque[str | bytes] = deque(maxlen=0)
"""The inbox where nothing has ever come: an empty deque of its own takes 760 bytes."""

overfull: set[Bridge] = set()
"""Those to which handlers on the loop thread have sent more than their `write_limit` since somebody looked."""


class Bridge:
    """The shared part of one connection."""

    keeps = False
    """Whether messages that the operating system has not taken are kept for the next connection."""

    seen_to: set[Message]
    """What send() must not accept any more: a loss came in between, and has seen to it. Only if it `keeps`."""

    def __init__(self, options: Options, trace: Trace) -> None:
        self.lock = locks.recursive("lock")
        self.trace = trace
        self.phase = Phase.CONNECTING
        self.ending: Ending | None = None
        self.was_open = False
        self.opened_at: float | None = None  # monotonic clock
        self.ended_at: float | None = None
        self.error_raised = False  # somebody's call has raised what ended the connection
        self.closed_locally = False
        # What close() asked for; set once. All messages in `_outgoing` go out before it.
        self.close_request: tuple[int | None, str] | None = None
        self.close_requested_at = 0.0  # monotonic clock
        # The session finds out by itself, in time for its time-out, that there is a close_request.
        self.loop_looks = options.close_timeout >= MIN_LOOK

        self._loop = the_loop.current()
        self.loop_ident = self._loop.ident
        # Set once, before the connection starts.
        self.session: LoopSide
        # Set when the connection opens.
        self.intake: IntakeSide
        # Set once, before the connection starts.
        self.handlers: HandlersSide
        # None before the connection is open.
        self.writer: WritingSide | None = None
        # None before the socket was first lent.
        self.reader: ReadingSide | None = None
        # Takes messages out before they are delivered; set once, before the connection is made.
        self.sifter: Sifter | None = None

        # -- towards the server
        self.outgoing: list[Message] = []
        # A flush command is on its way to the loop, or its timer will look, or the sender come: they will see whatever
        # is appended until then.
        self.flush_comes = False
        self.tail = Tail()
        # The intake is calling handlers on the loop thread, and what they send is written afterwards; loop thread.
        self.flushes_later = False
        # Payload bytes and messages accepted in all.
        # Changed with the lock held, or the wire: so in one step, with nothing called between reading and writing.
        self.accepted_bytes = self.accepted_messages = 0
        # What the writer has taken and not framed yet; this and the next four belong to whoever holds the wire.
        self.taken: list[Message] = []
        # Payload bytes and messages in all, given to the transport and taken by the operating system.
        self.framed_bytes = self.framed_messages = 0
        self._written_bytes = self._written_messages = 0
        self.written_at = 0.0  # when send() wrote last itself; monotonic clock
        self._write_limit = options.write_limit
        # What is to be called when there is room; see hold_up(). Most connections never have any.
        self._held_up: set[Callable[[], object]] | None = None
        # Those who wait in send() until they are below the limit again.
        self._senders: list[threading.Lock] = []

        # -- from the server
        self.inbox: deque[str | bytes] = _NONE_YET
        # Bytes of memory that have come since the inbox was empty, or was last measured; loop thread. While reading is
        # stopped: those that are in it; the one who consumes.
        self._inbox_bytes = 0
        self._max_queue = options.max_queue
        # The thread whose message handlers are running; None: recv() may take messages.
        self.consumer: int | None = None
        # The intake has stopped reading and wants resume_reading() when there is room.
        self.reading_stopped = False
        self.messages_received = 0  # whoever reads; it only grows
        # What the sifter has not seen yet, and the thread that has it do so.
        self.arrivals: list[Arrivals] = []
        self._sifting: int | None = None
        # The loop has stopped reading because of a slow one.
        self._sifts_late = False
        self.sent_before = self.received_before = 0  # bytes, by connections before this one

        # Those who wait in recv(), and for anything else.
        self.receivers: list[threading.Lock] = []
        self.askers: list[Asker] = []
        self._waiters: list[threading.Lock] = []
        waiting.watch(self)  # last: from now on any thread may ask whether it is_entered()

    @property
    def state(self) -> ReadyState:
        """The phase as users see it."""
        return READY_STATES[self.phase]

    def enter(self, phase: Phase) -> None:
        """Take a step in the connection's life; with the lock held."""
        assert phase in STEPS[self.phase], f"from {self.phase.name} to {phase.name}"
        self.phase = phase

    def start(self, run: Command) -> None:
        """Have `run` connect, and all that follows, on the loop thread; `session` is set."""
        self._loop.spawn(run)
        if not self._loop.alive:  # it has ended in this moment: its hook may not have known of this connection yet
            self.loop_ended(self._loop)

    def post(self, command: Command) -> bool:
        """Have the loop thread await `command`; False if it has ended. It needs no lock: with any held."""
        return self._loop.post(command)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Have the loop thread call `function` after so many seconds, if it still runs then."""
        self._loop.call_later(seconds, function)

    # ---- user threads: towards the server

    @property
    def buffered(self) -> int:
        """Bytes of payload accepted by send() that the operating system has not taken yet."""
        return max(0, self.accepted_bytes - self._written_bytes)

    @property
    def messages_sent(self) -> int:
        """Messages accepted by send()."""
        return self.accepted_messages

    def bytes_on_wire(self) -> tuple[int, int]:
        """Bytes sent and received so far, by this connection and those before."""
        with self.lock:  # or the next session may begin in the middle
            session, sent, received = self.session, self.sent_before, self.received_before
        return sent + session.bytes_sent, received + session.bytes_received

    def over_write_limit(self) -> bool:
        """Whether send() should wait. Each message counts for its overhead, too: a million empty ones are not free."""
        return self._over_limit(0, 0)

    def _over_limit(self, bytes_apart: int, messages_apart: int) -> bool:
        """The same without so much of what waits."""
        messages = self.accepted_messages - self._written_messages - messages_apart
        waiting = self.accepted_bytes - self._written_bytes - bytes_apart
        return waiting + MESSAGE_OVERHEAD * messages >= self._write_limit

    def send(self, message: Message) -> None:
        """Accept one message for sending; wait while the peer leaves more than `write_limit` bytes untaken.

        Raises InvalidStateError, ConnectionClosed. The loop thread never waits: there the intake stops reading.
        """
        try:
            if not self.outgoing and self._send_through(message, self.writer):
                return
            if not self._accept(message):
                self._send_slowly(message)
            elif not self.flush_comes or len(self.outgoing) >= self.tail.piece or message[2] >= _MUCH:
                self._see_off(message[2])
        except WebSocketError:
            raise
        except BaseException:
            # A KeyboardInterrupt may have come after the message was accepted: rule 2.
            self.post_flush()
            raise

    def _send_through(self, message: Message, writer: WritingSide | None) -> bool:
        """Write a message that comes after a pause at once, past the queue, which is empty; False if it is not so.

        This is faster than to wake the loop thread. A message that follows the last one at once is queued, for more to
        come: so a burst costs few system calls.
        """
        if writer is None or not writer.any_thread:
            return False
        if monotonic() - self.written_at < _PAUSE or owned(self.lock):  # then in a signal handler: rule 1
            return False
        done = writer.write_through(message)
        self.written_at = monotonic()
        return done

    def _accept(self, message: Message, *, wanting_room: bool = True) -> bool:
        with self.lock:
            if self.phase is not _OPEN:
                self.require_open("send()")
            if wanting_room and self.over_write_limit():
                if get_ident() != self.loop_ident:
                    return False
                overfull.add(self)  # the loop cannot wait: the connection whose handler this is is not read
            # In a row, with one call at the end: nothing interrupts it.
            self.accepted_bytes += message[2]
            self.accepted_messages += 1
            self.outgoing.append(message)
        return True

    def _send_slowly(self, message: Message) -> None:
        """The same when the write limit is reached: wait for room, if that does not mean to wait for oneself."""
        while True:
            wanting_room = self._wait_for_room()
            if self._accept(message, wanting_room=wanting_room):
                self._see_off(message[2])
                return

    def _see_off(self, size: int) -> None:
        """Have what was accepted written: by the loop thread, or by the sender, as soon as there is much, or when it
        begins to wait for something.
        """
        writer = self.writer
        if writer is None or writer.stuck:
            return  # the session goes on when the operating system takes more, or the next connection is open
        tail = self.tail
        much = len(self.outgoing) >= tail.piece or size >= _MUCH
        if much and (writer.any_thread or get_ident() == self.loop_ident):
            self._write(writer)
            self.written_at = monotonic()
            tail.piece = min(2 * tail.piece, BURST)
        elif not self.flush_comes and not (self.flushes_later and get_ident() == self.loop_ident):
            self.flush_comes = True
            if not self._leave_tail(tail):
                self.post_flush()

    def _leave_tail(self, tail: Tail) -> bool:
        """Leave the calling thread with what it sends now, if it will be in recv() in a moment."""
        reader = self.reader
        if reader is None or not reader.lent or not tail.trusts():
            tail.piece = BURST
            return False
        tail.piece = FIRST_PIECE
        tail.left = True
        reader.watch_tail()
        return reader.lent  # if not any more, the timer may have looked for the last time

    def write_now(self) -> None:
        """Write what was accepted on this thread, which has nothing better to do."""
        if self.tail.left:
            self.tail.left = self.flush_comes = False
        writer = self.writer
        if self.outgoing and writer is not None and writer.any_thread and not writer.stuck:
            self._write(writer)

    def _write(self, writer: WritingSide) -> None:
        if owned(self.lock):  # this is a signal handler: to wait for the wire now would break rule 1
            self.post_flush()
            return
        try:
            done = writer.write()
        except BaseException:
            self.post_flush()
            raise
        if not done:
            self.post_flush()

    def _wait_for_room(self) -> bool:
        """Wait until send() may go on; False if it must go on without room, because waiting would be for itself."""
        try:
            return self._wait_until(self._has_room_to_send, None, self._senders)
        except waiting.WaitsForItself:
            return False

    def _has_room_to_send(self) -> bool:
        return self.phase is not _OPEN or not self.over_write_limit()

    def close(self, code: int | None, reason: str) -> None:
        """Ask for the closing handshake, after the messages accepted so far; a second call does nothing."""
        try:
            self._ask_to_close(code, reason)
        finally:
            self.trace("=", "close() is called")  # last: a log handler of the user's may raise

    def _ask_to_close(self, code: int | None, reason: str) -> None:
        try:
            with self.lock:
                reads = not self.reading_stopped and not (self.reader is not None and self.reader.lent)
                plain = self.phase is _OPEN and reads
                if self._may_close():
                    now, phase = monotonic(), max(self.phase, Phase.CLOSING)
                    # Assignments in a row, which nothing interrupts.
                    self.close_requested_at = now
                    self.close_request = (code, reason)
                    self.closed_locally = True
                    self.phase = phase
                    self._wake()
            if not (plain and self._close_through(code, reason)):
                self._post_close()  # again at a second call: rule 2
        except BaseException:
            self._post_close()
            raise

    def _may_close(self) -> bool:
        """Whether close() has anything to do; with the lock held."""
        return self.phase < Phase.CLOSING

    def _close_through(self, code: int | None, reason: str) -> bool:
        """Write the Close frame here and now; False if the loop must see to it."""
        if not self.loop_looks or owned(self.lock):  # then in a signal handler: rule 1
            return False
        writer = self.writer
        return writer is not None and writer.close_through(code, reason)

    def _post_close(self) -> None:
        if self.closed_locally and self.ending is None:
            self.post(self.session.start_closing)

    def closed_error(self) -> ConnectionClosed:
        """What a method raises that needs an open connection, in CLOSING or CLOSED."""
        self.error_raised = True
        return self._error_of(self.ending)

    def _error_of(self, ending: Ending | None) -> ConnectionClosed:
        if ending is None:
            who = "close() was called" if self.closed_locally else "the server has closed it"
            return ConnectionClosed(
                f"the connection is closing: {who}", closed_first="client" if self.closed_locally else "server"
            )
        if isinstance(ending.error, ConnectionClosed):
            return ending.error.with_traceback(None)
        text = f"the connection is closed: {describe(ending)}"
        error = ConnectionClosed(text, code=ending.code, reason=ending.reason, closed_first=ending.closed_first)
        error.__cause__ = ending.error
        return error

    def opening_error(self) -> WebSocketError:
        """Why the connection, which has ended, was never open."""
        assert self.ending is not None
        assert self.ending.error is not None
        self.error_raised = True
        return self.ending.error.with_traceback(None)

    def require_open(self, what: str) -> None:
        """Raise InvalidStateError or ConnectionClosed unless the connection is open."""
        if self.phase is Phase.CONNECTING:
            raise InvalidStateError(f"{what} needs an open connection, this is CONNECTING: use wait_open() or onopen")
        if self.phase is not _OPEN:
            raise self.closed_error()

    def post_flush(self) -> None:
        """Have the session write what waits, and see to a writer that is stuck or has failed."""
        self.post(self.session.flush)

    # ---- user threads: from the server

    def recv(self, timeout: float | None, taken: Callable[[], bool]) -> str | bytes | None:
        """The next message; None after `timeout` seconds. Who is interrupted in it has taken none.

        Raises closed_error() when there will be no more, RuntimeError when messages are `taken()` by a handler.
        """
        if self.outgoing and not self.inbox:
            self.tail.comes(self.written_at, len(self.outgoing))
            self.write_now()
        deadline = None if timeout is None else monotonic() + timeout
        message: str | bytes | None = None
        woken = True
        try:
            while True:
                if not self.inbox and (reader := self.reader) is not None and reader.lent:
                    reader.read(deadline, None)
                if taken():  # not under the lock: a handler may be a property of the user's
                    raise self._taken_error()
                with self.lock:
                    if self.consumer is None or self.consumer == get_ident():
                        inbox = self.inbox
                        if inbox:
                            # In a row, which nothing interrupts; what interrupts the rest, has it given back.
                            message = inbox[0]
                            del inbox[0]
                            if self.reading_stopped:
                                self._has_taken(message)
                            return message
                        if self.ending is not None:
                            raise self.closed_error()
                    if not woken:
                        return None
                    self.check_wait()
                    waiter = waiting.enlist(self.receivers)
                    if self.inbox and self.consumer is None:  # see wake_receivers()
                        self.receivers.remove(waiter)
                        continue
                    if self.reading_stopped:  # who has emptied the inbox was interrupted before it could look
                        self._resume_reading_if_room()
                woken = self._sleep(waiter, deadline, self.receivers)
        except BaseException:
            if message is not None:
                self._give_back(message)
            raise

    def _give_back(self, message: str | bytes) -> None:
        """recv() is interrupted as it returns this: it is the next one again."""
        with contextlib.nullcontext() if self.writer is None else self.writer.wire:  # who reads may have seen no inbox
            self.inbox.appendleft(message)
            if self.reading_stopped:
                self._inbox_bytes += getsizeof(message)
        self.post(self.intake.sift_again)  # another one may wait for it

    def _taken_error(self) -> RuntimeError:
        if self.inbox:
            self.post(self.intake.read_again)  # a handler was set while we read: it has not heard of this
        return RuntimeError("recv() has nothing to give: this socket's messages go to its message handler")

    def lead(self, deadline: float | None, ready: Callable[[], bool] | None = None) -> None:
        """Read the socket on this thread for a moment, if it is lent and the inbox is empty, until there is a message
        or `ready()` is true.
        """
        reader = self.reader
        if reader is not None and reader.lent and not self.inbox:  # as in recv()
            reader.read(deadline, ready)

    def want_socket_back(self) -> None:
        """Have the loop read, if the socket is lent."""
        if self.reader is not None and self.reader.lent:
            self.post(self.intake.read_again)

    def take_message(self) -> str | bytes | None:
        """The next message; None if there is none, or a signal handler was faster. By the `consumer`."""
        try:
            message = self.inbox.popleft()
        except IndexError:
            return None
        if self.reading_stopped:
            self._has_taken(message)
        return message

    def _has_taken(self, message: str | bytes) -> None:
        self._inbox_bytes -= getsizeof(message)
        self._resume_reading_if_room()

    def begin_consuming(self) -> None:
        """From now on the messages are the calling thread's, for its handlers."""
        with self.lock:
            self.consumer = get_ident()

    def end_consuming(self) -> None:
        """Nobody's handler is running for a message any more: recv() may take the next one."""
        with self.lock:
            self.consumer = None
            waiting.release(self.receivers)

    def _resume_reading_if_room(self) -> None:
        if not self._has_room():
            return
        try:
            self.reading_stopped = False
            self.post(self.intake.resume_reading)
        except BaseException:
            self.reading_stopped = True  # the next one who looks posts again: rule 2
            raise

    @property
    def inbox_length(self) -> int:
        """Messages received that nobody has taken yet."""
        return len(self.inbox)

    def wait(self, ready: Callable[[], object], timeout: float | None) -> bool:
        """Wait until `ready()` is true, which is followed by wake(); False after `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        return self._wait_until(ready, deadline, self._waiters)

    def _wait_until(self, ready: Callable[[], object], deadline: float | None, waiters: list[threading.Lock]) -> bool:
        if self.outgoing:
            self.write_now()
        woken = True
        while not ready():
            if not woken:
                return False
            with self.lock:
                self.check_wait()
                waiter = waiting.enlist(waiters)
            woken = self._sleep_unless(ready, waiter, deadline, waiters)
        return True

    def check_wait(self) -> None:
        """Raise RuntimeError if the calling thread is about to wait for what cannot come before it goes on."""
        if self._sifting == get_ident():
            raise waiting.WaitsForItself("a done callback, or read_reply(), cannot wait for its own socket")

    def forget(self, messages: set[Message]) -> None:
        """Let these not wait for another connection any more."""

    def has_refused(self, error: InvalidStateError) -> bool:
        """Whether send() of this very socket has raised it because the connection of a handler is lost."""
        return False

    def why_not_open(self) -> str:
        """What has kept the connection from opening so far, as the end of a sentence."""
        return ""

    def _sleep(self, waiter: threading.Lock, deadline: float | None, waiters: list[threading.Lock]) -> bool:
        """Wait for somebody to release `waiter`; False at the deadline. It is not among `waiters` any more then."""
        return self._sleep_unless(lambda: False, waiter, deadline, waiters)

    def _sleep_unless(
        self,
        ready: Callable[[], object],
        waiter: threading.Lock,
        deadline: float | None,
        waiters: list[threading.Lock],
    ) -> bool:
        """The same, unless `ready()`: it may have become so before `waiter` was enlisted."""
        woken = False
        try:
            if ready():
                return True
            self.want_socket_back()
            woken = waiting.acquire(waiter, deadline)
        finally:
            if not woken:
                with self.lock:
                    if waiter in waiters:
                        waiters.remove(waiter)
        return woken

    def wake(self) -> None:
        """Have everyone who waits look again, and the loop read."""
        with self.lock:
            self._wake()
            self.want_socket_back()

    def _wake(self) -> None:
        for waiters in (self.receivers, self._waiters, self._senders):
            if waiters:
                waiting.release(waiters)

    # ---- whoever holds the wire

    def take(self) -> list[Message]:
        """Move the messages accepted so far to `taken`, which is empty, and return it."""
        nothing: list[Message] = []
        if self.outgoing:
            with self.lock:
                # Python looks for signals at calls and at jumps back: nothing comes between assignments in a row.
                self.taken = self.outgoing
                self.outgoing = nothing
        return self.taken

    def has_outgoing(self) -> bool:
        """Whether messages wait to be framed."""
        return bool(self.outgoing or self.taken)

    def count_again(self) -> None:
        """Count what was accepted anew, if all of it is framed: an interrupted send() may have left it uncounted."""
        with self.lock:
            if not self.has_outgoing():
                self.accepted_bytes = self.framed_bytes
                self.accepted_messages = self.framed_messages

    def has_written(self, total_bytes: int, total_messages: int) -> None:
        """The operating system has taken so much payload and so many whole messages, since the beginning."""
        self._written_bytes = total_bytes
        self._written_messages = total_messages
        if self._senders:
            with self.lock:
                if self._has_room_to_send():
                    waiting.release(self._senders)
        if self._held_up and not self.over_write_limit():
            self.room_for_others()

    def hold_up(self, resume: Callable[[], object]) -> bool:
        """Whether too much waits to be written; if so, `resume` is called, on any thread, when it does not any more. On
        the loop thread.
        """
        if self._held_up is None:
            self._held_up = set()
        self._held_up.add(resume)  # before looking: the writer writes first, and looks for whom to tell after that
        writer = self.writer
        if self.ending is None and writer is not None and writer.error is None and self.over_write_limit():
            return True
        self._held_up.discard(resume)
        return False

    def room_for_others(self) -> None:
        """Have those go on that hold_up() has held up."""
        with contextlib.suppress(KeyError):
            while self._held_up:
                self._held_up.pop()()

    # ---- what only `outbox.py` does something about: with the wire held, and from callbacks

    def pinged(self, payload: bytes) -> None:
        """A ping goes out behind all that is framed."""

    def ponged(self, payloads: list[bytes]) -> None:
        """These pings are answered."""

    def to_be_heard(self) -> tuple[Ending | None, float | None]:
        """What the error and close handlers hear of: an ending, and in how many seconds there is a new connection."""
        return self.ending, None

    def announcing(self) -> None:
        """The open handlers begin to run, on the calling thread."""

    def announced(self) -> None:
        """The open handlers have run, or there are none."""

    def callbacks_rest(self) -> None:
        """No handler is running any more."""

    # ---- loop thread

    def somebody_waits(self) -> bool:
        """Whether a user's thread waits for something of this connection."""
        return bool(self.receivers or self._waiters or self._senders)

    def leaders(self) -> int:
        """How many threads there are that could read the socket: those that wait for a message or for an answer, and
        that of the handlers.
        """
        return len(self.receivers) + len(self.askers) + self.handlers.hear_on_thread()

    def wake_leader(self) -> None:
        """The socket is lent: have the thread that waits come and read it."""
        self.wake_receivers()
        for asker in self.askers.copy():
            asker.look_again()
        self.handlers.come_and_read()

    def opened(self) -> bool:
        """The handshake is done. False if close() came before."""
        with self.lock:
            if self.phase is not Phase.CONNECTING:
                return False
            self.enter(Phase.OPEN)
            self.was_open = True
            self.opened_at = monotonic()
            self._wake()
            return True

    def deliver(self, messages: list[str | bytes]) -> bool:
        """Messages have come: one wake-up for all of them. Whether somebody has waited for them."""
        inbox = self._own_inbox()
        if not inbox:
            self._inbox_bytes = 0
        self._inbox_bytes += sum(map(getsizeof, messages))
        inbox.extend(messages)
        return self.wake_receivers()

    def _own_inbox(self) -> deque[str | bytes]:
        if self.inbox is _NONE_YET:
            with self.lock:
                if self.inbox is _NONE_YET:
                    self.inbox = deque()
        return self.inbox

    def sift(self, sink: deque[str | bytes] | None = None) -> bool:
        """Have the sifter see what has come, and the rest moved to `sink`, or the inbox, on the calling thread. False
        if another one is at it already: that one goes on with what has come since.
        """
        sink = self._own_inbox() if sink is None else sink
        try:
            while self.arrivals:
                mine = False
                try:
                    with self.lock:
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
                    self.post(self.intake.resume_reading)
        except BaseException:
            self.post(self.intake.sift_again)
            raise
        return True

    def _sift_in_turn(self, sink: deque[str | bytes]) -> None:
        assert self.sifter is not None
        while self.arrivals:
            self.arrivals[0].sift(self.sifter, sink)
            del self.arrivals[:1]  # in a child that the sifter has forked there are none

    def another_sifts(self) -> bool:
        """Whether another thread is at it; then the intake will hear resume_reading()."""
        if self._sifting is None:
            return False
        self._sifts_late = True  # first: who ends it looks at this after that
        self._sifts_late = self._sifting not in (None, get_ident())
        return self._sifts_late

    def wake_receivers(self) -> bool:
        """There is something in the inbox; from whoever reads. Whether somebody has waited for it."""
        if not self.receivers:  # the lock is not needed to look: who enlists looks at the inbox after that
            return False
        with self.lock:
            waiting.release(self.receivers)
        return True

    def stop_reading_if_full(self) -> bool:
        """Whether the inbox is full; if so, the intake will hear resume_reading().

        After close() the count no longer matters and the bytes may double: the server's Close frame stands behind what
        it has sent already, and must be reached even if nobody consumes.
        """
        closing = self.phase in (Phase.CLOSING, Phase.DRAINING)
        most, limit = (maxsize, 2 * INBOX_BYTES) if closing else (self._max_queue, INBOX_BYTES)
        while len(self.inbox) >= most or self._inbox_bytes >= limit:
            # It is measured, by a look at each message, only when what has come may have filled it. So an eighth of the
            # limit must be free for the next ones.
            length = len(self.inbox)
            self._inbox_bytes = self._measure_inbox()
            if length < most and self._inbox_bytes < limit // 8 * 7:
                break
            self.reading_stopped = True  # from now on who consumes counts, and looks whether there is room
            if length == len(self.inbox):
                return True
            self._inbox_bytes = limit  # some have been consumed meanwhile
        self.reading_stopped = False
        return False

    def closing_by_server(self) -> None:
        """The server's Close frame has come, or what no server may send."""
        with self.lock:
            if self.phase is _OPEN:
                self.enter(Phase.CLOSING)
                self._wake()

    def ended(self, ending: Ending, happened: Callable[[], None] = lambda: None) -> None:
        """The connection is over; the only place that sets CLOSED. `happened` is called with the lock held, and what
        its end means to others is told without.
        """
        with self.lock:
            happened()
            self.ending = ending
            self.ended_at = monotonic()
            self.enter(Phase.CLOSED)
            tell = [] if self.sifter is None else self.sifter.ended(self.closed_error)
            self._wake()
        for function in tell:
            function()
        self.room_for_others()

    def _measure_inbox(self) -> int:
        return sum(map(getsizeof, self.inbox.copy()))

    def _has_room(self) -> bool:
        """Whether enough has been consumed to start reading again: half of the bounds."""
        length = len(self.inbox)
        return not length or (length <= self._max_queue // 2 and self._inbox_bytes <= INBOX_BYTES // 2)

    # ---- any thread

    def is_entered(self) -> bool:
        """Whether the caller, a signal handler, has interrupted its own thread while that held a lock of this."""
        writer = self.writer
        return owned(self.lock) or (writer is not None and owned(writer.wire))

    def loop_ended(self, loop: LoopThread) -> None:
        """The loop thread is gone; a session that has not ended by itself never will."""
        if self._loop is loop and self.ending is None:
            error = ConnectionLost("the loop thread has ended")
            self.ended(Ending(1006, "", False, None, error))

    def after_fork_in_child(self) -> None:
        """The parent's connection is not the child's: here it is CLOSED, and the lock may have been held by nobody."""
        self.lock = locks.recursive("lock")
        self.receivers, self._waiters, self._senders = [], [], []
        self.reader = self.writer = None  # the wire, too, may have been held
        self.consumer = self._sifting = None
        self.inbox.clear()
        self.arrivals, self.askers = [], []
        self.outgoing, self.taken = [], []
        if self.ending is None:
            error = ConnectionClosed("the connection belongs to the parent process")
            self.ending = Ending(1006, "", False, None, error)
        self.phase = Phase.CLOSED  # whatever it was
        if self.sifter is not None:
            self.sifter.after_fork_in_child()


def describe(ending: Ending) -> str:
    """An ending in words, for messages and logs."""
    if ending.error is not None:
        return f"{ending.code}, {ending.error}"
    by = f" by the {ending.closed_first}" if ending.closed_first else ""
    return f"{ending.code}{f' {ending.reason!r}' if ending.reason else ''}, closed{by}"
