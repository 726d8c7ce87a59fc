"""TLS between byte strings, through memory BIOs, and what to do about its errors.

Not through an SSLSocket: curio allows one waiting reader and one waiting writer for a socket, and an SSLSocket's read
may have to wait for writability and its write for data.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Callable
from contextlib import suppress

TLS_RECORD = 16 * 1024  # bytes; RFC 8446 section 5.1

_RECORD_HEAD = 5
_APPLICATION_DATA = 23

_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
_NO_COMMON_VERSION = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"}
# RFC 8446 section 6.2; the first is new in TLS 1.3, before that the second stood for it.
_WANTS_CERTIFICATE = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
_REFUSES_CERTIFICATE = {
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "TLSV1_ALERT_UNKNOWN_CA",
}
# X509_V_ERR_...: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_OUTSIDE_VALIDITY = {9, 10}
_WRONG_NAME = {62, 64}


@functools.cache
def default_tls_context() -> ssl.SSLContext:
    """Return the process's context with the system's CAs, certificate and host name checks on.

    Making one takes about 20 ms. May be called from any thread: two threads that are first at the same moment both
    make one, which is harmless; a lock, held at the moment of a fork, would not be.

    Raises OSError without a descriptor: OpenSSL would pass over the CAs that it cannot read, and this be kept.
    """
    os.close(os.open(os.devnull, os.O_RDONLY))
    return ssl.create_default_context()


class TLS:
    """TLS between byte strings."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        """The bytes that must go to the peer."""
        self._object = context.wrap_bio(self._incoming, self.outgoing, server_hostname=host)
        self._failure: ssl.SSLError | None = None
        self._record = bytearray()  # where decrypt_at_once() reads to; made when it is needed
        self.wants_input = False
        """Whether all that was fed has been decrypted."""
        # These are C functions, not methods around them: that is faster, and see `transport.py` for why no line of
        # Python may run between what the two public ones do and the storing of their result.
        inner = self._object._sslobj  # type: ignore[attr-defined]
        self._read: Callable[[int], bytes] = inner.read
        self._read_into: Callable[[int, memoryview], int] = inner.read
        self._pending: Callable[[], int] = inner.pending
        self.encrypt: Callable[[memoryview], int] = inner.write
        """Encrypt some of the bytes given, and return how many."""
        self.feed_some: Callable[[bytes], int] = self._incoming.write
        """Take what the peer has sent, and return how much that was: all of it."""
        self.take_output: Callable[[int], bytes] = self.outgoing.read
        """Return at most so many of the bytes that must go to the peer; all with -1."""

    def describe(self) -> str:
        """Version and cipher, for the log."""
        cipher = self._object.cipher()
        return f"{self._object.version()}, {cipher[0] if cipher else 'no cipher'}"

    def handshake(self) -> bool:
        """Go on with the handshake; return True when it is done, False when more input is needed."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def look_again(self) -> None:
        """Not all that was fed may have been decrypted."""
        self.wants_input = False

    def feed(self, data: bytes) -> None:
        """Take what the peer has sent; b"" is the end of the stream."""
        self.wants_input = False
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def decrypt(self) -> bytes | None:
        """Return all the data fed so far, b"" at the end, None if more input is needed first.

        Nothing decryptable may stay behind: it would make `close` fail, and with it all further reading.
        """
        if self._failure is not None:
            raise self._failure
        chunks: list[bytes] = []
        try:
            while chunk := self._read(TLS_RECORD):
                chunks.append(chunk)
                # To ask before reading on is cheaper than the exception.
                if not self._incoming.pending and not self._pending():
                    self.wants_input = True
                    return b"".join(chunks) if len(chunks) > 1 else chunk
        except ssl.SSLWantReadError:
            self.wants_input = True
            return b"".join(chunks) or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            if not chunks:
                raise
            self._failure = error  # after the data that came before it
        return b"".join(chunks)

    def decrypt_at_once(self, pieces: list[bytes]) -> None:
        """Append all the data fed so far to ``pieces``, whatever a signal handler raises meanwhile.

        The end of the stream is left to `decrypt`. Raises ssl.SSLError.
        """
        if self._failure is not None:
            raise self._failure
        count = len(pieces)
        try:
            while True:
                self._decrypt_record(pieces)
                if not self._incoming.pending:
                    return
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            if len(pieces) == count:
                raise
            self._failure = error  # after the data that came before it

    def _decrypt_record(self, pieces: list[bytes]) -> None:
        """Append the data of the next record, or of what is left of one.

        The ssl module looks for signals after it has read, and if a handler raises, then does not say that it has. So
        this reads one byte, and then just so many as the record still has: what has happened can be found out.
        """
        if not self._record:
            self._record = bytearray(TLS_RECORD)
        record, count, fed = memoryview(self._record), len(pieces), self._incoming.pending
        size, done, before = 0, 1, self._pending()
        try:
            if not self._read_into(1, record):
                raise ssl.SSLZeroReturnError
            size = done
            while rest := self._pending():
                done = size + rest
                self._read_into(rest, record[size:])
                size = done
            pieces.append(bytes(record[:size]))
        except BaseException as error:
            if size < done and not isinstance(error, ssl.SSLError) and self._has_read(size, before, fed):
                size = done
            if size and len(pieces) == count:
                pieces.append(bytes(record[:size]))
            raise

    def _has_read(self, size: int, before: int, fed: int) -> bool:
        """Whether an interrupted read, of the first byte of a record or of all the others, has taken place."""
        left = self._pending()
        if not size and before:
            return left < before
        if not size and not left and self._incoming.pending < fed:
            # A record of a single byte, or one without data: that cannot be told, and nothing may be lost in silence.
            self._failure = ssl.SSLError("interrupted while a record was decrypted")
        return left == 0 if size else left > 0

    def close(self) -> None:
        """Put out the close_notify alert."""
        with suppress(ssl.SSLError):  # SSLWantReadError: the peer's close_notify has not come yet
            self._object.unwrap()

    def peer_names(self) -> list[str]:
        """Return the names in the certificate of the server, also if it was refused; [] if they cannot be had."""
        # getpeercert() gives nothing before the end of the handshake; the object beneath keeps what the server sent.
        try:
            leaf = self._object._sslobj.get_unverified_chain()[0]  # type: ignore[attr-defined]
            return [name for kind, name in leaf.get_info()["subjectAltName"] if kind in ("DNS", "IP Address")]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return []


def data_in_records(encrypted: memoryview) -> int:
    """How much data the whole records among these bytes carry at most (RFC 8446 section 5.1)."""
    records = position = 0
    while position + _RECORD_HEAD <= len(encrypted):
        kind, length = encrypted[position], int.from_bytes(encrypted[position + 3 : position + _RECORD_HEAD], "big")
        position += _RECORD_HEAD + length
        records += kind == _APPLICATION_DATA and position <= len(encrypted)
    return records * TLS_RECORD


def explain(error: OSError, host: str, port: int, tls: TLS) -> str:
    """Say what failed in OpenSSL's words, and what to do about it; never to verify less."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".")
        return f"the certificate of {host} is refused: {reason}{_certificate_remedy(error, tls)}"
    if isinstance(error, ssl.SSLEOFError):
        return f"{host} closed the connection during the TLS handshake; does it speak TLS on port {port}?"
    if not isinstance(error, ssl.SSLError):
        return f"the connection to {host} was lost during the TLS handshake: {error_in_words(error)}"
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return f"{host} does not speak TLS on port {port} ({error_in_words(error)}); use ws:// for it?"
    return f"TLS with {host} failed: {error_in_words(error)}{_alert_remedy(reason)}"


def _alert_remedy(reason: str) -> str:
    if reason in _NO_COMMON_VERSION:
        return "; the server and this Python have no TLS version in common"
    if reason in _WANTS_CERTIFICATE:
        return "; if it wants a client certificate, call load_cert_chain() on an SSLContext and pass that as ssl="
    if reason in _REFUSES_CERTIFICATE:
        return "; the server does not accept the client certificate of the SSLContext given as ssl="
    return ""


def _certificate_remedy(error: ssl.SSLCertVerificationError, tls: TLS) -> str:
    code = error.verify_code
    if code in _UNKNOWN_ISSUER:
        return "; if this server uses a private CA, pass ssl=ssl.create_default_context(cafile='ca.pem')"
    if code in _OUTSIDE_VALIDITY:
        return "; the server's certificate must be renewed, or the clock of this machine be set right"
    if code in _WRONG_NAME:
        names = ", ".join(tls.peer_names())
        return "; connect by a name that is in the certificate" + (f": {names}" if names else "")
    return ""


def error_in_words(error: OSError) -> str:
    """What was wrong, in the words of the system or of OpenSSL, without numbers and lines of code."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error)
