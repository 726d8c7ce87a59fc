"""The byte stream to the server, with or without TLS.

Only `Transport.receive` waits for data, and only `Transport.wait_writable` for room; with TLS, too (see `tls.py`).

Sending is in `output.py`.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from .._threads.safe_curio import Descriptor, epoll_descriptor, sleep, wait_readable
from .._threads.safe_curio import wait_writable as wait_descriptor_writable
from ..exceptions import TLSError
from .brief_poll import AVAILABLE, BriefPoll
from .output import WOULD_BLOCK, Output
from .tcp import Attempt, close_socket, connect_host
from .tls import TLS, explain

READ_SIZE = 120 * 1024  # bytes; from 128 KiB on, malloc() maps fresh pages for each read
READ_SIZE_IN_STREAMS = 256 * 1024  # after a read that was filled
READS_IN_A_ROW = 8  # without having waited; then the other tasks get a turn
_LINGER_ZERO = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


async def open_transport(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    begun: Attempt | None = None,
    stage: Callable[[str], None] = lambda _: None,
) -> Transport:
    """Connect to ``host`` (a name, or an IP address without brackets) and set up TLS if a context is given; go on with
    what has been ``begun`` before, if anything has. ``stage`` is told what is being done.

    May be cancelled at any moment: no socket and no task is left. Sets no time limit of its own.
    Raises ConnectionFailed if the host is unknown or no address of it can be connected, and TLSError.
    """
    stage(f"connecting to {host} port {port}")
    transport = Transport(await connect_host(host, port, begun))
    if tls is not None:
        stage(f"waiting for the TLS handshake with {host} port {port}")
        await start_tls_or_close(transport, tls, host, port)
    return transport


async def start_tls_or_close(transport: Transport, tls: ssl.SSLContext, host: str, port: int) -> None:
    """Set up TLS as a client of ``host``; if that fails, or is cancelled, the transport is closed."""
    try:
        await transport.start_tls(tls, host, port)
    except BaseException:
        await transport.close()
        raise


class Transport(Output):
    """A connected stream socket, with or without TLS. Every method belongs to the loop thread unless it says otherwise.

    One task may be in `receive` and one in `wait_writable` at a time; both must have ended, or be the caller itself,
    when `close` or `abort` is called.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.setblocking(False)
        self._on_unsent: Callable[[], object] | None = None
        self.received = 0
        """Bytes received so far, as they are on the wire."""
        # curio keeps the registration of this object, not of a bare int: the same one must be used all the time.
        self._descriptor = Descriptor(sock.fileno())
        self._brief_poll: BriefPoll | None = None
        # What read_now() has read, and how much of it has been fed to TLS, piece by piece.
        self._read_encrypted: list[bytes] = []
        self._fed: list[int] = []
        self._reads_in_a_row = 0
        # The last read brought less than it asked for; at first it is our turn to speak.
        self._drained = True
        self._read_size = READ_SIZE

    async def start_tls(self, context: ssl.SSLContext, host: str, port: int) -> None:
        """Do the TLS handshake as a client of ``host``, whose name is checked as ``context`` says.

        After a TLSError or a cancellation only `close` and `abort` are of use.
        """
        # A trailing dot belongs to DNS; certificates and SNI have none (RFC 6066 section 3).
        tls = TLS(context, host.removesuffix("."))
        try:
            while not tls.handshake():
                await self._send_now(tls.take_output(-1))
                tls.feed(await self._receive_some())
            await self._send_now(tls.take_output(-1))
        except OSError as error:  # ssl.SSLError is one
            with suppress(OSError):  # the alert that tells the server why
                self.send(tls.take_output(-1))
                self.flush()
            raise TLSError(explain(error, host, port, tls)) from error
        self._tls = tls

    def describe(self) -> str:
        """Where the stream goes, for the log."""
        try:
            ends = f"{self._sock.getsockname()} -> {self._sock.getpeername()}"
        except OSError as error:
            ends = f"not connected ({error})"
        return ends if self._tls is None else f"{ends}, {self._tls.describe()}"

    def tls_error(self, error: ssl.SSLError, host: str, port: int) -> TLSError:
        """What to raise for an error that comes after the handshake: in TLS 1.3 the server's verdict on us does."""
        assert self._tls is not None
        return TLSError(explain(error, host, port, self._tls))

    @property
    def receive(self) -> Callable[[], Coroutine[Any, Any, bytes]]:
        """Waits for data and returns what has come, decrypted, about 256 KiB at most; b"" at the end of the stream.

        A TLS stream that is cut without close_notify ends, too: WebSocket's Close frame tells a complete stream from a
        cut one. Raises OSError (reset by the peer) and ssl.SSLError.
        """
        return self._receive_some if self._tls is None else self._receive_decrypted

    async def poll_briefly(self) -> None:
        """Wait for data with `BriefPoll` from now on: faster, unless what comes is handed over to another thread."""
        epoll = await epoll_descriptor() if AVAILABLE else None
        if epoll is not None:
            self._brief_poll = BriefPoll(self._sock.fileno(), epoll)

    @property
    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def poller(self) -> select.poll:
        """Something to wait with until the socket has data or has ended, on any thread, but one at a time."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return poller

    def read_now(self, pieces: list[bytes]) -> bool:
        """Append what has come, decrypted, to ``pieces``: all that there is, or nothing yet; False at the end of the
        stream. From any thread that holds `wire`, while `receive` is not under way; then stop_reading_now().

        Raises BlockingIOError, other OSErrors and ssl.SSLError.
        """
        tls = self._tls
        read = pieces if tls is None else self._read_encrypted
        count = len(read)
        try:
            read.extend(map(self._sock.recv, (READ_SIZE,)))
            size = len(read[-1])
        except BaseException:
            if len(read) > count:
                self.received += len(read[-1])
            raise
        self.received += size
        if not read[-1]:
            return False  # the next one will meet it again
        if tls is not None:
            self._feed(tls)
            try:
                tls.decrypt_at_once(pieces)
            finally:
                if tls.outgoing.pending:
                    self._send_tls_answers()
        return True

    def tell_unsent(self, function: Callable[[], object]) -> None:
        """Have ``function`` called when `receive` leaves bytes to send (TLS: a key update, say)."""
        self._on_unsent = function

    def stop_reading_now(self) -> None:
        """Before `receive` goes on; on the loop thread, with `wire` held."""
        if self._tls is not None:
            self._feed(self._tls)
            self._tls.look_again()

    def _feed(self, tls: TLS) -> None:
        """Give TLS what has been read and not been fed yet; to be interrupted anywhere."""
        nothing: list[bytes] = []
        no_sizes: list[int] = []
        self._fed.extend(map(tls.feed_some, self._read_encrypted[len(self._fed) :]))
        self._read_encrypted = nothing
        self._fed = no_sizes

    async def _receive_decrypted(self) -> bytes:
        tls = self._tls
        assert tls is not None
        data = None if tls.wants_input else self._decrypt(tls, None)
        while data is None:
            data = self._decrypt(tls, await self._receive_some())
        return data

    def _decrypt(self, tls: TLS, encrypted: bytes | None) -> bytes | None:
        with self.wire:
            if encrypted is not None:
                tls.feed(encrypted)
            try:
                return tls.decrypt()
            finally:
                if tls.outgoing.pending:
                    self._send_tls_answers()

    async def wait_writable(self) -> None:
        """Wait until the OS takes bytes again."""
        await wait_descriptor_writable(self._descriptor)

    def has_ended(self) -> bool:
        """Whether the server has ended the stream already and nothing is left to read: then `receive` says so at once.

        Only known without TLS.
        """
        if self._tls is not None:
            return False
        try:
            ended = not self._sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        if ended:
            self._drained = False  # so there is nothing to wait for
        return ended

    def shutdown(self) -> None:
        """Say that nothing more will be sent: half-close TCP, or send TLS's close_notify. Call `flush` before.

        `receive` goes on working. A connection that is gone already is not an error.
        """
        with suppress(OSError), self.wire:
            if self._tls is None:
                self._sock.shutdown(socket.SHUT_WR)
            else:
                self._tls.close()
                self.flush()

    async def close(self) -> None:
        """Close the socket; may be called twice. Never waits and cannot be cancelled."""
        await close_socket(self._sock)

    async def abort(self) -> None:
        """Close the socket with a reset: the OS forgets what it has not sent. Never waits."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        await close_socket(self._sock)

    def close_inherited(self) -> None:
        """In a forked child: close its copy of the socket, which says nothing to the peer."""
        self._sock.close()

    async def _receive_some(self) -> bytes:
        if self._reads_in_a_row >= READS_IN_A_ROW:  # a peer that never pauses must not starve the other connections
            self._reads_in_a_row = 0
            await sleep(0)
        while True:
            if not self._drained:
                try:
                    data = self._sock.recv(self._read_size)
                except WOULD_BLOCK:
                    pass
                else:
                    break
            self._drained = False
            if self._brief_poll is None or not self._brief_poll.wait():
                await wait_readable(self._descriptor)
            self._reads_in_a_row = 0
        self._reads_in_a_row += 1
        size = len(data)
        # Most often less than asked for is all there is: it is cheaper to wait than to ask.
        self._drained = 0 < size < self._read_size
        self._read_size = READ_SIZE_IN_STREAMS if size >= READ_SIZE else READ_SIZE
        self.received += size
        return data

    async def _send_now(self, data: bytes) -> None:
        self.send(data)
        while not self.flush():
            await self.wait_writable()

    def _send_tls_answers(self) -> None:
        try:
            flushed = self.flush()
        except OSError:  # the reader still has data to deliver; the next write meets the error again
            flushed = False
        if not flushed and self._on_unsent is not None:
            self._on_unsent()
