"""Leader and followers: a thread that waits for a message reads the socket itself, as long as it comes back soon.

    LOOP THREAD     lend() ──────────────────────> what nobody could parse here, or nobody came to read
    ANOTHER THREAD    └──> read() ──> inbox, by way of the sifter if there is one

That one thread wakes another costs more than all the rest of a round trip. So the loop, when a message has come soon
after the one before, lends the socket to the thread that waits for the next: in recv(), for the answer to a query, or
that of the handlers. The loop has it back as soon as no thread reads what comes (`lent_sockets.py`), one that waits or
closes asks for it, or there is anything but whole messages: that, and all errors, are for the loop.

1. Who looks at the socket, or at what has come from it, holds `wire` and has found `lent` true. Nobody waits with it.
2. The main thread may be interrupted between any two calls. So what the socket gives is stored by the very call that
   takes it, and goes from there to the inbox in assignments, between which Python does not look for signals.
"""

from __future__ import annotations

import select
from collections.abc import Callable

from .._base.clock import monotonic
from .._base.log import trace_messages
from .._network.transport import Transport
from .._protocol.connection import Protocol
from .._threads.safe_curio import Event
from . import lent_sockets
from .bridge import Bridge
from .phase import OPEN

_PATIENCE = 20.0
"""Milliseconds that a thread waits for the socket, before it lets the loop do that."""

_PIECE = 4 * 1024
"""Bytes of which the messages go to the inbox in one go."""

MAX_FRAME = 256 * 1024
"""Bytes of a frame beyond which the loop does better: it has a buffer that grows."""


class Reader:
    """Lends the socket of one open connection, whose frames all may take the fast lane."""

    def __init__(
        self, bridge: Bridge, transport: Transport, protocol: Protocol, heard: Callable[[float], None]
    ) -> None:
        self.lent = False
        self.left = b""
        """What was read and not parsed when the loop took the socket back last."""
        self.reads = 0
        """How often messages have been read by threads."""
        self.fileno = transport.fileno
        self._heard = heard
        self._lent_sockets: lent_sockets.LentSockets  # set when the socket is lent
        self._bridge = bridge
        self._inbox = bridge.inbox
        self._sender = bridge.sender
        self._trace = bridge.trace
        self._waiters = bridge.waiters
        self._transport = transport
        assert protocol.lane is not None
        self._lane = protocol.lane
        self._deflate = protocol.deflate
        self._wire = transport.wire
        self._wanted = Event()
        # One, while nobody waits for the socket.
        self._pollers: list[select.poll] = []
        # Bytes of what is unparsed until the first frame in it is all there, if so much is known.
        self._needed = 0
        self._reading = False
        self._error: OSError | None = None
        self._untraced: list[str | bytes] = []  # messages that the trace is to tell of

    # ---- loop thread

    async def lend(self) -> bytes:
        """Leave the socket to the threads that come to read, until they do not; return what they have left to parse.

        Raises OSError, as reading does.
        """
        self.left = b""
        if not self._lane.between_frames:
            return b""
        self._wanted.clear()
        try:
            self._lent_sockets = lent_sockets.current()
            await self._lent_sockets.add(self)
        except OSError:  # no descriptor, or no watch, is left: the loop reads as always
            return b""
        return await self._lend_until_wanted()

    async def _lend_until_wanted(self) -> bytes:
        try:
            if self._bridge.leaders() > 1:
                return b""
            with self._bridge.lock:
                if self._bridge.life.phase is not OPEN:  # else who closes asks for it, if it is lent
                    return b""
                self._pollers = [self._transport.poller()]
                self.lent = True
            self._bridge.wake_leader()
            await self._wanted.wait()
        finally:
            self._lent_sockets.remove(self)
            self.left = left = self._take_back()
        self.heard()
        if self._error is not None:
            raise self._error
        return left

    async def want_back(self) -> None:
        """Have lend() return."""
        await self._wanted.set()

    def heard(self) -> None:
        """Have keepalive know that something came."""
        self._heard(monotonic())

    def write_burst_end(self) -> None:
        """Have written what the sender should have written by now."""
        self._sender.look_after_burst_end()
        self._bridge.post_flush()  # not here: what goes wrong is no business of the others

    @property
    def has_left(self) -> bool:
        """Whether something has been read that nobody has taken."""
        return bool(self._inbox.unparsed)

    def _take_back(self) -> bytes:
        with self._wire:
            self.lent = False
            self._needed = 0
            self._transport.stop_reading_now()
            data, inflated = self._inbox.take_unparsed()
            self._deflate.forget(inflated)
            return data

    # ---- any thread

    def watch_burst_end(self) -> None:
        """Have write_burst_end() called soon."""
        self._lent_sockets.burst_ends.add(self)

    def read(self, deadline: float | None, ready: Callable[[], bool] | None = None) -> None:
        """Have the next messages in the inbox, which is empty, unless `ready()` becomes true; wait a moment for them,
        at most till `deadline`.

        If there are none afterwards, the caller waits for the loop.
        """
        pollers, inbox, poller = self._pollers, self._inbox, None
        try:
            try:
                poller = pollers.pop()
            except IndexError:
                return  # another thread waits here already, or what a signal handler has interrupted
            while self.lent and not inbox.messages and not (ready is not None and ready()):
                if (self._needed or not inbox.unparsed) and not poller.poll(
                    _PATIENCE if deadline is None else _patience(deadline)
                ):
                    return
                with self._wire:
                    going_on = self._advance()
                if self._waiters.receivers or inbox.arrivals or self._untraced:
                    self._tell()
                if not going_on:
                    break
            if inbox.unparsed:
                self._lent_sockets.left.append(self)
        except BaseException as error:
            # Nobody may have heard of what was read, or come to read the rest; the next loan has a poller of its own.
            self._bridge.intake.ask_to_sift_again()
            if not isinstance(error, MemoryError):  # else the loop tries again, and says why if it must give up
                raise
        finally:
            if poller is not None:
                pollers.append(poller)

    def _advance(self) -> bool:
        """Take a step from the socket to the inbox; False if the loop must. With `wire` held."""
        inbox = self._inbox
        if not self.lent or inbox.messages or inbox.arrivals or self._reading:
            return False
        self._reading = True
        try:
            if self._needed or not inbox.unparsed:
                if not self._transport.read_now(inbox.unparsed):
                    return False
                if not inbox.unparsed or (self._needed and sum(map(len, inbox.unparsed)) < self._needed):
                    return True
                self._needed = 0
            return self._parse()
        except (BlockingIOError, InterruptedError):
            return True  # another thread was faster
        except OSError as error:
            self._error = error
            return False
        finally:
            self._reading = False

    def _parse(self) -> bool:
        """Move the next whole messages to the inbox, or find out how much lacks; False if what comes is not for us."""
        inbox, lane = self._inbox, self._lane
        pieces, position = inbox.unparsed, inbox.position
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        size, stop = len(data), position + _PIECE
        messages: list[str | bytes] = []
        end = lane.take_whole(data, position, stop if stop < size else size - 1, messages, inbox.inflated)
        if not messages:
            return self._measure(data, position)
        self._sender.speak_at_once()
        rest, start = ([], 0) if end == size else ([data], end)
        inbox.take_over(messages, rest, start, lane.deflated)
        self.reads += 1
        if self._trace.on:
            self._untraced = messages
        return True

    def _tell(self) -> None:
        """Messages have been read: with no lock held, have all hear of them whom they concern."""
        untraced = self._untraced
        self._untraced = []
        trace_messages(self._trace, untraced)
        if self._inbox.arrivals and self._inbox.sift() and self._inbox.messages:
            self._bridge.handlers.notify()
        self._waiters.wake_receivers()

    def _measure(self, data: bytes, position: int) -> bool:
        bounds = self._lane.bounds(data, position) if position < len(data) else None
        if bounds is None or bounds[1] - position > MAX_FRAME:
            return False
        self._needed = bounds[1] if bounds[1] > len(data) else 0
        return self._needed > 0


def _patience(deadline: float) -> float:
    """Milliseconds to wait for the socket."""
    return min(_PATIENCE, max(0.0, deadline - monotonic()) * 1000)
