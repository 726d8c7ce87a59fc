"""What crosses between the threads, for one connection: its state, messages out, messages and endings in.

    USER THREADS     send() close() --> outgoing, close_request --post(flush)--> take()   LOOP THREAD
                     recv() wait_*() <-- inbox, state, ending <-- opened() deliver() ended()
    CALLBACK THREAD  take_message() <---'

Rules that keep this file right:

1. `lock` guards every attribute unless its comment names the one thread that writes it. It is held for a few lines,
   never while waiting or running code of the user's.
2. The main thread may be interrupted between any two lines, by a KeyboardInterrupt or by a signal handler that calls
   these very methods. So the lock is re-entrant, each hand-over is one atomic step (an append, a popleft, an
   assignment), and what follows from a hand-over (the wake-up) is repeated when in doubt.
3. Who waits, waits for a lock of its own in `_waiters` and looks again at what it waited for when woken.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol

from . import _loop_thread
from ._options import INBOX_BYTES, Options
from .exceptions import ConnectionClosed, ConnectionLost, InvalidStateError, Side, WebSocketError

_SLICE = 0.05 if sys.platform == "win32" else None  # seconds; there a lock wait cannot be interrupted by Ctrl-C


MESSAGE_OVERHEAD = 128
"""Bytes of memory that a message waiting to be sent takes beside its payload, roughly."""


_MOMENT = 0.05
"""Seconds to wait before looking whether this is a wait that could never end."""


class WaitsForItself(RuntimeError):
    """The wait would be for what the waiting thread itself was interrupted in."""


class ReadyState(IntEnum):
    """The states of a connection; it only moves forward (WHATWG WebSockets section 3.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Outgoing(NamedTuple):
    """A message on its way to the loop."""

    parts: tuple[str | bytes, ...]  # one fragment each; whole messages have one
    size: int  # bytes of payload, text as UTF-8


class Ending(NamedTuple):
    """How a connection ended."""

    code: int
    reason: str
    clean: bool
    closed_first: Side | None
    error: WebSocketError | None  # why it failed; None after a clean close


class LoopSide(Protocol):
    """What the bridge asks of the session, on the loop thread."""

    async def run(self) -> None: ...
    async def flush(self) -> None: ...
    async def resume_reading(self) -> None: ...
    async def start_closing(self) -> None: ...


_bridges: weakref.WeakValueDictionary[int, Bridge] = weakref.WeakValueDictionary()


class Bridge:
    """The shared part of one connection."""

    def __init__(self, options: Options) -> None:
        self.lock = threading.RLock()
        _bridges[id(self)] = self
        self.state = ReadyState.CONNECTING
        self.ending: Ending | None = None
        self.was_open = False
        self.error_raised = False  # somebody's call has raised what ended the connection
        self.closed_locally = False
        # What close() asked for; set once. All messages in `_outgoing` go out before it.
        self.close_request: tuple[int | None, str] | None = None

        self._loop = _loop_thread.current()
        # Set once, before the connection starts.
        self.session: LoopSide

        # -- towards the server
        self._outgoing: deque[Outgoing] = deque()
        # A flush command is on its way to the loop: it will see whatever is appended until it calls take().
        self._flush_posted = False
        # Payload bytes in `_outgoing`. A signal handler that sends in the middle of send() may make it too low, until
        # the next take() puts it right.
        self._outgoing_bytes = 0
        self._taken_bytes = self._taken_messages = 0  # by the loop, in all; loop thread
        self._written_bytes = self._written_messages = 0  # to the operating system, in all; loop thread
        self._write_limit = options.write_limit

        # -- from the server
        self._inbox: deque[str | bytes] = deque()
        self._inbox_in = 0  # bytes of memory that went in; loop thread
        self._inbox_out = 0  # bytes of memory that came out; whoever consumes, see take_message()
        self._max_queue = options.max_queue
        # The session has stopped reading and wants resume_reading() when there is room.
        self.reading_stopped = False
        self.messages_received = 0  # loop thread

        self._waiters: list[threading.Lock] = []

    def start(self) -> None:
        """Begin to connect; `session` is set."""
        self._loop.spawn(self.session.run)

    def post(self, command: _loop_thread.Command) -> None:
        """Have the loop thread await `command`."""
        self._loop.post(command)

    # ---- user threads: towards the server

    @property
    def buffered(self) -> int:
        """Bytes of payload accepted by send() that the operating system has not taken yet."""
        return self._taken_bytes + self._outgoing_bytes - self._written_bytes

    @property
    def messages_sent(self) -> int:
        """Messages accepted by send()."""
        return self._taken_messages + len(self._outgoing)

    def over_write_limit(self) -> bool:
        """Whether send() should wait. Each message counts for its overhead, too: a million empty ones are not free."""
        waiting = self.messages_sent - self._written_messages
        return self.buffered + MESSAGE_OVERHEAD * waiting >= self._write_limit

    def send(self, parts: tuple[str | bytes, ...], size: int) -> None:
        """Accept one message for sending; wait while the peer leaves more than `write_limit` bytes untaken.

        Raises InvalidStateError, ConnectionClosed. The loop thread never waits: there the session stops reading.
        """
        may_wait = not self._loop.is_current()
        try:
            while not self._accept(parts, size, may_wait):
                may_wait = self._wait_for_room()
        except WebSocketError:
            raise
        except BaseException:
            # A KeyboardInterrupt may have come after the message was accepted: rule 2.
            self._post_flush()
            raise

    def _wait_for_room(self) -> bool:
        """Wait until send() may go on; False if it must go on without room, because waiting would be for itself."""
        try:
            return self.wait(lambda: self.state is not ReadyState.OPEN or not self.over_write_limit(), None)
        except WaitsForItself:
            return False

    def _accept(self, parts: tuple[str | bytes, ...], size: int, may_wait: bool) -> bool:
        with self.lock:
            self.require_open("send()")
            if may_wait and self.over_write_limit():
                return False
            self._outgoing.append(Outgoing(parts, size))
            self._outgoing_bytes += size
            posted, self._flush_posted = self._flush_posted, True
        if not posted:
            self._post_flush()
        return True

    def close(self, code: int | None, reason: str) -> None:
        """Ask for the closing handshake, after the messages accepted so far; a second call does nothing."""
        try:
            with self.lock:
                if self.state >= ReadyState.CLOSING:
                    return
                self.close_request = (code, reason)
                self.closed_locally = True
                self.state = ReadyState.CLOSING
                self._wake()
        finally:
            if self.closed_locally and self.ending is None:
                self.post(self.session.start_closing)  # again at a second call: rule 2

    def closed_error(self) -> ConnectionClosed:
        """What a method raises that needs an open connection, in CLOSING or CLOSED."""
        ending = self.ending
        self.error_raised = True
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
        if self.state is ReadyState.CONNECTING:
            raise InvalidStateError(f"{what} needs an open connection, this is CONNECTING: use wait_open() or onopen")
        if self.state is not ReadyState.OPEN:
            raise self.closed_error()

    def _post_flush(self) -> None:
        self.post(self.session.flush)

    # ---- user threads: from the server

    def recv(self, timeout: float | None, taken: Callable[[], bool]) -> str | bytes | None:
        """The next message; None after `timeout` seconds.

        Raises closed_error() when there will be no more, RuntimeError when messages are `taken()` by a handler.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self.lock:
                if taken():
                    raise RuntimeError("recv() has nothing to give: this socket's messages go to its message handler")
                if self._inbox:
                    return self.take_message()
                if self.ending is not None:
                    raise self.closed_error()
            if not self._wait_until(lambda: self._inbox or self.ending is not None or taken(), deadline):
                return None

    def take_message(self) -> str | bytes:
        """The next message, which must be there. By recv() with the lock held, or by the callbacks: never by both."""
        message = self._inbox.popleft()
        self._inbox_out += sys.getsizeof(message)
        if self.reading_stopped and self._has_room():
            self.reading_stopped = False
            self.post(self.session.resume_reading)
        return message

    @property
    def inbox_length(self) -> int:
        """Messages received that nobody has taken yet."""
        return len(self._inbox)

    def wait(self, ready: Callable[[], object], timeout: float | None) -> bool:
        """Wait until `ready()`, called with the lock held, is true; False after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._wait_until(ready, deadline)

    def _wait_until(self, ready: Callable[[], object], deadline: float | None) -> bool:
        waiter = threading.Lock()
        while True:
            with self.lock:
                if ready():
                    return True
                waiter.acquire(blocking=False)
                self._waiters.append(waiter)
            try:
                if not _acquire(waiter, deadline):
                    with self.lock:
                        return bool(ready())
            finally:
                with self.lock:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)

    def wake(self) -> None:
        """Have everyone who waits look again."""
        with self.lock:
            self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.pop()
            if waiter.locked():
                waiter.release()

    # ---- loop thread

    def take(self) -> list[Outgoing]:
        """The messages accepted since the last call, in order."""
        with self.lock:
            self._flush_posted = False
            if not self._outgoing:
                return []
            taken = list(self._outgoing)
            self._taken_bytes += sum(message.size for message in taken)
            self._taken_messages += len(taken)
            self._outgoing.clear()
            self._outgoing_bytes = 0
            return taken

    def has_written(self, total_bytes: int, total_messages: int) -> None:
        """The operating system has taken so much payload and so many whole messages, since the beginning."""
        self._written_bytes, self._written_messages = total_bytes, total_messages
        if self._waiters:
            self.wake()

    def has_outgoing(self) -> bool:
        """Whether messages wait for take()."""
        return bool(self._outgoing)

    def somebody_waits(self) -> bool:
        """Whether a user's thread waits for something of this connection."""
        return bool(self._waiters)

    def opened(self) -> bool:
        """The handshake is done. False if close() came before."""
        with self.lock:
            if self.state is not ReadyState.CONNECTING:
                return False
            self.state = ReadyState.OPEN
            self.was_open = True
            self._wake()
            return True

    def deliver(self, messages: list[str | bytes]) -> None:
        """Messages have come: one wake-up for all of them."""
        self.messages_received += len(messages)
        with self.lock:
            if not self._inbox:
                self._inbox_out = self._inbox_in  # puts right what a recv() that was interrupted left uncounted
            self._inbox_in += sum(map(sys.getsizeof, messages))
            self._inbox.extend(messages)
            self._wake()

    def stop_reading_if_full(self) -> bool:
        """Whether the inbox is full; if so, the session will hear resume_reading()."""
        if self._has_space():
            return False
        with self.lock:
            self.reading_stopped = True  # before looking again: the callbacks consume without the lock, and look after
            if self._has_space():
                self.reading_stopped = False
            return self.reading_stopped

    def closing_by_server(self) -> None:
        """The server's Close frame has come."""
        with self.lock:
            if self.state is ReadyState.OPEN:
                self.state = ReadyState.CLOSING
                self._wake()

    def ended(self, ending: Ending) -> None:
        """The connection is over; the only place that sets CLOSED."""
        with self.lock:
            self.ending = ending
            self.state = ReadyState.CLOSED
            self._wake()

    def _has_space(self) -> bool:
        """Whether one more read is welcome.

        After close() the count no longer matters and the bytes may double: the server's Close frame stands behind what
        it has sent already, and must be reached even if nobody consumes.
        """
        waiting = self._inbox_in - self._inbox_out
        if self.state is ReadyState.CLOSING:
            return waiting < 2 * INBOX_BYTES
        return len(self._inbox) < self._max_queue and waiting < INBOX_BYTES

    def _has_room(self) -> bool:
        """Whether enough has been consumed to start reading again: half of the bounds."""
        return len(self._inbox) <= self._max_queue // 2 and self._inbox_in - self._inbox_out <= INBOX_BYTES // 2

    # ---- any thread

    def loop_ended(self, loop: _loop_thread.LoopThread) -> None:
        """The loop thread is gone; a session that has not ended by itself never will."""
        if self._loop is loop and self.ending is None:
            error = ConnectionLost("the loop thread has ended")
            self.ended(Ending(1006, "", False, None, error))

    def after_fork_in_child(self) -> None:
        """The parent's connection is not the child's: here it is CLOSED, and the lock may have been held by nobody."""
        self.lock = threading.RLock()
        self._waiters = []
        self._inbox.clear()
        self._outgoing.clear()
        if self.ending is None:
            error = ConnectionClosed("the connection belongs to the parent process")
            self.ending = Ending(1006, "", False, None, error)
        self.state = ReadyState.CLOSED


def describe(ending: Ending) -> str:
    """An ending in words, for messages and logs."""
    if ending.error is not None:
        return f"{ending.code}, {ending.error}"
    by = f" by the {ending.closed_first}" if ending.closed_first else ""
    return f"{ending.code}{f' {ending.reason!r}' if ending.reason else ''}, closed{by}"


def _acquire(waiter: threading.Lock, deadline: float | None) -> bool:
    """Acquire `waiter`, which somebody else will release; False at `deadline`. Ctrl-C interrupts it.

    Raises WaitsForItself, after a moment.
    """
    limit: float | None = _MOMENT
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return waiter.acquire(blocking=False)
        timeout = min((t for t in (left, limit) if t is not None), default=-1.0)
        if waiter.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            return True
        _check_locks()
        limit = _SLICE


def _check_locks() -> None:
    """Raise WaitsForItself if this thread, about to wait, holds a lock that the loop thread needs to go on.

    No code of this library waits while it holds one, but a signal handler or a finalizer of the user's may interrupt it
    there and wait for a socket, this one or another.
    """
    bridges = [reference() for reference in _bridges.valuerefs()]
    if _loop_thread.is_posting() or any(bridge is not None and _owned(bridge.lock) for bridge in bridges):
        raise WaitsForItself("a signal handler or a finalizer that interrupted a call of a socket cannot wait for one")


def _owned(lock: threading.RLock) -> bool:
    return lock._is_owned()  # type: ignore[attr-defined, no-any-return]
