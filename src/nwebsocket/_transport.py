"""The byte stream to the server: DNS, TCP (RFC 8305) and TLS. Runs in the loop thread only.

TLS goes through memory BIOs and not through an SSLSocket: curio allows one waiting reader and one waiting writer for a
socket, and an SSLSocket's read may have to wait for writability and its write for data. Here only `Transport.receive`
waits for data and only `Transport.wait_writable` for room, with TLS as without.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import ssl
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from ._curio import Descriptor, Event, Task, curio, disable_cancellation, sleep, spawn, wait_readable
from ._curio import wait_writable as wait_descriptor_writable
from .exceptions import ConnectionFailed, TLSError

__all__ = ["Transport", "connect_any", "default_tls_context", "open_transport"]

Address = tuple[int, Any]
"""An address family and a socket address of that family."""

ATTEMPT_DELAY = 0.25  # seconds; RFC 8305 section 8, "Connection Attempt Delay"
READ_SIZE = 256 * 1024  # bytes
READS_IN_A_ROW = 8  # without having waited; then the other tasks get a turn
TLS_RECORD = 16 * 1024  # bytes; RFC 8446 section 5.1
_LINGER_ZERO = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK)
_WOULD_BLOCK = (BlockingIOError, InterruptedError)


@functools.cache
def default_tls_context() -> ssl.SSLContext:
    """Return the process's context with the system's CAs, certificate and host name checks on.

    Making one takes about 20 ms. May be called from any thread: two threads that are first at the same moment both
    make one, which is harmless; a lock, held at the moment of a fork, would not be.
    """
    return ssl.create_default_context()


async def open_transport(host: str, port: int, *, tls: ssl.SSLContext | None) -> Transport:
    """Connect to ``host`` (a name, or an IP address without brackets) and set up TLS if a context is given.

    May be cancelled at any moment: no socket and no task is left. Sets no time limit of its own.
    Raises ConnectionFailed if the host is unknown or no address of it can be connected, and TLSError.
    """
    transport = Transport(await _connect_host(host, port))
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
        self._sock = sock
        # curio keeps the registration of this object, not of a bare int: the same one must be used all the time.
        self._descriptor = Descriptor(sock.fileno())
        self._tls: _TLS | None = None
        self._reads_in_a_row = 0
        self._sending = memoryview(b"")  # what is being given to the OS ...
        self._queued: list[bytes] = []  # ... and what comes after it
        self._queued_bytes = 0

    async def start_tls(self, context: ssl.SSLContext, host: str, port: int) -> None:
        """Do the TLS handshake as a client of ``host``, whose name is checked as ``context`` says.

        After a TLSError or a cancellation only `close` and `abort` are of use.
        """
        # A trailing dot belongs to DNS; certificates and SNI have none (RFC 6066 section 3).
        tls = _TLS(context, host.removesuffix("."))
        try:
            while not tls.handshake():
                await self._send_now(tls.take_output())
                tls.feed(await self._receive_some())
            await self._send_now(tls.take_output())
        except OSError as error:  # ssl.SSLError is one
            with suppress(OSError):  # the alert that tells the server why
                self.send(tls.take_output())
                self.flush()
            raise TLSError(_explain_tls(error, host, port, tls)) from error
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
        await _close(self._sock)

    async def abort(self) -> None:
        """Close the socket with a reset: the OS forgets what it has not sent. Never waits."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        await _close(self._sock)

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


class _TLS:
    """TLS between byte strings."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._failure: ssl.SSLError | None = None

    def handshake(self) -> bool:
        """Go on with the handshake; return True when it is done, False when more input is needed."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Take what the peer has sent; b"" is the end of the stream."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def take_output(self) -> bytes:
        """Return the bytes that must go to the peer."""
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                done += self._object.write(rest[done:])
        return self._outgoing.read()

    def decrypt(self) -> bytes | None:
        """Return all the data fed so far, b"" at the end, None if more input is needed first.

        Nothing decryptable may stay behind: it would make `close` fail, and with it all further reading.
        """
        if self._failure is not None:
            raise self._failure
        chunks: list[bytes] = []
        try:
            while chunk := self._object.read(TLS_RECORD):
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            return b"".join(chunks) or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            if not chunks:
                raise
            self._failure = error  # after the data that came before it
        return b"".join(chunks)

    def close(self) -> bytes:
        """Return the close_notify alert."""
        with suppress(ssl.SSLError):  # SSLWantReadError: the peer's close_notify has not come yet
            self._object.unwrap()
        return self._outgoing.read()

    def peer_names(self) -> list[str]:
        """Return the names in the certificate of the server, also if it was refused; [] if they cannot be had."""
        # getpeercert() gives nothing before the end of the handshake; the object beneath keeps what the server sent.
        try:
            leaf = self._object._sslobj.get_unverified_chain()[0]  # type: ignore[attr-defined]
            return [name for kind, name in leaf.get_info()["subjectAltName"] if kind in ("DNS", "IP Address")]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return []


# ---- DNS and TCP


async def _connect_host(host: str, port: int) -> socket.socket:
    addresses = await _resolve(host, port)
    try:
        return await connect_any(addresses)
    except _AllFailed as failed:
        tried = "; ".join(f"{sockaddr[0]}: {error.strerror or error}" for (_, sockaddr), error in failed.attempts)
        raise ConnectionFailed(f"cannot connect to {host} port {port} ({tried})") from failed.attempts[-1][1]


async def _resolve(host: str, port: int) -> list[Address]:
    # Bytes, because a str would go through the "idna" codec, which raises UnicodeError for a label over 63 bytes.
    lookup = functools.partial(socket.getaddrinfo, host.encode("ascii"), port, type=socket.SOCK_STREAM)
    with suppress(socket.gaierror):  # a name, not an address
        return _addresses(lookup(flags=socket.AI_NUMERICHOST))
    try:
        return _addresses(await _in_thread(lookup))
    except socket.gaierror as error:
        raise ConnectionFailed(f"cannot find the address of host {host!r}: {error.strerror}") from error


def _addresses(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Run ``function`` in a daemon thread; when cancelled, forget about it."""
    # curio.run_in_thread: a call that is cancelled and ends after its kernel, as a slow DNS lookup does, writes into
    # the kernel's closed socket and dies with a traceback on stderr. A cancelled concurrent Future stays silent.
    future: Future[Any] = Future()

    def run() -> None:
        with suppress(InvalidStateError):
            try:
                result = function()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    threading.Thread(target=run, name="nwebsocket-dns", daemon=True).start()
    await curio.traps._future_wait(future)
    return future.result()


def _interleave(addresses: Sequence[Address]) -> list[Address]:
    """Alternate the address families, beginning with the first one's (RFC 8305 section 4)."""
    by_family: dict[int, list[Address]] = {}
    for address in addresses:
        by_family.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*by_family.values())) if address is not None]


class _AllFailed(Exception):
    """No address could be connected; ``attempts`` has each with its error, in the order in which they failed."""

    def __init__(self, attempts: list[tuple[Address, OSError]]) -> None:
        super().__init__(attempts)
        self.attempts = attempts


async def connect_any(addresses: Sequence[Address]) -> socket.socket:
    """Connect to the first of ``addresses`` that answers (RFC 8305 section 5), or raise _AllFailed."""
    race = _Race()
    try:
        await race.run(deque(_interleave(addresses)))
    except BaseException:
        if race.winner is not None:
            await _close(race.winner)
        raise
    if race.winner is None:
        raise _AllFailed(race.failures)
    return race.winner


class _Race:
    """Connection attempts, each in its own task, which closes its socket unless it wins."""

    def __init__(self) -> None:
        self.winner: socket.socket | None = None
        self.failures: list[tuple[Address, OSError]] = []
        self._progress = Event()  # an attempt has ended, or the next one is due
        self._tasks: list[Task] = []

    async def run(self, waiting: deque[Address]) -> None:
        try:
            attempts = len(waiting)
            while self.winner is None and len(self.failures) < attempts:
                self._progress.clear()
                if waiting:
                    await self._spawn(self._attempt, waiting.popleft())
                timer = await self._spawn(self._wait_turn) if waiting else None
                await self._progress.wait()
                if timer is not None:
                    await timer.cancel()
        finally:
            async with disable_cancellation():
                for task in self._tasks:
                    await task.cancel()

    async def _spawn(self, function: Callable[..., Any], *args: Any) -> Task:
        task = await spawn(function, *args)
        self._tasks.append(task)
        return task

    async def _attempt(self, address: Address) -> None:
        try:
            sock = await _connect(*address)
        except OSError as error:
            self.failures.append((address, error))
        else:
            if self.winner is None:
                self.winner = sock
            else:
                await _close(sock)
        await self._progress.set()

    async def _wait_turn(self) -> None:
        # Not ignore_after(): where the loop was busy past its deadline it logs "took longer than an enclosing timeout".
        await sleep(ATTEMPT_DELAY)
        await self._progress.set()


async def _connect(family: int, sockaddr: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(sockaddr)
        if error in _PENDING:
            await wait_descriptor_writable(Descriptor(sock.fileno()))
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        await _close(sock)
        raise
    return sock


async def _close(sock: socket.socket) -> None:
    # After a task has waited for a socket, curio's kernel leaves it registered until the task waits for something else
    # or ends, and would then unregister a closed descriptor, whose number may be another socket's by now. This trap
    # ends the calling task's registration first, as curio's own Socket.close() does; it neither waits nor raises.
    await curio.traps._io_release(sock)
    sock.close()


# ---- explaining TLS errors

_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
_NO_COMMON_VERSION = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"}
# X509_V_ERR_...: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_OUTSIDE_VALIDITY = {9, 10}
_WRONG_NAME = {62, 64}


def _explain_tls(error: OSError, host: str, port: int, tls: _TLS) -> str:
    """Say what failed in OpenSSL's words, and what to do about it; never to verify less."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is refused: {error.verify_message}{_certificate_remedy(error, tls)}"
    if isinstance(error, ssl.SSLEOFError):
        return f"{host} closed the connection during the TLS handshake; does it speak TLS on port {port}?"
    if not isinstance(error, ssl.SSLError):
        return f"the connection to {host} was lost during the TLS handshake: {error.strerror or error}"
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return f"{host} does not speak TLS on port {port} ({_in_words(reason)}); use ws:// for it?"
    remedy = "; the server and this Python have no TLS version in common" if reason in _NO_COMMON_VERSION else ""
    return f"TLS with {host} failed: {_in_words(reason) or error}{remedy}"


def _certificate_remedy(error: ssl.SSLCertVerificationError, tls: _TLS) -> str:
    code = error.verify_code
    if code in _UNKNOWN_ISSUER:
        return "; if this server uses a private CA, pass ssl=ssl.create_default_context(cafile='ca.pem')"
    if code in _OUTSIDE_VALIDITY:
        return "; the server's certificate must be renewed, or the clock of this machine be set right"
    if code in _WRONG_NAME:
        names = ", ".join(tls.peer_names())
        return "; connect by a name that is in the certificate" + (f": {names}" if names else "")
    return ""


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")
