"""The writing half of one open connection: messages accepted by send() -> frames -> what the operating system takes.

    outgoing.take() ──> frames, a batch at a time ──> transport ──> outgoing.has_written_...()

Any thread may write: the one that sends, as long as that is quicker than to wake the loop thread, or the loop thread.
The one that does holds the transport's `wire`, and never waits for the network.
"""

from __future__ import annotations

from .._network.transport import Transport
from .._protocol.connection import Protocol
from .._protocol.framing import frame_of, frames_of
from .._protocol.payload import BINARY, Buffer, Message
from .bridge import Bridge
from .outgoing import NOTHING_KEPT, InBatch
from .phase import OPEN

BATCH_BYTES = 256 * 1024
BATCH_MESSAGES = 256
"""What is framed and given to the operating system in one go; a bound keeps bufferedAmount a live figure."""

BATCHES_IN_A_ROW = 4
"""... and after so many of them (some 10 ms) the other connections get their turn."""


class Writer:
    """Writes what a connection's bridge has accepted."""

    def __init__(self, bridge: Bridge, protocol: Protocol, transport: Transport) -> None:
        self._bridge = bridge
        self._life = bridge.life
        self._outgoing = bridge.outgoing
        self._protocol = protocol
        self._transport = transport
        self.wire = transport.wire
        # Frames are made without wsproto, in steps that may be interrupted.
        self.any_thread = protocol.lane is not None
        self._deflate = protocol.deflate
        self._compresses = protocol.compresses
        self._plain = self.any_thread and not self._compresses and not bridge.outgoing.keeps
        self.stuck = False
        """The operating system takes no more."""
        self.error: OSError | None = None
        """Why nothing can be written any more."""
        self.closed = False
        """The Close frame has been given to the transport as the first of both sides': nothing may follow it."""
        self._close_frame: Buffer = b""  # that of close_through(), until it is framed
        self._writing = False

    def write(self) -> bool:
        """Write what waits. False if something is left for the loop to see to: the operating system takes no more
        (`stuck`), has failed (`error`), or it is the other connections' turn.
        """
        with self.wire:
            if self._writing:
                return False  # by this very thread, which a finalizer or a signal handler has interrupted
            if self.error is not None:
                return True
            self._writing = True
            try:
                return self._write_batches()
            except OSError as error:
                # What the server has sent before may still be there to read, its Close frame above all.
                self.error = error
                return False
            finally:
                self._writing = False

    def may_write_again(self) -> None:
        """The operating system takes bytes again."""
        self.stuck = False

    @property
    def idle(self) -> bool:
        """Whether all that was given to the writer has been written, and nothing is wrong."""
        with self.wire:
            return self._has_written() and not self.stuck and self.error is None

    def _has_written(self) -> bool:
        return self._transport.has_sent(self._outgoing.number)

    def count_again(self) -> None:
        """Put right what interrupted calls of send() have left uncounted."""
        with self.wire:
            if self._has_written() and not self._writing:
                self._outgoing.has_written_all()
                self._outgoing.count_again()

    def write_through(self, message: Message) -> bool:
        """Accept a message and write it, if none is waiting; False if it must be queued, or refused."""
        outgoing, transport = self._outgoing, self._transport
        with self.wire:
            if self._writing or outgoing.queue or outgoing.taken or not transport.has_sent(outgoing.number):
                return False
            if self._life.phase is not OPEN or not self._protocol.can_send or self.error is not None:
                return False
            if outgoing.keeps and transport.has_ended():
                return False
            self._writing = True
            try:
                if self._plain:
                    outgoing.has_framed(frame_of(message), 1, message[2], new=True)
                else:
                    self._frame_new(message)
                if transport.flush(outgoing.batch, outgoing.number):  # _flush() without the call
                    outgoing.has_written_all()
                    return True
                self._get_stuck()
            except OSError as error:
                self.error = error
                self._bridge.post_flush()
                return True
            finally:
                self._writing = False
        self._bridge.post_flush()
        return True

    def _frame_new(self, message: Message) -> None:
        frames, in_batch = self._framed([message])
        self._outgoing.has_framed(frames, 1, message[2], in_batch, new=True)
        if self._compresses:
            self._deflate.keep_context()

    def _flush(self) -> bool:
        """Have the operating system take the batch; False if it does not take all of it."""
        if self._transport.flush(self._outgoing.batch, self._outgoing.number):
            self._outgoing.has_written_all()
            return True
        self._get_stuck()
        return False

    def _get_stuck(self) -> None:
        outgoing = self._outgoing
        self.stuck = True
        outgoing.has_written_of_batch(self._transport.taken_of(outgoing.batch, outgoing.number))

    def may_send(self) -> bool:
        """Whether messages may be framed: no Close frame has gone either way. With the wire held.

        If the thread of close_through() was interrupted, its Close frame is the next to be written.
        """
        if self._close_frame:
            self._finish_close()
        return self._protocol.can_send

    def close_through(self, code: int | None, reason: str) -> bool:
        """Write the Close frame, from any thread; False if it was not: messages go before it, or not all is well."""
        frame = self._protocol.plain_close(code, reason)
        if frame is None:
            return False
        with self.wire:
            if self._writing or self._outgoing.waits() or not self._has_written() or self.error is not None:
                return False
            if not self.may_send():
                return False
            self._writing = True
            try:
                # Assignments in a row, which nothing interrupts.
                self.closed = True
                self._close_frame = frame
                self._finish_close()
                return self._transport.flush(self._outgoing.batch, self._outgoing.number)
            except OSError as error:
                self.error = error
                return False
            finally:
                self._writing = False

    def _finish_close(self) -> None:
        if self._outgoing.batch is not self._close_frame:
            self._outgoing.has_framed(self._close_frame, 0, 0)
        self._protocol.close_is_sent()
        self._close_frame = b""

    def send_close_frame(self, frame: bytes) -> bool:
        """Queue a Close frame; False if close_through() has just sent one, which nothing may follow."""
        with self.wire:
            self.may_send()
            if self.closed:
                return False
            self._transport.send(frame)
            return True

    def close_if_due(self, request: tuple[int | None, str] | None) -> bool:
        """Queue the first Close frame of both sides', if all messages are out and close() has asked for it, or the
        connection has failed; return whether that was done.
        """
        protocol = self._protocol
        with self.wire:
            if not self.may_send() or self._outgoing.waits() or not (protocol.failed or request is not None):
                return False
            frame = protocol.fail() if protocol.failed or request is None else protocol.close(*request)
            self._transport.send(frame)
            self.closed = True
            return True

    def is_over(self) -> bool:
        """Whether nothing may be framed any more."""
        with self.wire:
            return not self.may_send()

    def ping(self, payload: bytes) -> bool:
        """Queue a Ping; False if none may be sent any more."""
        with self.wire:
            if not self.may_send():
                return False
            self._transport.send(self._protocol.ping(payload))
            self._bridge.pinged(payload)
            return True

    def close(self) -> None:
        """Write nothing any more, whichever thread may be about to: the socket will be closed."""
        with self.wire:
            self.error = self.error or BrokenPipeError("the connection has ended")

    def _write_batches(self) -> bool:
        self.may_send()  # first: it may have a Close frame to write
        for _ in range(BATCHES_IN_A_ROW):
            if self._has_written() and not self._fill():
                return True
            if not self._flush():
                return False
            if not self._outgoing.waits():
                return True
        return False

    def _fill(self) -> bool:
        """Frame the next batch; False if there is none."""
        taken = self._outgoing.take()
        if not taken or not self.may_send():
            return False
        if self._outgoing.keeps and self._transport.has_ended():
            return False  # the system would take it, and the server never: it is kept for the next connection
        count, size = (1, taken[0][2]) if len(taken) == 1 else _measure(taken)
        frames, in_batch = self._framed(taken[:count])
        self._outgoing.has_framed(frames, count, size, in_batch)
        if self._compresses:
            self._deflate.keep_context()
        return True

    def _framed(self, messages: list[Message]) -> tuple[Buffer, InBatch]:
        """The frames of messages; for a bridge that keeps what is not taken, also the sizes of those of each."""
        if self._plain:
            return frames_of(messages), NOTHING_KEPT
        if not self.any_thread:
            each: list[Buffer] = [b"".join(self._slow_frames(message)) for message in messages]
        elif self._compresses:
            each = self._deflate.frames_of(messages)
        else:
            each = [frame_of(message) for message in messages]
        frames = each[0] if len(each) == 1 else b"".join(each)
        return frames, list(zip(messages, map(len, each), strict=True)) if self._outgoing.keeps else NOTHING_KEPT

    def untaken(self) -> list[Message]:
        """The messages that the operating system has not taken, or not to their ends, in order; after close()."""
        outgoing = self._outgoing
        with self.wire:
            return outgoing.untaken(self._transport.taken_of(outgoing.batch, outgoing.number))

    def _slow_frames(self, message: Message) -> list[bytes]:
        opcode, payload, _ = message
        parts = (payload,) if isinstance(payload, bytes) else payload
        last = len(parts) - 1
        return [
            self._protocol.message(part if opcode == BINARY else part.decode(), fin=index == last)
            for index, part in enumerate(parts)
        ]


def _measure(messages: list[Message]) -> tuple[int, int]:
    """How many of the messages go into one batch, and the bytes of their payload."""
    size = 0
    for count, message in enumerate(messages[:BATCH_MESSAGES]):
        if size >= BATCH_BYTES:
            return count, size
        size += message[2]
    return min(len(messages), BATCH_MESSAGES), size
