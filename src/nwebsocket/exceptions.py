"""Every error that nwebsocket raises or hands to ``onerror``.

    WebSocketError
    ├── InvalidURL                (ValueError)       the URL cannot be a WebSocket's
    ├── InvalidArgument           (ValueError)       an option, header, sub-protocol or message is not acceptable
    │   └── InvalidClose          (ValueError)       a close code or reason that may not be sent
    ├── InvalidStateError         (ConnectionError)  send() before the connection is open
    ├── OutboxFull                (BufferError)      send() while there is no connection, and too much waits for one
    ├── WaitTimeout               (TimeoutError)     the timeout given to a waiting method has passed; nothing is lost
    │   └── QueryTimeout                             ... no answer to a query in time
    ├── ConnectionFailed          (ConnectionError)  the connection could not be opened
    │   ├── OpenTimeout           (TimeoutError)     ... not within open_timeout
    │   ├── ProxyError                               ... the proxy cannot be reached, or refuses
    │   ├── TLSError                                 ... TLS failed; the message says what to do about it
    │   ├── HandshakeError                           ... the server refused or garbled the handshake
    │   └── Cancelled                                ... close() was called while it was being opened
    └── ConnectionClosed          (ConnectionError)  the connection has ended; code, reason, and who closed first
        ├── ConnectionLost                           ... without a Close frame: 1006
        │   └── KeepaliveTimeout  (TimeoutError)     ... the peer had been silent for too long
        └── ProtocolError                            ... the server broke RFC 6455; `sent_code` told it so
            └── MessageTooBig                        ... or sent a message over max_size
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from ._base.escape import escaped

if TYPE_CHECKING:
    from typing_extensions import Self

if sys.version_info >= (3, 11):
    FuturesTimeout = TimeoutError
else:
    from concurrent.futures import TimeoutError as FuturesTimeout

__all__ = [
    "Cancelled",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionLost",
    "HandshakeError",
    "InvalidArgument",
    "InvalidClose",
    "InvalidStateError",
    "InvalidURL",
    "KeepaliveTimeout",
    "MessageTooBig",
    "OpenTimeout",
    "OutboxFull",
    "ProtocolError",
    "ProxyError",
    "QueryTimeout",
    "TLSError",
    "WaitTimeout",
    "WebSocketError",
]

Side = Literal["client", "server"]


class WebSocketError(Exception):
    """The root of all errors of this library. What comes from the server is escaped in its text."""

    def __str__(self) -> str:
        return escaped(super().__str__())

    def because_of(self, cause: BaseException | None) -> Self:
        """Return the error itself, with what has caused it."""
        self.__cause__ = cause
        return self

    def say_where(self, where: str) -> None:
        """Put in front where it happened: a URL."""
        self.args = (f"{where}: {self}",)


class InvalidURL(WebSocketError, ValueError):
    """The URL cannot be parsed, or is not one that a WebSocket can have (browser: SyntaxError)."""


class InvalidArgument(WebSocketError, ValueError):
    """An option, a header, a sub-protocol or a message that cannot be accepted; nothing has been sent."""


class InvalidClose(InvalidArgument):
    """A close code other than 1000 or 3000-4999, or a reason of more than 123 bytes; the connection goes on."""


class InvalidStateError(WebSocketError, ConnectionError):
    """send() was called while the connection was still being opened."""


class OutboxFull(WebSocketError, BufferError):
    """A ReconnectingWebSocket has no connection, and its outbox no room: the message was not accepted."""


class WaitTimeout(WebSocketError, TimeoutError):
    """The ``timeout`` given to wait_open(), wait_closed(), recv() or ping() has passed; the connection goes on."""


class QueryTimeout(WaitTimeout, FuturesTimeout):
    """No answer has come within the ``timeout`` of query(), or of result(); in the second case the query goes on."""


class ConnectionFailed(WebSocketError, ConnectionError):
    """The connection could not be opened: the host is unknown, unreachable, or refuses."""


class OpenTimeout(ConnectionFailed, TimeoutError):
    """DNS, TCP, TLS and the handshake together took longer than ``open_timeout``."""


class TLSError(ConnectionFailed):
    """TLS could not be set up; ``__cause__`` is the ``ssl.SSLError``."""


class Cancelled(ConnectionFailed):
    """close() was called before the connection was open."""


class ProxyError(ConnectionFailed):
    """The proxy cannot be reached, did not connect to the server, or garbled its answer.

    ``status``   the HTTP status of its answer (int), or None if there was none
    ``headers``  the answer's headers, a list of (name, value) pairs as received
    """

    def __init__(
        self, message: str, *, status: int | None = None, headers: list[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []


class HandshakeError(ConnectionFailed):
    """The server answered the opening handshake with something other than a correct 101 (RFC 6455 section 4.1).

    ``status``   the HTTP status (int), or None if the answer was not HTTP
    ``headers``  the answer's headers, a list of (name, value) pairs as received
    ``body``     the first bytes of the answer's body, at most 64 KiB
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: list[tuple[str, str]] | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []
        self.body = body


class ConnectionClosed(WebSocketError, ConnectionError):
    """The connection has ended, or is ending.

    ``code``          the close code of the CloseEvent (RFC 6455 section 7.4.1)
    ``reason``        its text
    ``closed_first``  "client" or "server": whose Close frame was first; None without any
    """

    def __init__(
        self, message: str, *, code: int = 1006, reason: str = "", closed_first: Side | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.closed_first = closed_first


class ConnectionLost(ConnectionClosed):
    """The line was cut: TCP ended or was reset without a Close frame."""


class KeepaliveTimeout(ConnectionLost, TimeoutError):
    """Nothing, not even a pong, was received for ``ping_interval + ping_timeout`` seconds."""


class ProtocolError(ConnectionClosed):
    """The server sent what RFC 6455 forbids; it was told so with a Close frame of code ``sent_code``."""

    def __init__(self, message: str, *, sent_code: int = 1002) -> None:
        super().__init__(message, closed_first="client")
        self.sent_code = sent_code


class MessageTooBig(ProtocolError):
    """The server sent a message larger than ``max_size``; ``sent_code`` is 1009."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent_code=1009)
