"""URLs and sub-protocols: checks what the user passed in and brings it into the form that goes on the wire.

The parser follows the WHATWG URL standard (https://url.spec.whatwg.org) for "special" schemes, as the browser's
WebSocket does, with one difference: host names are mapped by IDNA 2003, which is what Python's standard library
has. Names that IDNA 2008 maps differently ("faß.example") can be given in their "xn--" form.

No error message of this module contains the credentials of a URL, however malformed the URL is.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from .._base.escape import MOST_SHOWN, in_short
from .._base.late import importing
from ..exceptions import InvalidArgument, InvalidURL

__all__ = [
    "URL",
    "Problem",
    "basic_authorization",
    "parse_authority",
    "parse_protocols",
    "parse_url",
    "without_credentials",
]

_SECURE_BY_SCHEME = {"ws": False, "http": False, "wss": True, "https": True}
_DEFAULT_PORTS = {False: 80, True: 443}
_C0_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_SLASHES = "/\\"
_AUTHORITY_END = re.compile(r"[/\\?]")
_IDNA_DOTS = re.compile("[.\u3002\uff0e\uff61]")
# https://url.spec.whatwg.org/#forbidden-domain-code-point
_FORBIDDEN_IN_HOST = re.compile(r"[\x00-\x20\x7f#/:<>?@\[\\\]^|%]")
_IPV4_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]*)|0(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*)", re.ASCII)
# https://url.spec.whatwg.org/#path-percent-encode-set and #special-query-percent-encode-set
_ENCODED_IN_PATH = re.compile(r"""[^\x21-\x7e]|["#<>?^`{}]""")
_ENCODED_IN_QUERY = re.compile(r"""[^\x21-\x7e]|["#<>']""")
_LONGEST_HOST, _LONGEST_LABEL = 253, 63
_LONGEST_HOST_GIVEN = 12 * _LONGEST_HOST  # characters, percent-encoded: IDNA takes the square of their number in time
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class URL:
    """A WebSocket URL, taken apart; made by :func:`parse_url`.

    ``secure``       True for wss
    ``host``         ASCII, lower case; an IPv6 address without brackets, compressed
    ``port``         always set
    ``target``       path and query as they go into the request line: ASCII, percent-encoded, begins with "/"
    ``credentials``  "user:password", percent-decoded, or None; bytes that are not UTF-8 as surrogate escapes
    """

    secure: bool
    host: str
    port: int
    target: str
    credentials: str | None = field(repr=False, default=None)

    @property
    def host_header(self) -> str:
        """The value of the Host header: the default port is left out, an IPv6 address is in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.secure] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The serialized origin, as in ``MessageEvent.origin``."""
        return f"{'wss' if self.secure else 'ws'}://{self.host_header}"

    @property
    def href(self) -> str:
        """The serialized URL, without the credentials."""
        return self.origin + self.target

    def authorization(self) -> str | None:
        """The value of the Authorization header, or None without credentials."""
        return None if self.credentials is None else basic_authorization(self.credentials)

    @property
    def shown(self) -> str:
        """The URL for logs and errors: without credentials and query, which may hold a token."""
        path, question_mark, _ = self.target.partition("?")
        return self.origin + in_short(path) + ("?..." if question_mark else "")

    def join(self, location: str) -> URL:
        """Resolve the Location header of a redirect against this URL (RFC 3986 section 5.2).

        A fragment is dropped: RFC 9110 section 10.2.2 allows one there. The credentials of this URL are not passed on.
        Raises InvalidURL.
        """
        location = _clean(location).partition("#")[0]
        if _SCHEME.match(location):
            return parse_url(location)
        if len(location) >= 2 and location[0] in _SLASHES and location[1] in _SLASHES:
            return parse_url(f"{'wss' if self.secure else 'ws'}:{location}")
        path, question_mark, query = self.target.partition("?")
        if not location:
            path += question_mark + query
        elif location[0] in _SLASHES:
            path = ""
        elif location[0] != "?":
            path = path[: path.rindex("/") + 1]
        return parse_url(self.origin + path + location)


def basic_authorization(credentials: str) -> str:
    """The value of an Authorization header for "user:password" (RFC 7617, UTF-8)."""
    return "Basic " + base64.b64encode(credentials.encode("utf-8", "surrogateescape")).decode("ascii")


def parse_url(url: str) -> URL:
    """Parse a ``ws``, ``wss``, ``http`` or ``https`` URL as the browser's WebSocket constructor does.

    Raises InvalidURL (a ValueError), or TypeError if ``url`` is not a str.
    """
    if not isinstance(url, str):
        raise TypeError(f"the URL must be a str, not {type(url).__name__}")
    return _parse(url)


@functools.lru_cache(maxsize=32)
def _parse(url: str) -> URL:
    text = _clean(url)
    scheme = _SCHEME.match(text)
    if not scheme or scheme[1].lower() not in _SECURE_BY_SCHEME:
        _refuse_scheme(text)
    secure = _SECURE_BY_SCHEME[scheme[1].lower()]
    if "#" in text:
        _refuse(text, "a WebSocket URL cannot have a fragment ('#'; in a path, query or password write it as %23)")
    rest = text[scheme.end() :].lstrip(_SLASHES)
    end = _AUTHORITY_END.search(rest)
    authority = rest[: end.start()] if end else rest
    try:
        host, port, credentials = parse_authority(authority)
        return URL(
            secure=secure,
            host=host,
            port=port or _DEFAULT_PORTS[secure],
            target=_parse_target(rest[len(authority) :]),
            credentials=credentials,
        )
    except Problem as problem:
        _refuse(text, str(problem))


def parse_authority(authority: str) -> tuple[str, int | None, str | None]:
    """Return the host, the port if there is one, and the credentials, of what stands between "//" and the path.

    Raises Problem.
    """
    if _LONE_SURROGATE.search(authority):
        raise Problem("it has a lone surrogate, or a byte that is not UTF-8; such a byte can be percent-encoded: %ff")
    userinfo, _, host_and_port = authority.rpartition("@")
    host, port = _split_port(host_and_port)
    return _parse_host(host), None if port is None else _parse_port(port), _parse_credentials(userinfo)


def parse_protocols(protocols: str | Iterable[str]) -> tuple[str, ...]:
    """Check the sub-protocols to offer; a str is one sub-protocol.

    Raises InvalidArgument if one is not a token (RFC 6455 section 4.1) or occurs twice (compared without case),
    TypeError for anything that is not a str.
    """
    offered = (protocols,) if isinstance(protocols, str) else _as_tuple(protocols)
    seen: set[str] = set()
    for protocol in offered:
        if not isinstance(protocol, str):
            raise TypeError(f"a sub-protocol must be a str, not {type(protocol).__name__}")
        if not _TOKEN.fullmatch(protocol):
            raise InvalidArgument(
                f"invalid sub-protocol {in_part(protocol)}: needs one or more ASCII letters, digits or !#$%&'*+-.^_`|~"
            )
        if protocol.lower() in seen:
            twice = f"sub-protocol {in_part(protocol)} is given twice"
            raise InvalidArgument(f"{twice} (upper and lower case count as the same)")
        seen.add(protocol.lower())
    return offered


def _as_tuple(protocols: Iterable[str]) -> tuple[str, ...]:
    if type(protocols) is tuple:
        return protocols
    if isinstance(protocols, (bytes, bytearray)) or not isinstance(protocols, Iterable):
        raise TypeError(f"protocols must be a str or an iterable of str, not {type(protocols).__name__}")
    return tuple(protocols)


def in_part(name: str) -> str:
    """The beginning of a sub-protocol, for an error: the rest may be a token."""
    return repr(name if len(name) <= 6 else f"{name[:6]}...")


class Problem(Exception):
    """What is wrong with a part of a URL; who catches it adds the URL, without its credentials."""


def _refuse(text: str, problem: str) -> NoReturn:
    raise InvalidURL(f"invalid URL {without_secrets(text)!r}: {problem}") from None


def _refuse_scheme(text: str) -> NoReturn:
    shown = without_secrets(text)
    problem = "needs ws:// or wss:// at the beginning"
    scheme = _SCHEME.match(shown)
    without_scheme = not scheme or re.match(r"\d", shown[scheme.end() :])  # "localhost:8080" has scheme "localhost"
    guess = shown.lstrip(_SLASHES)
    if without_scheme and guess and (guess == shown or shown[:2] == "//"):
        problem += f"; did you mean 'ws://{guess}'?"
    _refuse(text, problem)


def without_secrets(text: str) -> str:
    """The same without query and fragment, which may hold a token, and without most of what is too long to be read."""
    shown, query, _ = without_credentials(text).partition("?")
    shown, fragment, _ = shown.partition("#")
    if len(shown) > MOST_SHOWN:
        return in_short(shown)
    return f"{shown}{query or fragment}..." if query or fragment else shown


def without_credentials(text: str) -> str:
    """Cut out all that may be a user name or password: in a malformed URL, everything up to the last "@"."""
    before, at_sign, after = text.rpartition("@")
    if not at_sign:
        return text
    scheme = re.match(r"(?i:wss?|https?|socks(?:4a?|5h?)?):[/\\]*|[A-Za-z][A-Za-z0-9+.\-]*:[/\\]+", before)
    return (scheme[0] if scheme else "") + after


def _clean(url: str) -> str:
    """Strip and remove what the URL standard ignores; lone surrogates become U+FFFD (a USVString)."""
    text = url.strip(_C0_CONTROLS_AND_SPACE).translate({9: None, 10: None, 13: None})
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _split_port(host_and_port: str) -> tuple[str, str | None]:
    colon = host_and_port.find(":", host_and_port.find("]") + 1)
    if colon < 0 or (host_and_port.startswith("[") and "]" not in host_and_port):
        return host_and_port, None
    return host_and_port[:colon], host_and_port[colon + 1 :] or None


def _parse_port(port: str) -> int:
    digits = port.lstrip("0")
    if not port.isascii() or not port.isdigit():
        raise Problem("the port is not a number (an IPv6 address needs brackets: [::1])")
    if not digits or len(digits) > 5 or int(digits) > 65535:
        raise Problem("the port must be from 1 to 65535")
    return int(digits)


def _parse_credentials(userinfo: str) -> str | None:
    user, _, password = userinfo.partition(":")
    if not user and not password:
        return None
    return ":".join(_decoded(part, "surrogateescape") for part in (user, password))


def _decoded(text: str, errors: str) -> str:
    """The text with its %XX decoded, as UTF-8."""
    if text.isascii() and "%" not in text:
        return text
    with importing():
        from urllib.parse import unquote_to_bytes  # few URLs need it

    return unquote_to_bytes(text).decode("utf-8", errors)


def _parse_host(host: str) -> str:
    if not host:
        raise Problem("the host name is missing; it must stand after ://")
    if host.startswith("["):
        return _parse_ipv6(host)
    if len(host) > _LONGEST_HOST_GIVEN:
        raise Problem(f"the host name has {len(host):,} characters; one may have {_LONGEST_HOST} bytes")
    domain = _to_ascii(_decoded(host, "replace"))
    if forbidden := _FORBIDDEN_IN_HOST.search(domain):
        raise Problem(f"the host name contains {forbidden[0]!r}")
    labels = domain.removesuffix(".").split(".")
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        return _parse_ipv4(labels)
    _check_lengths(domain, labels)
    return domain


def _check_lengths(domain: str, labels: list[str]) -> None:
    """What DNS can look up (RFC 1035 section 2.3.4)."""
    if len(domain.removesuffix(".")) > _LONGEST_HOST:
        raise Problem(f"the host name has {len(domain):,} bytes; one may have {_LONGEST_HOST}")
    longest = max(labels, key=len)
    if len(longest) > _LONGEST_LABEL:
        raise Problem(
            f"a part of the host name between two dots has {len(longest)} bytes; one may have {_LONGEST_LABEL}"
        )


def _to_ascii(domain: str) -> str:
    if domain.isascii():
        return domain.lower()
    try:
        labels = [_label_to_ascii(label) for label in _IDNA_DOTS.split(domain)]
    except UnicodeError:
        raise Problem("the host name cannot be encoded in ASCII (IDNA)") from None
    ascii_domain = ".".join(labels).lower()
    if not ascii_domain:
        raise Problem("the host name is empty once its invisible characters are removed")
    return ascii_domain


def _label_to_ascii(label: str) -> str:
    # ToASCII refuses an empty label, which the URL standard allows; a soft hyphen alone is one.
    with importing():
        import encodings.idna  # few hosts need it

    prepared = encodings.idna.nameprep(label)
    return encodings.idna.ToASCII(prepared).decode("ascii") if prepared else ""


def _parse_ipv4(labels: list[str]) -> str:
    """The forms of inet_aton: one to four decimal, octal or hexadecimal numbers, the last filling what remains."""
    numbers = [_parse_ipv4_number(label) for label in labels]
    *leading, last = numbers
    if len(numbers) > 4 or any(number > 255 for number in leading) or last >= 256 ** (5 - len(numbers)):
        raise Problem("the host is not a valid IPv4 address")
    value = last + sum(number << 8 * (3 - position) for position, number in enumerate(leading))
    return ".".join(map(str, value.to_bytes(4, "big")))


def _parse_ipv4_number(label: str) -> int:
    number = _IPV4_NUMBER.fullmatch(label)
    if not number or len(label) > 100:
        raise Problem("the host ends in a number but is not a valid IPv4 address")
    if number["hex"] is not None:
        return int(number["hex"] or "0", 16)
    return int(number["octal"], 8) if number["octal"] else int(number["decimal"])


def _parse_ipv6(host: str) -> str:
    if "%" in host:
        raise Problem("an IPv6 zone id ('%...') is not allowed in a URL, as in browsers")
    with importing():
        import ipaddress  # few hosts need it

    try:
        address = ipaddress.IPv6Address(host[1:].removesuffix("]") if host.endswith("]") else "")
    except ValueError:
        raise Problem("the host is not a valid IPv6 address in brackets, such as [::1]") from None
    if address.ipv4_mapped:  # Python 3.13 writes "::ffff:1.2.3.4", the URL standard "::ffff:102:304"
        value = int(address.ipv4_mapped)
        return f"::ffff:{value >> 16:x}:{value & 0xFFFF:x}"
    return str(address)


def _parse_target(text: str) -> str:
    path, question_mark, query = text.partition("?")
    return _encode(_ENCODED_IN_PATH, _parse_path(path)) + question_mark + _encode(_ENCODED_IN_QUERY, query)


def _parse_path(path: str) -> str:
    """Resolve dot segments; the result begins with a slash."""
    segments: list[str] = []
    *directories, name = path.replace("\\", "/").removeprefix("/").split("/")
    for segment in directories:
        _append_segment(segments, segment)
    if not _append_segment(segments, name):
        segments.append("")
    return "/" + "/".join(segments)


def _append_segment(segments: list[str], segment: str) -> bool:
    """Append ``segment``, or do what it says if it is a dot segment; return whether it was appended."""
    dots = re.sub("%2e", ".", segment, flags=re.IGNORECASE)
    if dots == "..":
        del segments[-1:]
    elif dots != ".":
        segments.append(segment)
        return True
    return False


def _encode(characters: re.Pattern[str], text: str) -> str:
    return characters.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)
