"""One connection's life in the loop: open, read, answer, close; `run()` is the one place that ends it.

    run() ── Opening.run() ── transport, protocol      (with a deadline; cancelled by close())
       └──── Intake.run()     socket -> protocol -> inbox.deliver(); waits while the inbox is full
             write()          what user threads have not written themselves; a task waits while the socket is full
             _tick()          a timer: pings, the deadlines of closing, and a close() that has told nobody

Everything here runs on the loop thread; user threads reach it through the bridge's commands. An idle connection is one
task, which waits for the socket, and one timer.
"""

from __future__ import annotations

from enum import Enum, auto

from .._base.clock import monotonic
from .._base.log import log
from .._base.logger import repr_of
from .._network.transport import Transport
from .._protocol.connection import Protocol
from .._protocol.keepalive import Keepalive
from .._protocol.received import PeerClose
from .._protocol.response import Response
from .._threads import the_loop
from .._threads.loop_thread import Timer
from .._threads.safe_curio import CancelledError, Task, current_task, forbid_cancellation, spawn
from ..events import EventType
from ..exceptions import Cancelled, ConnectionLost, KeepaliveTimeout, ProtocolError, WebSocketError
from ..options import Options
from .bridge import Bridge
from .callbacks import Callbacks
from .intake import Intake
from .life import Ending, describe
from .opening import Opening
from .outcome import Outcome
from .phase import DRAINING
from .writer import Writer

END_TIMEOUT = 1.0
"""Seconds to wait for the server to end the TCP connection once the Close frames are exchanged (RFC 6455 7.1.1)."""

LISTENER_PATIENCE = 0.25
"""Seconds for a handler to be set, or the error to be raised to a caller, before a failure is logged."""


class Stage(Enum):
    """Where run() is.

    ``OPENING``   inside Opening.run()
    ``SERVING``   inside Intake.run()
    ``GIVEN_UP``  cancelled by ourselves while it was one of these
    ``BETWEEN``   anywhere else
    """

    BETWEEN = auto()
    OPENING = auto()
    SERVING = auto()
    GIVEN_UP = auto()


BETWEEN, OPENING, SERVING, GIVEN_UP = Stage

class Session:
    """One connection, on the loop thread."""

    def __init__(self, bridge: Bridge, callbacks: Callbacks, opening: Opening, options: Options) -> None:
        self._bridge = bridge
        self._life = bridge.life
        self._callbacks = callbacks
        self.where = opening.route  # for errors
        self._options = options
        # Until the connection is open, or that has failed.
        self._opening: Opening | None = opening
        self._trace = bridge.trace
        self._transport: Transport | None = None
        self._protocol: Protocol | None = None
        # Set with these two, when the connection opens.
        self._writer: Writer
        self._intake: Intake

        self._task: Task  # the one that is in run()
        self._stage = BETWEEN
        # What user threads may read.
        self.response: Response | None = None
        self.subprotocol = ""
        self.extensions = ""
        self.keepalive = Keepalive(options.ping_interval, options.ping_timeout, monotonic())

        self._write_task: Task | None = None  # waits until the socket takes more
        self._waits_to_write = False
        self._timer: Timer | None = None
        # When opening, or closing, is given up; None while the connection is open.
        self._deadline: float | None = None
        self._outcome = Outcome()
        self._shut_down = False  # we have said that nothing more will be sent

    # ---- any thread

    @property
    def bytes_sent(self) -> int:
        """Bytes on the wire that the operating system has taken."""
        return 0 if self._transport is None else self._transport.sent

    @property
    def bytes_received(self) -> int:
        """Bytes on the wire that have come."""
        return 0 if self._transport is None else self._transport.received

    def after_fork_in_child(self) -> None:
        """Close the child's copy of the socket; the parent's is untouched."""
        if self._opening is not None:
            self._opening.abandon()
        if self._transport is not None:
            self._transport.close_inherited()

    # ---- life

    async def run(self) -> None:
        """The whole life of the connection."""
        self._task = await current_task()
        try:
            await self._open_within_limits()
            await self._serve()
        except WebSocketError as error:
            self._outcome.fail(error)
        except CancelledError:
            if self._stage is not GIVEN_UP:
                self._outcome.fail_unless_failed(ConnectionLost("the loop thread has ended"))
        except Exception as error:
            log.exception("internal error")
            self._outcome.fail(ConnectionLost(f"internal error: {repr_of(error)}"))
        forbid_cancellation(self._task)
        await self._end()

    async def _open_within_limits(self) -> None:
        """Raise ConnectionFailed or one of its kind unless the connection is open afterwards."""
        opening, self._stage = self._opening, OPENING
        assert opening is not None
        try:
            if self._life.close_request is None:
                if self._options.open_timeout is not None:
                    self._deadline = monotonic() + self._options.open_timeout
                    await self.arm()
                await opening.run()
                self._opened(opening)
        except CancelledError:
            if self._stage is not GIVEN_UP and self._life.close_request is None:
                raise
        finally:
            self._leave(OPENING)
            self._deadline = None
            self._opening = None
            opening.abandon()
        if self._stage is GIVEN_UP and self._life.close_request is None:
            # Also if it has succeeded at the very last moment: the cancellation is on its way.
            raise opening.timed_out()
        if not self._bridge_opened():
            raise Cancelled("close() was called before the connection was open")

    def _leave(self, stage: Stage) -> None:
        if self._stage is stage:  # else it has been given up, and stays so
            self._stage = BETWEEN

    def _opened(self, opening: Opening) -> None:
        self._transport, self._protocol = opening.transport, opening.protocol
        assert self._protocol is not None
        assert self._transport is not None
        self._writer = Writer(self._bridge, self._protocol, self._transport)
        self._intake = Intake(
            self, self._bridge, self._callbacks, self._options, self._transport, self._protocol, self._writer
        )
        self._bridge.attach(self._writer, self._intake)
        self.response = self._protocol.response
        self.subprotocol = self._protocol.subprotocol
        self.extensions = self._protocol.extensions
        if self._trace.on:
            self._trace("=", f"open, extensions: {self.extensions or 'none'}")

    def _bridge_opened(self) -> bool:
        with self._bridge.lock:
            if self._protocol is None or not self._bridge.opened():
                return False
            self._callbacks.happened(("open",))
        self._callbacks.notify()
        return True

    async def _serve(self) -> None:
        """Read to the end, write, and keep time."""
        self.keepalive.heard(monotonic())
        self._stage = SERVING
        assert self._transport is not None
        self._transport.tell_unsent(self._bridge.post_flush)
        try:
            await self.arm()
            await self._intake.run()
            if isinstance(self._writer.error, ConnectionResetError):  # the system tells of that once
                self._outcome.lost(self._writer.error, by_us=self._closed_first)
        except OSError as error:
            self._outcome.lost(error, by_us=self._closed_first)
        finally:
            self._leave(SERVING)

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._write_task is not None:
            await self._write_task.cancel()
        ending = self._ending()
        if self._trace.on:
            self._trace("!" if ending.error else "=", f"ended: {describe(ending)}")
            sent, received = self._bridge.outgoing.accepted_messages, self._bridge.inbox.received
            self._trace("=", f"sent {sent} messages, received {received}")
        if self._transport is not None:
            await self._close_transport()
        if self._protocol is not None:
            self._protocol.release()
        self._conclude(ending)

    def _conclude(self, ending: Ending) -> None:
        conclude(self._bridge, self._callbacks, ending, self.where)

    @property
    def _closed_first(self) -> bool:
        """Whether the first Close frame of both sides' is ours."""
        return self._protocol is not None and (self._writer.closed or self._protocol.failed)

    def _ending(self) -> Ending:
        clean = self._protocol is not None and self._protocol.close_sent
        return self._outcome.ending(self.where, by_us=self._closed_first, clean=clean)

    async def _close_transport(self) -> None:
        assert self._transport is not None
        self._writer.close()
        if self._shut_down:
            await self._transport.close()
        else:
            await self._transport.abort()

    # ---- writing

    async def flush(self) -> None:
        """A user thread has accepted messages, or has left some to us (command)."""
        self._bridge.sender.flush_has_come()
        if self._stage is SERVING:
            writer = self._writer
            if self._bridge.outgoing.waits() or not writer.idle:
                await self.write()
            writer.count_again()

    async def write(self) -> None:
        """Write what waits, and see to what is left."""
        try:
            await self._write()
        except OSError:
            raise
        except Exception as error:  # no memory for a frame, say: what waits would wait for ever
            if await current_task() is self._task:
                raise  # run() sees to it
            log.exception("internal error")
            self._outcome.fail_unless_failed(ConnectionLost(f"internal error: {repr_of(error)}"))
            await self._give_up()

    async def _write(self) -> None:
        writer, transport = self._writer, self._transport
        assert transport is not None
        if self._waits_to_write:
            return
        sent = transport.sent
        done = not writer.stuck and writer.write()
        while done and self._close_if_done():
            done = writer.write()
        if self._deadline is not None:
            if transport.sent > sent and not self._shut_down:
                self._deadline = monotonic() + self._options.close_timeout
            await self.arm()
        if writer.error is not None:
            await self._writing_failed()
        elif not done:
            await self._wait_to_write()
        elif self._intake.waits_for_room and self._options.callbacks == "loop":
            await self._intake.resume_reading()

    async def _wait_to_write(self) -> None:
        self._waits_to_write = True
        if self._write_task is None:
            self._write_task = await spawn(self._write_later, daemon=True)

    async def _write_later(self) -> None:
        """Write when the socket takes more; also when it does already, but it is the other connections' turn."""
        assert self._transport is not None
        while self._waits_to_write:
            await self._transport.wait_writable()
            self._waits_to_write = False
            self._writer.may_write_again()
            await self.write()
        self._write_task = None

    # ---- closing

    async def start_closing(self) -> None:
        """close() was called (command)."""
        if self._stage is OPENING:
            await self._task.cancel(blocking=False)
        elif self._stage is SERVING:
            if self._deadline is None:
                self._deadline = monotonic() + self._options.close_timeout
            await self._intake.resume_reading()
            await self._intake.read_again()
            await self.write()
            await self.arm()

    async def drain(self, close: PeerClose | None, failure: ProtocolError | None) -> None:
        """Nothing is left to hear, and only our Close frame to say: then the server should end the connection."""
        self._outcome.closed(close, failure)
        self._life.enter(DRAINING)
        self._deadline = monotonic() + self._options.close_timeout
        if self._bridge.outgoing.waits() or not self._writer.idle or self._close_if_done():
            await self.write()
        await self.arm()

    def _close_if_done(self) -> bool:
        """All messages are out. If that was to be all: queue the Close frame, or half-close the stream after it. Return
        whether there is something new to write.
        """
        if self._writer.close_if_due(self._life.close_request):
            return True
        if self._life.phase is DRAINING and not self._shut_down and self._writer.is_over():
            assert self._transport is not None
            self._shut_down = True
            self._deadline = None
            if not self._transport.has_ended():  # else closing the socket says it
                self._transport.shutdown()
                self._deadline = monotonic() + END_TIMEOUT
        return False

    async def _writing_failed(self) -> None:
        """What the server has sent before may still be there to read, its Close frame above all."""
        if not self._bridge.outgoing.stopped:
            self._bridge.outgoing.stop()
            self._deadline = monotonic() + END_TIMEOUT
            await self._intake.resume_reading()  # it may have waited for what will never be written
            await self.arm()

    async def _closing_timed_out(self, now: float) -> None:
        if self._bridge.outgoing.stopped and self._intake.waits_for_room:
            # What the server sent before it vanished still waits behind a full inbox.
            self._deadline = now + END_TIMEOUT
            return
        writer = self._writer
        if self._bridge.outgoing.stopped and self._life.phase is not DRAINING:
            assert writer.error is not None
            self._outcome.lost(writer.error, by_us=self._closed_first)
        elif self._life.phase is not DRAINING:
            unanswered = _unanswered(self._bridge.outgoing.buffered, self._options.close_timeout)
            self._outcome.fail(ConnectionLost(unanswered, closed_first="client"))
        await self._give_up()

    async def _give_up(self) -> None:
        """Have run() go to the end."""
        self._stage = GIVEN_UP
        self._deadline = None
        await self._task.cancel(blocking=False)

    # ---- time

    async def arm(self) -> None:
        """Have _tick() called when the next deadline has come, or before."""
        due = self._deadline if self._deadline is not None else self._next_look()
        if due is None or self._stage is GIVEN_UP or (self._timer is not None and self._timer.when <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = await the_loop.current().call_at(due, self._tick)

    def _next_look(self) -> float | None:
        """When to look at the open connection again: at keepalive's deadline, or for a close() that has told nobody."""
        due = self.keepalive.deadline()
        if not self._bridge.loop_looks:
            return due
        look = monotonic() + self._options.close_timeout
        return look if due is None else min(due, look)

    async def _tick(self) -> None:
        """Look whether a deadline has come (timer)."""
        self._timer = None
        if self._stage is OPENING:
            await self._give_up()
        if self._stage is not SERVING:
            return
        now = monotonic()
        self.keepalive.heard_in_all(self.bytes_received, now, counts=self._intake.is_lent)
        if self._deadline is None and self._life.close_request is not None:
            self._deadline = self._life.close_requested_at + self._options.close_timeout
        if self._deadline is not None:
            if now >= self._deadline:
                await self._closing_timed_out(now)
        elif (due := self.keepalive.due(now)) == "dead":
            self._outcome.fail(KeepaliveTimeout(self.keepalive.silence))
            await self._give_up()
        elif due == "ping":
            await self._send_ping(self.keepalive.keepalive_ping(now))
        await self.arm()

    async def ping(self, waiting: list[float]) -> None:
        """Send a ping; the latency is appended to `waiting` when it is answered (command)."""
        if self._stage is not SERVING:
            return
        await self._send_ping(self.keepalive.ping(monotonic(), waiting))

    async def _send_ping(self, payload: bytes) -> None:
        if self._writer.ping(payload):
            self._trace(">", "ping")
            await self.write()


def conclude(bridge: Bridge, callbacks: Callbacks, ending: Ending, where: object) -> None:
    """Nothing will follow: tell everybody, and if nobody hears of a failure, the log."""
    unsent = bridge.outgoing.buffered
    if unsent and ending.code != 1006:
        log.warning("%s: closed (%s) before %d bytes could be sent", where, describe(ending), unsent)
    hears = callbacks.handlers.hear
    heard = ending.error is None or bridge.waiters.anyone_waits() or hears("error") or hears("close")
    events: tuple[EventType, ...] = ("error", "close") if ending.error else ("close",)
    bridge.ended(ending, callbacks.happened, events)

    def warn_if_unheard() -> None:
        if not bridge.life.error_raised and callbacks.end_unheard():
            log.warning("%s", ending.error)

    if not heard and not isinstance(ending.error, Cancelled):
        bridge.call_later(LISTENER_PATIENCE, warn_if_unheard)
    callbacks.ended()


def _unanswered(unsent: int, close_timeout: float) -> str:
    within = f"within close_timeout={close_timeout:g} s"
    if unsent:
        return f"the server took none of the {unsent:,} bytes still to be sent before the Close frame {within}"
    return f"the server did not answer the Close frame {within}"
