"""Cookies for the opening handshake: from a mapping, or from an http.cookiejar.CookieJar, which also takes up what the
server sets (RFC 6265). The jar decides what is sent where and what is kept.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._url import URL
from .exceptions import ConnectionFailed, InvalidArgument

if TYPE_CHECKING:
    from http.cookiejar import CookieJar

    Cookies = Mapping[str, str] | CookieJar

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x20-\x3a\x3c-\x7e\xa0-\xff]*")  # no control character, and no semicolon: it ends the value


def check_cookies(cookies: Any) -> None:
    """Raise TypeError or InvalidArgument, which names the cookie and not its value, unless these can be cookies."""
    if cookies is None or is_jar(cookies):
        return
    if not isinstance(cookies, Mapping):
        raise TypeError(f"cookies must be a mapping, an http.cookiejar.CookieJar or None, not {type(cookies).__name__}")
    for name, value in cookies.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"cookie {name!r}: name and value must be str, not {type(value).__name__}")
        if not _TOKEN.fullmatch(name):
            raise InvalidArgument(f"{name!r} is not the name of a cookie (RFC 6265 section 4.1.1)")
        if not _VALUE.fullmatch(value):
            raise InvalidArgument(f"the value of the cookie {name} has a semicolon, a control or no Latin-1 character")


def is_jar(cookies: Any) -> bool:
    """Whether this is a CookieJar, or does as one; asked before whether it is a mapping, for some are both."""
    return hasattr(cookies, "add_cookie_header") and hasattr(cookies, "extract_cookies")


def cookie_header(cookies: Mapping[str, str]) -> str:
    """The value of the Cookie header for a mapping."""
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def header_from_jar(jar: CookieJar, url: URL) -> str | None:
    """The value of the Cookie header that the jar has for ``url``, if any."""
    request = _request(url)
    with _told_as_failure():
        jar.add_cookie_header(request)
    value = request.get_header("Cookie")
    return None if value is None else str(value)


def take_up(jar: CookieJar, url: URL, headers: list[tuple[str, str]]) -> None:
    """Give the jar what the answer to a request for ``url`` sets."""
    if any(name.lower() in ("set-cookie", "set-cookie2") for name, _ in headers):
        with _told_as_failure():
            jar.extract_cookies(_Answer(headers), _request(url))  # type: ignore[arg-type]


@contextlib.contextmanager
def _told_as_failure() -> Iterator[None]:
    """A jar and its policy may be anybody's code."""
    try:
        yield
    except Exception as error:
        raise ConnectionFailed(f"the cookie jar failed: {error!r}") from error


def _request(url: URL) -> Any:
    from urllib.request import Request  # whoever has a jar has imported this already

    # A jar tells by the scheme whether cookies that ask for a secure connection may be sent.
    return Request(f"http{url.href[2:]}")


class _Answer:
    """An answer as http.cookiejar wants it."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self._headers = headers

    def info(self) -> Any:
        from email.message import Message

        message = Message()
        for name, value in self._headers:
            message[name] = value
        return message
