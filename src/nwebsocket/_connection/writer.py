"""The writing half of one open connection: messages accepted by send() -> frames -> what the operating system takes.

    bridge.take() ──> frames, a batch at a time ──> transport ──> bridge.has_written()

Any thread may write: the one that sends, as long as that is quicker than to wake the loop thread, or the loop thread.
Whoever does holds the transport's `wire`, and never waits for the network.
"""

from __future__ import annotations

from .._network.transport import Transport
from .._protocol.connection import Protocol
from .._protocol.framing import frame_of, frames_of
from .._protocol.payload import BINARY, Buffer, Message
from .bridge import Bridge
from .phase import Phase

_OPEN = Phase.OPEN

BATCH_BYTES = 256 * 1024
BATCH_MESSAGES = 256
"""What is framed and given to the operating system in one go; a bound keeps bufferedAmount a live figure."""

_NOTHING_KEPT: list[tuple[Message, int]] = []

BATCHES_IN_A_ROW = 4
"""... and after so many of them (some 10 ms) the other connections get their turn."""


class Writer:
    """Writes what a connection's bridge has accepted."""

    def __init__(self, bridge: Bridge, protocol: Protocol, transport: Transport) -> None:
        self._bridge = bridge
        self._protocol = protocol
        self._transport = transport
        self.wire = transport.wire
        # Frames are made without wsproto, in steps that may be interrupted.
        self.any_thread = protocol.lane is not None
        self._deflate = protocol.deflate
        self._compresses = protocol.compresses
        self._plain = self.any_thread and not protocol.compresses and not bridge.keeps
        self.stuck = False
        """The operating system takes no more; whoever has waited for it to do so sets this to False."""
        self.error: OSError | None = None
        """Why nothing can be written any more."""
        self.closed = False
        """The Close frame has been given to the transport as the first of both sides': nothing may follow it."""
        self._writing = False
        # What had been framed, and sent on the wire, before the batch that the transport has in hands.
        self._bytes_before = self._messages_before = self._sent_before = 0
        # That batch, and its messages with the sizes of their frames; only for a bridge that keeps what is not taken.
        self._batch: Buffer = b""
        self._in_batch: list[tuple[Message, int]] = []

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

    @property
    def idle(self) -> bool:
        """Whether all that was given to the writer has been written, and nothing is wrong."""
        with self.wire:
            return self._transport.idle and not self.stuck and self.error is None

    def count_again(self) -> None:
        """Put right what interrupted calls of send() have left uncounted."""
        bridge = self._bridge
        with self.wire:
            if self._transport.idle and not self._writing:
                bridge.has_written(bridge.framed_bytes, bridge.framed_messages)
                bridge.count_again()

    def write_through(self, message: Message) -> bool:
        """Accept a message and write it, if none is waiting; False if it must be queued, or refused."""
        bridge, transport = self._bridge, self._transport
        with self.wire:
            if self._writing or bridge.outgoing or bridge.taken or self.error is not None or not transport.idle:
                return False
            if bridge.phase is not _OPEN or not self._protocol.can_send or (bridge.keeps and transport.has_ended()):
                return False
            if self._write_one(message):
                return True
        bridge.post_flush()
        return True

    def _write_one(self, message: Message) -> bool:
        """Accept the only message, and write it; False if something of it is left."""
        self._writing = True
        try:
            self._give([message], message[2], accepted=False)
            if self._transport.flush():
                bridge = self._bridge
                bridge.has_written(bridge.framed_bytes, bridge.framed_messages)
                return True
            self._get_stuck()
            return False
        except OSError as error:
            self.error = error
            return False
        finally:
            self._writing = False

    def close_through(self, code: int | None, reason: str) -> bool:
        """Write the Close frame, from any thread; False if it was not: messages go before it, or not all is well."""
        frame = self._protocol.plain_close(code, reason)
        if frame is None:
            return False
        with self.wire:
            if self._writing or self._bridge.has_outgoing() or not self._transport.idle or self.error is not None:
                return False
            if not self._protocol.can_send:
                return False
            self._writing = True
            try:
                # Assignments in a row, which nothing interrupts.
                self._transport.batch = frame
                self._protocol.close_sent = True
                self._protocol.can_send = False
                self.closed = True
                return self._transport.flush()
            except OSError as error:
                self.error = error
                return False
            finally:
                self._writing = False

    def _get_stuck(self) -> None:
        """bufferedAmount falls by what the operating system took; framing counts for nothing in the end."""
        self.stuck = True
        written = self._bytes_before + self._transport.sent - self._sent_before
        self._bridge.has_written(min(written, self._bridge.framed_bytes), self._messages_before)

    def close(self) -> None:
        """Write nothing any more, whoever may be about to: the socket will be closed."""
        with self.wire:
            self.error = self.error or BrokenPipeError("the connection has ended")

    def _write_batches(self) -> bool:
        bridge, transport = self._bridge, self._transport
        for _ in range(BATCHES_IN_A_ROW):
            if transport.idle and not self._fill():
                return True
            if not transport.flush():
                self._get_stuck()
                return False
            bridge.has_written(bridge.framed_bytes, bridge.framed_messages)
            if not bridge.outgoing and not bridge.taken:
                return True
        return False

    def _fill(self) -> bool:
        """Give the transport, which has nothing left, the next batch; False if there is none."""
        bridge, transport = self._bridge, self._transport
        taken = bridge.taken or bridge.take()
        if not taken or not self._protocol.can_send:
            return False
        if bridge.keeps and transport.has_ended():
            return False  # the system would take it, and the server never: it is kept for the next connection
        count, size = (1, taken[0][2]) if len(taken) == 1 else _measure(taken)
        self._give(taken[:count], size, accepted=True)
        return True

    def _give(self, messages: list[Message], size: int, *, accepted: bool) -> None:
        """Give the transport the frames of messages: of the next ones `taken`, or of one that is accepted by this."""
        bridge, transport, count = self._bridge, self._transport, len(messages)
        frames: Buffer
        in_batch = _NOTHING_KEPT
        if self._plain:
            frames = frame_of(messages[0]) if count == 1 else frames_of(messages)
        else:
            each = self._frames_of_each(messages)
            frames = each[0] if count == 1 else b"".join(each)
            if bridge.keeps:
                in_batch = list(zip(messages, map(len, each), strict=True))
        sent = transport.sent_before  # all of it: nothing is unsent
        framed_bytes, framed_messages = bridge.framed_bytes, bridge.framed_messages
        # Assignments in a row, which nothing interrupts: a message is either still taken, or not accepted, or framed.
        transport.batch = frames
        if accepted:
            del bridge.taken[:count]
        else:
            bridge.accepted_bytes += size
            bridge.accepted_messages += 1
        if in_batch:
            self._batch = frames
            self._in_batch = in_batch
        self._sent_before = sent
        self._bytes_before = framed_bytes
        self._messages_before = framed_messages
        bridge.framed_bytes = framed_bytes + size
        bridge.framed_messages = framed_messages + count
        if self._compresses:
            self._deflate.keep_context()

    def _frames_of_each(self, messages: list[Message]) -> list[Buffer]:
        """The frames of messages, those of each in one buffer."""
        if not self.any_thread:
            return [b"".join(self._slow_frames(message)) for message in messages]
        if self._compresses:
            return self._deflate.frames_of(messages)
        return [frame_of(message) for message in messages]

    def untaken(self) -> list[Message]:
        """The messages that the operating system has not taken, or not to their ends, in order; after close()."""
        with self.wire:
            taken, end, left = self._transport.taken_of(self._batch) if self._in_batch else 0, 0, []
            for message, size in self._in_batch:
                end += size
                if end > taken:
                    left.append(message)
            return [*left, *self._bridge.taken]

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
