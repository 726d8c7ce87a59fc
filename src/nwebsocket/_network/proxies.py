"""Which proxy a connection goes through: the one that the user names, or that of the environment. Pure.

The variables are those of curl: ``wss_proxy``, then ``https_proxy`` for wss; ``ws_proxy``, then ``https_proxy`` and
``http_proxy`` for ws; last ``all_proxy`` for both; ``no_proxy`` for the hosts that are reached without. The names in
lower case go before those in upper case. This machine itself (localhost, 127.0.0.1, ::1) is reached without, as by
browsers. No message of this module contains the credentials of a proxy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from .._base.late import importing
from .._protocol.url import URL, Problem, basic_authorization, parse_authority, without_secrets
from ..exceptions import InvalidArgument

_DEFAULT_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_VARIABLES = {
    True: ("wss_proxy", "https_proxy", "all_proxy"),
    False: ("ws_proxy", "https_proxy", "http_proxy", "all_proxy"),
}
_LOOPBACK = re.compile(r"(?:.+\.)?localhost\.?|127(?:\.[0-9]+){3}")
_MAX_SOCKS_BYTES = 255  # of a user name or password (RFC 1929 section 2)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy; ``scheme`` is http, https, socks4, socks4a, socks5 or socks5h."""

    scheme: str
    host: str
    port: int
    credentials: str | None = field(repr=False, default=None)

    @property
    def shown(self) -> str:
        """Its URL for logs and errors: without the credentials."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def authorization(self) -> str | None:
        """The value of the Proxy-Authorization header, or None without credentials."""
        return None if self.credentials is None else basic_authorization(self.credentials)

    def user_and_password(self) -> tuple[bytes, bytes]:
        """As SOCKS wants them; empty without credentials."""
        user, _, password = (self.credentials or "").encode("utf-8", "surrogateescape").partition(b":")
        return user, password


def parse_proxy(url: str, origin: str = "proxy") -> Proxy:
    """Parse the URL of a proxy; ``origin`` says where it comes from. A missing scheme means http.

    Raises InvalidArgument; also if it is a SOCKS proxy and the package for that is missing.
    """
    text = url.strip()
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower() if separator else "http"
    scheme = "socks5h" if scheme == "socks" else scheme  # as desktops write it into all_proxy
    authority, _, path = (rest if separator else text).partition("/")
    if scheme not in _DEFAULT_PORTS:
        _refuse(origin, text, f"its scheme must be one of {', '.join(_DEFAULT_PORTS)}")
    if path or "?" in authority or "#" in authority:
        _refuse(origin, text, "nothing may follow the port")
    try:
        host, port, credentials = parse_authority(authority)
    except Problem as problem:
        _refuse(origin, text, str(problem))
    proxy = Proxy(scheme, host, port or _DEFAULT_PORTS[scheme], credentials)
    if scheme.startswith("socks"):
        _check_socks(proxy, origin)
    return proxy


def _check_socks(proxy: Proxy, origin: str) -> None:
    from importlib.util import find_spec

    user, password = proxy.user_and_password()
    if max(len(user), len(password)) > _MAX_SOCKS_BYTES:
        raise InvalidArgument(f"{origin} {proxy.shown}: user and password may have {_MAX_SOCKS_BYTES} bytes each")
    if proxy.scheme.startswith("socks4") and password:
        raise InvalidArgument(f"{origin} {proxy.shown}: SOCKS 4 knows a user, but no password; use socks5://")
    if proxy.scheme.startswith("socks4") and b"\0" in user:
        raise InvalidArgument(f"{origin} {proxy.shown}: the user has a zero byte, which ends it in SOCKS 4")
    if find_spec("socksio") is None:
        raise InvalidArgument(f"{origin} {proxy.shown}: SOCKS needs one more package: pip install 'nwebsocket[proxy]'")


def _refuse(origin: str, text: str, problem: str) -> NoReturn:
    raise InvalidArgument(f"{origin} {without_secrets(text)!r} is not a proxy's URL: {problem}") from None


def proxy_of_environment(url: URL, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that the environment has for ``url``, if any. Raises InvalidArgument for a malformed one."""
    if _is_loopback(url.host):
        return None
    for name in _VARIABLES[url.secure]:
        value = _variable(name, environ)
        if value:
            bypassed = _is_bypassed(url, _variable("no_proxy", environ))
            return None if bypassed else parse_proxy(value, f"the environment's {name}")
    return None


def _is_loopback(host: str) -> bool:
    """Whether it is this machine itself, by a name that may mean nothing else (RFC 6761 section 6.3) or an address."""
    if ":" not in host:
        return _LOOPBACK.fullmatch(host) is not None
    with importing():
        import ipaddress

    with suppress(ValueError):
        address = ipaddress.IPv6Address(host)
        return (address.ipv4_mapped or address).is_loopback
    return False


def _variable(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name)
    if value is None and (name != "http_proxy" or "REQUEST_METHOD" not in environ):
        # A CGI script's HTTP_PROXY is a header of its client's (https://httpoxy.org).
        value = environ.get(name.upper())
    return (value or "").strip()


def _is_bypassed(url: URL, no_proxy: str) -> bool:
    return any(_matches(url, entry) for entry in re.split(r"[\s,]+", no_proxy.lower()) if entry)


def _matches(url: URL, entry: str) -> bool:
    """Whether ``entry`` is ``*``, an address, a network (10.0.0.0/8), or a name, which means its subdomains, too."""
    if entry == "*":
        return True
    with importing():
        import ipaddress

    with suppress(ValueError):
        return ipaddress.ip_address(url.host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, port = entry, ""
    if with_port := re.fullmatch(r"(\[.*\]|[^:]*):([0-9]+)", entry):
        name, port = with_port.groups()
    name = _as_in_urls(name.strip("[]").removeprefix("*").strip("."))
    host = url.host.removesuffix(".")
    return port in ("", str(url.port)) and bool(name) and (host == name or host.endswith("." + name))


def _as_in_urls(name: str) -> str:
    """In ASCII (IDNA), as the host of a URL is; what cannot be one matches none."""
    if name.isascii():
        return name
    with suppress(Problem):
        return parse_authority(name)[0]
    return ""
