"""The log: warnings for everybody, and at DEBUG level the story of each connection, fit to be mailed with a bug report.

    #1 = state    #1 > sent    #1 < received    #1 % timer    #1 ! error

What may be a secret is not in it: credentials, queries of URLs, values of headers that are not known to be harmless,
cookies, and what messages say.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from functools import cache

from .escape import in_short
from .logger import ContainedLogger

log = ContainedLogger("nwebsocket")

_HARMLESS = frozenset(
    {
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "date",
        "host",
        "origin",
        "retry-after",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-version",
        "server",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
    }
)
_LONGEST_VALUE = 1000  # characters
_numbers = itertools.count(1)


def is_harmless(name: str) -> bool:
    """Whether the value of this header is no secret."""
    return name.lower() in _HARMLESS


def size_of(value: str) -> str:
    """What is shown of a value that may be a secret."""
    return f"({len(value)} characters)"


class Trace:
    """The story of one connection.

    ``on``  whether any handler of the log wants it, as it was when the connection was made
    """

    __slots__ = ("_number", "on")

    def __init__(self) -> None:
        self.on = log.isEnabledFor(logging.DEBUG)
        self._number = next(_numbers) if self.on else 0

    def begin(self, shown_url: str) -> None:
        """Write where it goes, and with what software."""
        self("=", shown_url)
        self("=", _software())

    def __call__(self, mark: str, text: str) -> None:
        """Write a line, if `on`. Who has to compute the text asks that before, and before the other methods."""
        if self.on:
            log.debug("#%d %s %s", self._number, mark, text)

    def head(self, mark: str, first_line: str, headers: Iterable[tuple[str, str]]) -> None:
        """Write the head of a request or an answer."""
        self(mark, first_line)
        for name, value in headers:
            shown = repr(in_short(value, _LONGEST_VALUE))[1:-1] if is_harmless(name) else size_of(value)
            self(mark, f"{in_short(name)}: {shown}")  # the logger escapes the name


@cache
def _software() -> str:
    import platform  # this and what else is imported here takes as long as all of `import nwebsocket`
    import ssl

    packages = [f"{name} {_version(name)}" for name in ("nwebsocket", "curio", "wsproto", "numpy", "socksio")]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([*packages, python, ssl.OPENSSL_VERSION, platform.platform()])


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def trace_messages(trace: Trace, messages: Sequence[str | bytes]) -> None:
    """Messages have come."""
    for message in messages:
        kind = "characters of text" if isinstance(message, str) else "binary bytes"
        trace("<", f"a message of {len(message):,} {kind}")
