"""Cookies for the opening handshake: from a mapping, or from an http.cookiejar.CookieJar, which also takes up what the
server sets (RFC 6265). The jar decides what is sent where and what is kept.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .._base.escape import in_short, name_in_part
from .._base.logger import contains
from ..exceptions import ConnectionFailed, InvalidArgument
from .url import URL

if TYPE_CHECKING:
    from http.cookiejar import CookieJar

    Cookies = Mapping[str, str] | CookieJar

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x20-\x3a\x3c-\x7e\xa0-\xff]*")  # no control character, and no semicolon: it ends the value
_HEADER = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

# As in browsers, which keep 150 or more cookies of a site, of 4 KiB each.
_MOST_COOKIES = 150
_MOST_CHARACTERS = 4096


def checked_cookies(cookies: Any) -> Cookies:
    """The same jar, or a dict: a mapping may be anybody's code, and these are asked for on the loop thread.

    Raises TypeError or InvalidArgument, which names the cookie and not its value, unless they can be cookies.
    """
    if is_jar(cookies):
        return cookies  # type: ignore[no-any-return]
    if not isinstance(cookies, Mapping):
        raise TypeError(f"cookies must be a mapping, an http.cookiejar.CookieJar or None, not {type(cookies).__name__}")
    taken = dict(cookies)
    for name, value in taken.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"cookie {name_in_part(name)}: name and value must be str, not {type(value).__name__}")
        if not _TOKEN.fullmatch(name):
            raise InvalidArgument(f"{name_in_part(name)} is not the name of a cookie (RFC 6265 section 4.1.1)")
        if not _VALUE.fullmatch(value):
            what = "a semicolon, a control or no Latin-1 character"
            raise InvalidArgument(f"the value of the cookie {in_short(name)} has {what}")
    return taken


def is_jar(cookies: Any) -> bool:
    """Whether this is a CookieJar, or does as one; asked before whether it is a mapping, for some are both."""
    return hasattr(cookies, "add_cookie_header") and hasattr(cookies, "extract_cookies")


def cookie_header(cookies: Mapping[str, str]) -> str:
    """The value of the Cookie header for a mapping."""
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def header_from_jar(jar: CookieJar, url: URL) -> str | None:
    """The value of the Cookie header that the jar has for ``url``, if any."""
    with _told_as_failure():
        request = _request(url)
        jar.add_cookie_header(request)
        value = request.get_header("Cookie")
        if value is None:
            return None
        header = str(value).strip(" \t")  # as h11 wants it
    if not _HEADER.fullmatch(header):
        raise ConnectionFailed("a cookie of the jar has a line break, a control or a non-Latin-1 character")
    return header


def take_up(jar: CookieJar, url: URL, headers: list[tuple[str, str]]) -> None:
    """Give the jar what the answer to a request for ``url`` sets.

    Of its Set-Cookie headers those of up to 4 KiB, and of these the first 150: a jar takes its time, and all sockets
    share the loop thread. Set-Cookie2 is ignored (RFC 6265).
    """
    values = [value for name, value in headers if name.lower() == "set-cookie" and len(value) <= _MOST_CHARACTERS]
    if values:
        others = [pair for pair in headers if pair[0].lower() not in ("set-cookie", "set-cookie2")]
        answer = _Answer([*others, *[("Set-Cookie", value) for value in values[:_MOST_COOKIES]]])
        with _told_as_failure():
            jar.extract_cookies(answer, _request(url))  # type: ignore[arg-type]


@contextlib.contextmanager
def _told_as_failure() -> Iterator[None]:
    """A jar and its policy may be anybody's code; sys.exit() in it must not end the loop thread. Its error, which may
    have cookies in its text, is the cause of ours.
    """
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, Exception) or contains()):
            raise
        raise ConnectionFailed(f"the cookie jar failed: {type(error).__name__}") from error


def _request(url: URL) -> Any:
    from urllib.request import Request  # the user who has a jar has imported this already

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
