"""The options of a connection: defaults, units and checks in one place."""

from __future__ import annotations

import re
import ssl as tls
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .exceptions import InvalidArgument

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

INBOX_BYTES = 64 * 2**20
"""The inbox's bound in bytes, beside `max_queue`, its bound in messages."""

MAX_REDIRECTS = 10

# RFC 9110 section 5.6.2 (token) and 5.5 (field value: no CR, LF, NUL, which would end or split the header).
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_HANDSHAKE_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to open a connection and what to expect of it. All times in seconds, all sizes in bytes.

    ``ssl``            the SSLContext for wss://; None: a default one, which verifies certificate and host name
    ``headers``        more headers for the handshake, a mapping or pairs; repeated names are allowed in pairs
    ``origin``         the Origin header
    ``compression``    "deflate" offers permessage-deflate (RFC 7692); None does not
    ``open_timeout``   for DNS, TCP, TLS and handshake together; None: no limit
    ``close_timeout``  for the close handshake, counted anew whenever the server takes data; then the socket is aborted
    ``ping_interval``  after so much silence a ping is sent; None turns keepalive off
    ``ping_timeout``   after so much more silence the connection is given up; None: never
    ``max_size``       of a received message, after decompression; None: no limit
    ``max_queue``      messages in the inbox (which also has a bound of 64 MiB); when full, the socket is not read
    ``write_limit``    above so many bytes of bufferedAmount, and 128 more for each message, send() waits for the peer
    ``callbacks``      "thread": on a thread of the socket's own; "loop": on the loop thread, for short callbacks only
    """

    ssl: tls.SSLContext | None = None
    headers: tuple[tuple[str, str], ...] = ()
    origin: str | None = None
    compression: Literal["deflate"] | None = "deflate"
    open_timeout: float | None = 10.0
    close_timeout: float = 10.0
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    max_size: int | None = 16 * 2**20
    max_queue: int = 1024
    write_limit: int = 16 * 2**20
    callbacks: Literal["thread", "loop"] = "thread"

    def __post_init__(self) -> None:
        if self.ssl is not None and not isinstance(self.ssl, tls.SSLContext):
            raise TypeError(f"ssl must be an ssl.SSLContext or None, not {self.ssl!r}")
        _check_choice("compression", self.compression, ("deflate", None))
        _check_choice("callbacks", self.callbacks, ("thread", "loop"))
        for name in ("open_timeout", "ping_interval", "ping_timeout"):
            _check_number(name, getattr(self, name), "seconds, more than 0,", optional=True)
        _check_number("close_timeout", self.close_timeout, "seconds, more than 0")
        _check_number("max_size", self.max_size, "a whole number of bytes, at least 1,", optional=True, whole=True)
        _check_number("max_queue", self.max_queue, "a whole number of messages, at least 1", whole=True)
        _check_number("write_limit", self.write_limit, "a whole number of bytes, at least 1", whole=True)
        object.__setattr__(self, "headers", _checked_headers(self.headers))
        if self.origin is not None:
            _check_header("Origin", self.origin)

    def request_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers the user asked for, `origin` among them."""
        return (("Origin", self.origin), *self.headers) if self.origin is not None else self.headers


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _check_number(name: str, value: Any, expected: str, *, optional: bool = False, whole: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"{name} must be {expected}{' or None' if optional else ''}, not {value!r}")
    if not value > 0:
        raise InvalidArgument(f"{name} must be {expected}{' or None' if optional else ''}, not {value!r}")


def check_timeout(timeout: Any) -> None:
    """Raise unless `timeout` is None or a number of seconds, 0 or more."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise InvalidArgument(f"timeout must be 0 or more seconds, or None, not {timeout!r}")


def _checked_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    if isinstance(headers, str) or not isinstance(headers, Iterable):
        raise TypeError(f"headers must be a mapping or (name, value) pairs, not {headers!r}")
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TypeError("headers must be a mapping or (name, value) pairs; one entry is not a pair")
        _check_header(*pair)
    return pairs


def _check_header(name: Any, value: Any) -> None:
    """Names only, never values, in the messages: a value may be a secret."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"header {name!r}: name and value must be str, not {type(value).__name__}")
    if not _TOKEN.fullmatch(name):
        raise InvalidArgument(f"{name!r} is not a header name (RFC 9110 section 5.1)")
    if name.lower() in _HANDSHAKE_HEADERS:
        raise InvalidArgument(f"the header {name} is set by the handshake itself")
    if not _VALUE.fullmatch(value) or (not value.isascii() and not _is_latin_1(value)):
        raise InvalidArgument(f"the value of the header {name} has a line break, a control or a non-Latin-1 character")


def _is_latin_1(value: str) -> bool:
    return all(ord(character) < 256 for character in value)
