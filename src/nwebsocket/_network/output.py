"""Bytes on their way to the operating system, with or without TLS: the sending side of a stream.

    flush(batch), send(), send_pongs() ──> [TLS] ──> what the OS takes now; the rest waits here

Sending never waits, and any thread may do it, holding `wire`. The main thread may be interrupted there between any two
calls: so the result of each call that moves bytes is stored by that same call (``list.extend(map(...))``), and what
follows from it is done in assignments, between which Python does not look for signals.
"""

from __future__ import annotations

import socket
import ssl

from .._protocol.payload import Buffer
from .._threads import locks
from .tls import TLS, data_in_records

MAX_PONGS = 64 * 1024  # bytes unsent; from there on, a server that pings and does not read gets the latest only
WOULD_BLOCK = (BlockingIOError, InterruptedError)


class Output:
    """The sending side of one connected socket; any thread may use it."""

    def __init__(self, sock: socket.socket) -> None:
        self.wire = locks.recursive("wire")
        """To be held while sending; it guards all that follows, and the TLS object."""
        self._sock = sock
        self._tls: TLS | None = None
        # What is to be sent, and is not encrypted yet: the batch that was given last first.
        self._batch: Buffer = b""
        self._number = 0  # of that batch
        self._queued: list[bytes] = []
        self._pongs = b""  # go before what is queued
        self._latest = b""  # the last Pong, once there are too many
        self._encrypted: list[int] = []  # bytes of the batch, piece by piece
        self._output: list[bytes] = []  # ... as they will be on the wire
        # What is being given to the OS, and how much of it that has taken, piece by piece.
        self._sending: Buffer = b""
        # With TLS: the batch that is being encrypted, and the one that is being given to the OS.
        self._encrypting: Buffer = b""
        self._sending_of: Buffer = b""
        self._taken: list[int] = []
        self._sent_before = 0  # `sent`, but for what is being given to the OS right now
        self._flushing = False

    def send(self, data: bytes) -> None:
        """Queue ``data``, which `flush` will encrypt and give to the OS."""
        with self.wire:
            self._queued.append(data)

    def send_pongs(self, pongs: list[bytes]) -> None:
        """Queue Pongs, before all else that is queued; beyond `MAX_PONGS` only the last (RFC 6455 section 5.5.3)."""
        with self.wire:
            for pong in pongs:
                if self._latest or len(self._pongs) + len(pong) > MAX_PONGS:
                    self._latest = pongs[-1]
                    break
                self._pongs += pong

    def flush(self, batch: Buffer = b"", number: int = 0) -> bool:
        """Give the OS what it takes now, without waiting; return True when nothing is left.

        ``batch``   to be sent before all that is queued: a new one when nothing is unsent, or again the last one
        ``number``  of the batch, from 1 on: by that a new one is known

        From any thread that holds `wire`. Raises OSError, and ssl.SSLError, which is one.
        """
        if self._flushing:
            return False  # by this very thread, which a finalizer or a signal handler has interrupted
        self._flushing = True
        try:
            if number > self._number:
                self._number = number
                if self._tls is None and not self._sending:  # _next() without the call
                    self._sending = batch
                else:
                    self._batch = batch
            while self._sending or self._next():
                nothing: list[int] = []
                taken, left = self._taken, self._sending
                if taken:
                    left = memoryview(left)[sum(taken) :]
                if left:
                    taken.extend(map(self._sock.send, (left,)))
                if sum(taken) < len(self._sending):
                    return False
                self._sent_before += len(self._sending)
                self._sending = b""
                self._taken = nothing
                if not (self._queued or self._pongs) and (self._tls is None or self.has_sent(0)):
                    break
            return True
        except WOULD_BLOCK:
            return False
        finally:
            self._flushing = False

    def _next(self) -> bool:
        """Have the next bytes in `_sending`, which is empty; return whether there are any."""
        if (self._queued or self._pongs) and not self._batch:
            nothing: list[bytes] = []
            joined = b"".join((self._pongs, self._latest, *self._queued))
            self._batch = joined
            self._pongs = b""
            self._latest = b""
            self._queued = nothing
        if self._tls is None:
            self._sending = self._batch
            self._batch = b""
        else:
            self._encrypt(self._tls)
        return bool(self._sending)

    def _encrypt(self, tls: TLS) -> None:
        if self._batch:
            self._encrypting = self._batch
        if tls.outgoing.pending:
            self._output.extend(map(tls.take_output, (-1,)))
        while self._batch:
            nothing: list[int] = []
            done = sum(self._encrypted)
            if done < len(self._batch):
                self._encrypt_part(tls, memoryview(self._batch)[done:])
                self._output.extend(map(tls.take_output, (-1,)))
            else:
                self._batch = b""
                self._encrypted = nothing
        no_output: list[bytes] = []
        joined = b"".join(self._output)
        self._sending_of = self._encrypting
        self._encrypting = b""
        self._sending = joined
        self._output = no_output

    def _encrypt_part(self, tls: TLS, part: memoryview) -> None:
        size, outgoing = len(part), tls.outgoing  # which is empty
        try:
            self._encrypted.extend(map(tls.encrypt, (part,)))
        except ssl.SSLError:
            raise
        except BaseException:
            # The ssl module looks for signals after it has written, and then does not say that it has.
            if outgoing.pending:
                self._encrypted.append(size)
            raise

    def has_sent(self, number: int) -> bool:
        """Whether the OS has taken all of the batch of this number, and all that is queued; with `wire` held."""
        if number > self._number or self._sending or self._batch or self._queued or self._pongs:
            return False
        return self._tls is None or not (self._output or self._tls.outgoing.pending)

    @property
    def sent(self) -> int:
        """Bytes the OS has taken so far, as they are on the wire; from any thread."""
        taken = self._taken
        return self._sent_before + sum(taken) if taken else self._sent_before

    @property
    def unsent(self) -> int:
        """Bytes queued that the OS has not taken yet, those that TLS will add not counted."""
        given = len(self._sending) - sum(self._taken)
        pongs = len(self._pongs) + len(self._latest)
        return given + len(self._batch) - sum(self._encrypted) + pongs + sum(map(len, self._queued))

    def taken_of(self, batch: Buffer, number: int) -> int:
        """How many bytes of the last `batch` the OS has taken; what TLS has made of it counts by whole records, for
        less cannot be decrypted. With `wire` held.
        """
        if number > self._number or self._batch is batch or (self._output and self._encrypting is batch):
            return 0
        if self._tls is None:
            return sum(self._taken) if self._sending is batch else len(batch)
        if not self._sending or self._sending_of is not batch:
            return len(batch)
        return min(len(batch), data_in_records(memoryview(self._sending)[: sum(self._taken)]))

    def has_sent_already(self, size: int) -> None:
        """Count what was sent before there was this transport."""
        self._sent_before += size
