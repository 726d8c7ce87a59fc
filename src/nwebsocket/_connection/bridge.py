"""What crosses between the threads, for one connection, and where its parts are put together.

    USER THREADS     send() ──> sender ──> outgoing ──writer──────────────────────> socket
                     close() ─> life ──────post(start_closing)──> session             LOOP THREAD, or who is awake
                     recv() <── inbox <──────────── reader, intake <──────────────── socket
                     wait_*() <─ waiters, life <─── session: opened, ended
    CALLBACK THREAD  inbox.take() <──┘

Rules that keep this file and those of the parts right:

1. `lock` guards all that no comment gives to one thread, or to who holds the wire. It is held for a few lines, never
   while waiting or running code of the user's; `_threads/locks.py` has the rules.
2. The main thread may be interrupted between any two lines, by a KeyboardInterrupt or by a signal handler that calls
   these very methods. So the lock is re-entrant, each hand-over is one atomic step (an append, a popleft, a row of
   assignments), and what follows from a hand-over (the wake-up) is repeated when in doubt.
3. Who waits, waits for a lock of its own and looks again at what it waited for when woken (`waiters.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from .._base.clock import monotonic
from .._base.log import Trace
from .._protocol.payload import Message
from .._threads import locks, the_loop, waiting
from .._threads.locks import owned
from ..events import EventType
from ..exceptions import ConnectionLost, InvalidStateError
from ..options import Options
from .inbox import Inbox, IntakeSide, Sifter
from .life import Ending, Life
from .outgoing import Outgoing
from .phase import CLOSING, DRAINING, OPEN
from .sender import BurstEndWatcher, Sender, WritingSide
from .waiters import Waiters

if TYPE_CHECKING:
    from .._threads.loop_thread import Command, LoopThread

MIN_LOOK = 5.0
"""Seconds; with a `close_timeout` of so much or more the session looks for a close_request once in a close_timeout."""


class ReadingSide(BurstEndWatcher, Protocol):
    """What the bridge asks of the reader, on any thread."""

    def read(self, deadline: float | None, ready: Callable[[], bool] | None) -> None: ...


class LendingSide(IntakeSide, Protocol):
    """What the bridge asks of the intake, on any thread."""

    def ask_to_read_again(self) -> None: ...
    def hold_up_handlers(self) -> bool: ...


class HandlersSide(Protocol):
    """What the bridge asks of the handlers."""

    def hear_on_thread(self) -> bool: ...
    def notify(self) -> None: ...
    def come_and_read(self) -> None: ...


class LoopSide(Protocol):
    """What the bridge asks of the session, on the loop thread."""

    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...

    async def flush(self) -> None: ...
    async def start_closing(self) -> None: ...


class Bridge:
    """The shared part of one connection."""

    comes_back = False
    """Whether there is another connection after one that is lost."""

    def __init__(self, options: Options, trace: Trace) -> None:
        self._loop = the_loop.current()
        self.loop_ident = self._loop.ident
        self.lock = locks.recursive("lock")
        self.trace = trace
        self.waiters = Waiters(self.lock, self)
        self.life = Life(self.lock, self.waiters, comes_back=self.comes_back)
        self.inbox = Inbox(self.lock, self.waiters, options.max_queue)
        self.outgoing, self.sender = self._make_sending_side(options)
        # The session finds out by itself, in time for its time-out, that there is a close_request.
        self.loop_looks = options.close_timeout >= MIN_LOOK
        # Set once, before the connection starts.
        self.session: LoopSide
        self.handlers: HandlersSide
        # Set when the connection opens.
        self.intake: LendingSide
        # None before the socket was first lent.
        self.reader: ReadingSide | None = None
        waiting.watch(self)  # last: from now on any thread may ask whether it is_entered()

    def _make_sending_side(self, options: Options) -> tuple[Outgoing, Sender]:
        outgoing = Outgoing(self.lock, self.waiters, options.write_limit)
        return outgoing, Sender(self.lock, self.life, outgoing, self.waiters, self.loop_ident, self.post_flush)

    # ---- putting together

    def set_up(self, handlers: HandlersSide) -> None:
        """Know who hears; before the connection starts."""
        self.handlers = handlers

    def sift_by(self, sifter: Sifter) -> None:
        """Have ``sifter`` take messages out before they are delivered; before the connection starts."""
        self.inbox.sift_by(sifter)

    def begin_with(self, session: LoopSide) -> None:
        """Ask ``session`` for what sessions know, though it does not run yet; before anybody knows the socket."""
        self.session = session

    def start(self, run: Command) -> None:
        """Have `run` connect, and all that follows, on the loop thread."""
        self._loop.spawn(run)
        if not self._loop.alive:  # it has ended in this moment: its hook may not have known of this connection yet
            self.loop_ended(self._loop)

    def attach(self, writer: WritingSide, intake: LendingSide) -> None:
        """The connection has its two halves; on the loop thread."""
        self.inbox.attach(intake)
        self.outgoing.begin()
        self.intake = intake
        self.sender.attach(writer)

    def lend(self, reader: ReadingSide) -> None:
        """From now on the socket may be lent; on the loop thread."""
        self.reader = reader
        self.sender.lend(reader)

    def post(self, command: Command) -> bool:
        """Have the loop thread await `command`; False if it has ended. It needs no lock: with any held."""
        return self._loop.post(command)

    def post_flush(self) -> None:
        """Have the session write what waits, and see to a writer that is stuck or has failed."""
        self.post(self.session.flush)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Have the loop thread call `function` after so many seconds, if it still runs then."""
        self._loop.call_later(seconds, function)

    # ---- user threads

    def bytes_on_wire(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        session = self.session
        return session.bytes_sent, session.bytes_received

    def close(self, code: int | None, reason: str) -> None:
        """Ask for the closing handshake, after the messages accepted so far; a second call does nothing."""
        try:
            self._ask_to_close(code, reason)
        finally:
            if self.trace.on:
                self.trace("=", "close() is called")  # last: a log handler of the user's may raise

    def _ask_to_close(self, code: int | None, reason: str) -> None:
        try:
            with self.lock:
                reads = not self.inbox.reading_stopped and not (self.reader is not None and self.reader.lent)
                plain = self.life.phase is OPEN and reads
                self.life.ask_to_close(code, reason)
            if not (plain and self._close_through(code, reason)):
                self.post_close()  # again at a second call: rule 2
        except BaseException:
            self.post_close()
            raise

    def _close_through(self, code: int | None, reason: str) -> bool:
        """Write the Close frame here and now; False if the loop must see to it."""
        if not self.loop_looks or owned(self.lock):  # then in a signal handler: rule 1
            return False
        writer = self.sender.writer
        return writer is not None and writer.close_through(code, reason)

    def post_close(self) -> None:
        """Have the loop see to a close() that was called."""
        if self.life.closed_locally and self.life.ending is None:
            self.post(self.session.start_closing)

    def recv(self, timeout: float | None, taken: Callable[[], bool]) -> str | bytes | None:
        """The next message; None after `timeout` seconds. Who is interrupted in it has taken none.

        Raises Life.closed_error() when there will be no more, RuntimeError when messages are `taken()` by a handler.
        """
        inbox, receivers = self.inbox, self.waiters.receivers
        if self.outgoing.queue and not inbox.messages:
            self.sender.comes_to_receive()
        deadline = None if timeout is None else monotonic() + timeout
        message: str | bytes | None = None
        woken = True
        try:
            while True:
                if not inbox.messages and (reader := self.reader) is not None and reader.lent:
                    reader.read(deadline, None)
                if taken():  # not under the lock: a handler may be a property of the user's
                    raise self._taken_error()
                with self.lock:
                    if inbox.consumer is None or inbox.may_consume():
                        messages = inbox.messages
                        if messages:
                            # In a row, which nothing interrupts; what interrupts the rest, has it given back.
                            message = messages[0]
                            del messages[0]
                            if inbox.reading_stopped and len(messages) <= inbox.resume_at:
                                inbox.resume_reading_if_room()
                            return message
                        if self.life.ending is not None:
                            raise self.life.closed_error()
                    if not woken:
                        return None
                    self.check_wait()
                    waiter = waiting.enlist(receivers)
                    if inbox.messages and inbox.consumer is None:  # see Waiters.wake_receivers()
                        receivers.remove(waiter)
                        continue
                    if inbox.reading_stopped:  # who has emptied the inbox was interrupted before it could look
                        inbox.resume_reading_if_room()
                woken = self.waiters.sleep_unless(_never, waiter, deadline, receivers)
        except BaseException:
            if message is not None:
                self._give_back(message)
            raise

    def _give_back(self, message: str | bytes) -> None:
        """recv() is interrupted as it returns this: it is the next one again."""
        writer = self.sender.writer
        with contextlib.nullcontext() if writer is None else writer.wire:  # who reads may have seen no messages
            self.inbox.put_back(message)
        self.intake.ask_to_sift_again()  # another one may wait for it

    def _taken_error(self) -> RuntimeError:
        if self.inbox.messages:
            self.intake.ask_to_read_again()  # a handler was set while we read: it has not heard of this
        return RuntimeError("recv() has nothing to give: this socket's messages go to its message handler")

    def lead(self, deadline: float | None, ready: Callable[[], bool] | None = None) -> None:
        """Read the socket on this thread for a moment, if it is lent and the inbox is empty, until there is a message
        or `ready()` is true.
        """
        reader = self.reader
        if reader is not None and reader.lent and not self.inbox.messages:  # as in recv()
            reader.read(deadline, ready)

    def write_now(self) -> None:
        """Write what the calling thread has sent, before it waits."""
        self.sender.write_now()

    def want_socket_back(self) -> None:
        """Have the loop read, if the socket is lent."""
        if self.reader is not None and self.reader.lent:
            self.intake.ask_to_read_again()

    def check_wait(self) -> None:
        """Raise RuntimeError if the calling thread is about to wait for what cannot come before it goes on."""
        if self.inbox.is_sifting():
            raise waiting.WaitsForItself("a done callback, or read_reply(), cannot wait for its own socket")

    def wait(self, ready: Callable[[], object], timeout: float | None) -> bool:
        """Wait until `ready()` is true, which is followed by wake(); False after `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        return self.waiters.wait_until(ready, deadline, self.waiters.others)

    def wake(self) -> None:
        """Have everyone who waits look again, and the loop read."""
        with self.lock:
            self.waiters.release_all()
            self.want_socket_back()

    # ---- loop thread

    def leaders(self) -> int:
        """How many threads there are that could read the socket: those that wait for a message or for an answer, and
        that of the handlers.
        """
        return self.waiters.waiting_for_messages() + self.handlers.hear_on_thread()

    def wake_leader(self) -> None:
        """The socket is lent: have the thread that waits come and read it."""
        self.waiters.wake_leaders()
        self.handlers.come_and_read()

    def opened(self) -> bool:
        """The handshake is done. False if close() came before."""
        return self.life.open()

    def is_full(self) -> bool:
        """Whether the inbox is full; if so, the intake will be asked to resume."""
        return self.inbox.stop_reading_if_full(closing=self.life.phase in (CLOSING, DRAINING))

    def ended(
        self,
        ending: Ending,
        happened: Callable[[Sequence[EventType]], None] | None = None,
        events: Sequence[EventType] = (),
    ) -> None:
        """The connection is over. `happened` is told of these `events` with the lock held, and others of what the end
        means to them without.
        """
        with self.lock:
            if happened is not None:
                happened(events)
            self.life.end(ending)
            tell = None if self.inbox.sifter is None else self.inbox.sifter.ended(self.life.closed_error)
            self.waiters.release_all()
        if tell is not None:
            for function in tell:
                function()
        self.outgoing.stop()

    # ---- what only `outbox.py` does something about

    def forget(self, messages: set[Message]) -> None:
        """Let these not wait for another connection any more."""

    def settle(self, messages: set[Message]) -> None:
        """Have send() not accept these any more: the loss of a connection has settled them; with the lock held."""

    def forget_settled(self, messages: Sequence[Message]) -> None:
        """send() has returned for these; with the lock held."""

    def has_refused(self, error: InvalidStateError) -> bool:
        """Whether send() of this very socket has raised it because the connection of a handler is lost."""
        return False

    def why_not_open(self) -> str:
        """What has kept the connection from opening so far, as the end of a sentence."""
        return ""

    def pinged(self, payload: bytes) -> None:
        """A ping goes out behind all that is framed; with the wire held."""

    def ponged(self, payloads: list[bytes]) -> None:
        """These pings are answered."""

    def to_be_heard(self) -> tuple[Ending | None, float | None]:
        """What the error and close handlers hear of: an ending, and in how many seconds there is a new connection."""
        return self.life.ending, None

    def announcing(self) -> None:
        """The open handlers begin to run, on the calling thread."""

    def announced(self) -> None:
        """The open handlers have run, or there are none."""

    def callbacks_rest(self) -> None:
        """No handler is running any more."""

    # ---- any thread

    def is_entered(self) -> bool:
        """Whether the caller, a signal handler, has interrupted its own thread while that held a lock of this."""
        writer = self.sender.writer
        return owned(self.lock) or (writer is not None and owned(writer.wire))

    def loop_ended(self, loop: LoopThread) -> None:
        """The loop thread is gone; a session that has not ended by itself never will."""
        if self._loop is loop and self.life.ending is None:
            error = ConnectionLost("the loop thread has ended")
            self.ended(Ending(1006, "", False, None, error))

    def after_fork_in_child(self) -> None:
        """The parent's connection is not the child's: here it is CLOSED, and the lock may have been held by nobody."""
        self.lock = locks.recursive("lock")
        self.reader = None
        self.sender.after_fork_in_child(self.lock)
        self.waiters.after_fork_in_child(self.lock)
        self.outgoing.after_fork_in_child(self.lock)
        self.life.after_fork_in_child(self.lock)
        self.inbox.after_fork_in_child(self.lock)


def _never() -> bool:
    return False
