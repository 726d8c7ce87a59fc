"""The byte stream to the server, with or without TLS. Runs in the loop thread only.

Only `Transport.receive` waits for data, and only `Transport.wait_writable` for room; with TLS, too (see `_tls.py`).
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

from ._curio import Descriptor, sleep, wait_readable
from ._curio import wait_writable as wait_descriptor_writable
from ._tcp import close_socket, connect_host
from ._tls import TLS, explain
from .exceptions import TLSError

READ_SIZE = 256 * 1024  # bytes
READS_IN_A_ROW = 8  # without having waited; then the other tasks get a turn
_LINGER_ZERO = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_WOULD_BLOCK = (BlockingIOError, InterruptedError)


async def open_transport(host: str, port: int, *, tls: ssl.SSLContext | None) -> Transport:
    """Connect to ``host`` (a name, or an IP address without brackets) and set up TLS if a context is given.

    May be cancelled at any moment: no socket and no task is left. Sets no time limit of its own.
    Raises ConnectionFailed if the host is unknown or no address of it can be connected, and TLSError.
    """
    transport = Transport(await connect_host(host, port))
    if tls is not None:
        try:
            await transport.start_tls(tls, host, port)
        except BaseException:
            await transport.close()
            raise
    return transport


class Transport:
    """A connected stream socket, with or without TLS. Every method belongs to the loop thread.

    One task may be in `receive` and one in `wait_writable` at a time; both must have ended, or be the caller itself,
    when `close` or `abort` is called.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.on_unsent: Callable[[], None] | None = None
        """Called when `receive` has produced bytes to send (TLS: a key update, say) that the OS has not taken."""
        self.sent = 0
        """Bytes the OS has taken so far, as they are on the wire."""
        self.received = 0
        """Bytes received so far, likewise."""
        self._sock = sock
        # curio keeps the registration of this object, not of a bare int: the same one must be used all the time.
        self._descriptor = Descriptor(sock.fileno())
        self._tls: TLS | None = None
        self._reads_in_a_row = 0
        self._sending = memoryview(b"")  # what is being given to the OS ...
        self._queued: list[bytes] = []  # ... and what comes after it
        self._queued_bytes = 0

    async def start_tls(self, context: ssl.SSLContext, host: str, port: int) -> None:
        """Do the TLS handshake as a client of ``host``, whose name is checked as ``context`` says.

        After a TLSError or a cancellation only `close` and `abort` are of use.
        """
        # A trailing dot belongs to DNS; certificates and SNI have none (RFC 6066 section 3).
        tls = TLS(context, host.removesuffix("."))
        try:
            while not tls.handshake():
                await self._send_now(tls.take_output())
                tls.feed(await self._receive_some())
            await self._send_now(tls.take_output())
        except OSError as error:  # ssl.SSLError is one
            with suppress(OSError):  # the alert that tells the server why
                self.send(tls.take_output())
                self.flush()
            raise TLSError(explain(error, host, port, tls)) from error
        self._tls = tls

    async def receive(self) -> bytes:
        """Wait for data and return what has come, decrypted, about 256 KiB at most; b"" at the end of the stream.

        A TLS stream that is cut without close_notify ends, too: WebSocket's Close frame tells a complete stream from a
        cut one. Raises OSError (reset by the peer) and ssl.SSLError.
        """
        if self._tls is None:
            return await self._receive_some()
        while (data := self._tls.decrypt()) is None:
            self._send_tls_answers(self._tls.take_output())
            self._tls.feed(await self._receive_some())
        self._send_tls_answers(self._tls.take_output())
        return data

    def send(self, data: bytes) -> None:
        """Queue ``data``, encrypted if there is TLS; `flush` gives it to the OS. Raises ssl.SSLError."""
        if self._tls is not None:
            data = self._tls.encrypt(data)
        self._queue(data)

    def flush(self) -> bool:
        """Give the OS what it takes now, without waiting; return True when nothing is left. Raises OSError."""
        while self._sending or self._queued:
            if not self._sending:
                self._sending = memoryview(b"".join(self._queued) if len(self._queued) > 1 else self._queued[0])
                self._queued.clear()
                self._queued_bytes = 0
            try:
                taken = self._sock.send(self._sending)
            except _WOULD_BLOCK:
                return False
            self.sent += taken
            self._sending = self._sending[taken:]
            if self._sending:
                return False
        return True

    async def wait_writable(self) -> None:
        """Wait until the OS takes bytes again."""
        await wait_descriptor_writable(self._descriptor)

    @property
    def unsent(self) -> int:
        """Bytes queued, as they will be on the wire, that the OS has not taken yet."""
        return len(self._sending) + self._queued_bytes

    def shutdown(self) -> None:
        """Say that nothing more will be sent: half-close TCP, or send TLS's close_notify. Call `flush` before.

        `receive` goes on working. A connection that is gone already is not an error.
        """
        with suppress(OSError):
            if self._tls is None:
                self._sock.shutdown(socket.SHUT_WR)
            else:
                self._queue(self._tls.close())
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
        while (data := self._receive_now()) is None:
            self._reads_in_a_row = 0
            await wait_readable(self._descriptor)
        self._reads_in_a_row += 1
        self.received += len(data)
        return data

    def _receive_now(self) -> bytes | None:
        try:
            return self._sock.recv(READ_SIZE)
        except _WOULD_BLOCK:
            return None

    def _queue(self, data: bytes) -> None:
        if data:
            self._queued.append(data)
            self._queued_bytes += len(data)

    async def _send_now(self, data: bytes) -> None:
        self._queue(data)
        while not self.flush():
            await self.wait_writable()

    def _send_tls_answers(self, output: bytes) -> None:
        if not output:
            return
        self._queue(output)
        try:
            flushed = self.flush()
        except OSError:  # the reader still has data to deliver; the next write meets the error again
            flushed = False
        if not flushed and self.on_unsent is not None:
            self.on_unsent()
