"""The options of a connection: types, defaults, units and checks in one place."""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from ._base.escape import in_short, name_in_part
from ._base.late import importing
from ._base.numbers import real_number, shown, whole_number
from ._network.proxies import Proxy, parse_proxy, proxy_of_environment
from ._protocol.compression import Deflate, deflate_of
from ._protocol.cookies import checked_cookies, cookie_header, is_jar
from ._protocol.url import URL, basic_authorization
from .exceptions import InvalidArgument

if TYPE_CHECKING:
    import ssl as tls
    from http.cookiejar import CookieJar

    from ._protocol.cookies import Cookies

F = TypeVar("F", bound=Callable[..., Any])

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

_OPTIONS_FOR_HEADERS = {"authorization": "auth", "cookie": "cookies", "origin": "origin"}


_CALLBACKS = ("thread", "loop")
_OUTPUT = ("cell", None)


class CommonOptions(TypedDict, total=False):
    """Those of WebSocketOptions, which see, that every socket takes as they are."""

    ssl: tls.SSLContext | None
    origin: str | None
    auth: tuple[str, str] | None
    cookies: Cookies | None
    proxy: str | Literal[True] | None
    unix: str | bytes | os.PathLike[str] | None
    compression: Literal["deflate"] | Deflate | None
    open_timeout: float | None
    close_timeout: float
    ping_interval: float | None
    ping_timeout: float | None
    max_size: int | None
    max_queue: int
    write_limit: int
    callbacks: Literal["thread", "loop"]
    output: Literal["cell"] | None


class WebSocketOptions(CommonOptions, total=False):
    """What WebSocket() and connect() take, all by keyword: for ``**options: Unpack[WebSocketOptions]`` in a function of
    your own. All times in seconds, all sizes in bytes; behind each name its default.

    ``ssl``            None        the SSLContext for wss:// and for an https:// proxy; None: a default one, which
                                   verifies certificate and host name. Client certificates: its load_cert_chain()
    ``headers``        ()          more headers for the handshake, a mapping or pairs; repeated names are allowed in
                                   pairs
    ``origin``         None        the Origin header
    ``auth``           None        (user, password) for Basic authentication (RFC 7617), instead of
                                   ``user:password@`` in the URL
    ``cookies``        None        a mapping, or an http.cookiejar.CookieJar, which also takes up what the handshake
                                   sets
    ``proxy``          True        the URL of a proxy: http, https, socks4a, socks5h, or socks4, socks5: names looked up
                                   here; True: from the environment (wss_proxy, ws_proxy, https_proxy, http_proxy,
                                   all_proxy, no_proxy); None: none
    ``unix``           None        the path of a Unix socket to connect to; host and port of the URL are then only names
    ``sock``           None        a connected stream socket to use, which is taken over: the caller's object is left
                                   without it
    ``compression``    "deflate"   offers permessage-deflate (RFC 7692), a Deflate(...) with settings; None does not
    ``open_timeout``   10.0        for DNS, TCP, TLS and handshake together; None: no limit
    ``close_timeout``  10.0        for the close handshake, counted anew whenever the server takes data; then the socket
                                   is aborted
    ``ping_interval``  20.0        after so much silence a ping is sent; None turns keepalive off
    ``ping_timeout``   20.0        after so much more silence the connection is given up; None: never
    ``max_size``       16 * 2**20  of a received message, after decompression; None: no limit
    ``max_queue``      65_536      messages in the inbox (which also has a bound of 64 MiB); when full, the socket is
                                   not read, nor are pings answered that stand behind
    ``write_limit``    16 * 2**20  above so many bytes of bufferedAmount, and 128 more for each message, send() waits
                                   for the peer
    ``callbacks``      "thread"    on a thread of the socket's own; "loop": on the loop thread, for short callbacks only
    ``output``         None        where a Jupyter notebook shows what callbacks print; "cell": under the cell that made
                                   the socket; None: under the one that runs, or ran last. Elsewhere it does nothing
    """

    headers: Headers
    sock: socket.socket | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to open a connection and what to expect of it: the WebSocketOptions, checked, and with their defaults."""

    ssl: tls.SSLContext | None = None
    headers: tuple[tuple[str, str], ...] = field(repr=False, default=())
    origin: str | None = None
    auth: tuple[str, str] | None = field(repr=False, default=None)
    cookies: Cookies | None = field(repr=False, default=None)
    proxy: str | Proxy | Literal[True] | None = field(repr=False, default=True)
    unix: str | bytes | os.PathLike[str] | None = None
    sock: socket.socket | None = None
    compression: Literal["deflate"] | Deflate | None = "deflate"
    open_timeout: float | None = 10.0
    close_timeout: float = 10.0
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    max_size: int | None = 16 * 2**20
    max_queue: int = 65_536
    write_limit: int = 16 * 2**20
    callbacks: Literal["thread", "loop"] = "thread"
    output: Literal["cell"] | None = None

    def __post_init__(self) -> None:
        if self.ssl is not None:
            _check_context(self.ssl)
        deflate_of(self.compression)  # raises
        if self.callbacks not in _CALLBACKS:
            raise _no_choice("callbacks", self.callbacks, _CALLBACKS)
        if self.output not in _OUTPUT:
            raise _no_choice("output", self.output, _OUTPUT)
        if not all(map(is_, _numbers_of(self), _DEFAULT_NUMBERS)):  # which most connections have: they need no check
            self._take_numbers()
        if not isinstance(self.headers, tuple) or self.headers:
            object.__setattr__(self, "headers", _checked_headers(self.headers))
        if self.origin is not None:
            _check_header("Origin", self.origin)
        if self.auth is not None:
            _check_auth(self.auth)
        if self.cookies is not None:
            object.__setattr__(self, "cookies", checked_cookies(self.cookies))
        if self.headers or self.unix is not None or self.sock is not None:
            self._check_contradictions()
        if self.unix is not None:
            object.__setattr__(self, "unix", _checked_path(self.unix))
        if self.sock is not None:
            _check_connected(self.sock)
        if self.proxy is not None and self.proxy is not True:
            object.__setattr__(self, "proxy", _checked_proxy(self.proxy))

    def _take_numbers(self) -> None:
        self._take_number("open_timeout", "seconds, more than 0,", optional=True)
        self._take_number("ping_interval", "seconds, more than 0,", optional=True)
        self._take_number("ping_timeout", "seconds, more than 0,", optional=True)
        self._take_number("close_timeout", "seconds, more than 0")
        self._take_number("max_size", "a whole number of bytes, at least 1,", optional=True, whole=True)
        self._take_number("max_queue", "a whole number of messages, at least 1", whole=True)
        self._take_number("write_limit", "a whole number of bytes, at least 1", whole=True)

    def _take_number(self, name: str, expected: str, *, optional: bool = False, whole: bool = False) -> None:
        """Check a number, and bring it into the form with which all that follows can count."""
        value = getattr(self, name)
        if value is None and optional:
            return
        number = whole_number(value) if whole else real_number(value)
        expected = f"{name} must be {expected}{' or None' if optional else ''}"
        if number is None:
            raise TypeError(f"{expected}, not {shown(value)}")
        if not number > 0:
            raise InvalidArgument(f"{expected}, not {shown(value)}")
        if type(value) is not type(number) or number != value:
            object.__setattr__(self, name, number)

    def _check_contradictions(self) -> None:
        """What says two different things about the same is not guessed at."""
        proxy = None if self.proxy is True else self.proxy
        ways = {"unix": self.unix, "sock": self.sock, "proxy": proxy}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise InvalidArgument(f"{' and '.join(given)} contradict each other: give only one of them")
        for name, _ in self.headers:
            option = _OPTIONS_FOR_HEADERS.get(name.lower())
            if option is not None and getattr(self, option) is not None:
                raise InvalidArgument(f"{option} and the header {name} are both given: give only one")

    def request_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers the user asked for, by whatever option, but for those that a cookie jar has."""
        headers = list(self.headers)
        if self.origin is not None:
            headers.insert(0, ("Origin", self.origin))
        if self.auth is not None:
            headers.append(("Authorization", basic_authorization(":".join(self.auth))))
        if self.cookies and self.cookie_jar is None:
            headers.append(("Cookie", cookie_header(self.cookies)))  # type: ignore[arg-type]
        # Blanks around a value are none of it (RFC 9110 section 5.5); h11 refuses to send them.
        return tuple((name, value.strip(" \t")) for name, value in headers)

    @property
    def cookie_jar(self) -> CookieJar | None:
        """The jar that `cookies` is, if it is one."""
        return self.cookies if is_jar(self.cookies) else None  # type: ignore[return-value]

    def proxy_for(self, url: URL) -> Proxy | None:
        """The proxy through which to connect to ``url``. Raises InvalidArgument for a bad one of the environment."""
        if self.proxy is not True:
            return self.proxy  # type: ignore[return-value]
        if self.unix is not None or self.sock is not None:
            return None
        return proxy_of_environment(url, os.environ)


_NUMBERS = ("open_timeout", "ping_interval", "ping_timeout", "close_timeout", "max_size", "max_queue", "write_limit")
_DEFAULT_NUMBERS = tuple({option.name: option.default for option in fields(Options)}[name] for name in _NUMBERS)
_numbers_of = attrgetter(*_NUMBERS)


def check_names(function: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Raise what Python raises for an argument that a function does not know, if one of those `given` is not."""
    if known.issuperset(given):
        return
    from difflib import get_close_matches  # few ever need it

    name = next(name for name in given if name not in known)
    close = get_close_matches(name, [*sorted(known), "url", "protocols"], 1, 0.75)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def with_options_shown(kind: type, **other_defaults: object) -> Callable[[F], F]:
    """Have help() and notebooks show one by one the options that a function takes as `**options: Unpack[kind]`.

    ``other_defaults``  of those options that are none of Options
    """
    defaults = {option.name: option.default for option in fields(Options)} | other_defaults
    types = kind.__annotations__
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name].__forward_arg__)
        for name, default in defaults.items()
        if name in types
    ]

    def show(function: F) -> F:
        signature = inspect.signature(function)
        others = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        vars(function)["__signature__"] = signature.replace(parameters=[*others, *options])
        return function

    return show


def _no_choice(name: str, value: object, choices: tuple[object, ...]) -> InvalidArgument:
    return InvalidArgument(f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(value)}")


def _check_auth(auth: Any) -> None:
    if not (isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(part, str) for part in auth)):
        raise TypeError("auth must be a tuple of two str, (user, password), or None")  # without the value: a secret
    if ":" in auth[0]:
        raise InvalidArgument("the user name in auth has a colon, which ends it in Basic authentication (RFC 7617)")
    try:
        ":".join(auth).encode()
    except UnicodeEncodeError:
        raise InvalidArgument("auth has a lone surrogate, which has no form in UTF-8") from None


def _checked_proxy(proxy: Any) -> Proxy:
    if isinstance(proxy, Proxy):
        return proxy
    if not isinstance(proxy, str):
        raise TypeError(f"proxy must be a URL, True (from the environment) or None, not {type(proxy).__name__}")
    return parse_proxy(proxy)


def _checked_path(path: str | bytes | os.PathLike[str]) -> str | bytes:
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidArgument("unix: Python has no Unix sockets on this platform")
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"unix must be a path or None, not {type(path).__name__}")
    path = os.fspath(path)
    if not path:
        raise InvalidArgument("unix must be the path of a socket, not an empty one")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"unix: the path {shown(path)} has no form in {error.encoding}") from None
    if b"\0" in encoded and encoded[0]:  # an abstract address of Linux begins with one; a path would end there
        raise InvalidArgument(f"unix: the path {shown(path)} has a zero byte")
    return path


def _check_context(context: Any) -> None:
    import ssl  # who has a context has imported it already

    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext or None, not {type(context).__name__}")


def _check_connected(sock: Any) -> None:
    with importing():
        import ssl

    if isinstance(sock, ssl.SSLSocket):
        raise TypeError("sock must be a plain socket, not an SSLSocket: TLS is done by the WebSocket, for a wss:// URL")
    if not isinstance(sock, socket.socket):
        raise TypeError(f"sock must be a socket.socket or None, not {type(sock).__name__}")
    if sock.type != socket.SOCK_STREAM:
        raise InvalidArgument(f"sock must be a stream socket, not one of type {sock.type!r}")
    try:
        sock.getpeername()
    except OSError as error:
        raise InvalidArgument(f"sock must be connected; it is not: {error.strerror}") from error


def check_timeout(timeout: Any) -> float | None:
    """Return `timeout`, None or a number of seconds, 0 or more, as a float; raise if it is something else."""
    if timeout is None:
        return None
    seconds = real_number(timeout)
    if seconds is None:
        raise TypeError(f"timeout must be a number of seconds or None, not {shown(timeout)}")
    if not seconds >= 0:
        raise InvalidArgument(f"timeout must be 0 or more seconds, or None, not {shown(timeout)}")
    return seconds


def _checked_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    if isinstance(headers, str) or not isinstance(headers, Iterable):
        raise TypeError(f"headers must be a mapping or (name, value) tuples, not {type(headers).__name__}")
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            what = f"of type {type(pair).__name__}" if not isinstance(pair, tuple) else f"a tuple of {len(pair)}"
            raise TypeError(f"headers must be a mapping or (name, value) tuples; one entry is {what}")
        _check_header(*pair)
    return pairs


def _check_header(name: Any, value: Any) -> None:
    """Names only, never values, in the messages: a value may be a secret."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"header {name_in_part(name)}: name and value must be str, not {type(value).__name__}")
    if not _TOKEN.fullmatch(name):
        raise InvalidArgument(f"{name_in_part(name)} is not a header name (RFC 9110 section 5.1)")
    if name.lower() in _HANDSHAKE_HEADERS:
        raise InvalidArgument(f"the header {name} is set by the handshake itself")
    if not _VALUE.fullmatch(value) or (not value.isascii() and not _is_latin_1(value)):
        what = "a line break, a control or a non-Latin-1 character"
        raise InvalidArgument(f"the value of the header {in_short(name)} has {what}")


def _is_latin_1(value: str) -> bool:
    return all(ord(character) < 256 for character in value)
