"""The head of an HTTP answer, from a server or a proxy: status line and headers (RFC 9112). Pure.

wsproto is not asked here: it takes the head of an interim answer (100, 103) for the final one, sets no limit, and lets
much pass that is no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .._base.escape import in_short

MAX_HEAD_BYTES = 65_536

_BEGINNING = b"HTTP/1."
_BLANK_LINE = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(r"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: ([\t -~\xa0-\xff]*))?")


class Head(NamedTuple):
    """``status`` and the beginning of its reason ``phrase``, all ``headers`` in order as they were written, and the
    ``raw`` bytes.
    """

    status: int
    phrase: str
    headers: list[tuple[str, str]]
    raw: bytes


class HeadReader:
    """Gathers bytes until the head of the final answer is complete.

    ``who``    whose answer it is, for the messages of errors: "the server"
    ``asked``  what it should answer: "CONNECT"; used when it does not answer at all
    ``error``  makes the exception to raise from a message
    ``rest``   what has come and belongs to no head yet; afterwards, what follows the final one
    """

    __slots__ = ("_asked", "_error", "_room", "_searched", "_who", "rest")

    def __init__(self, who: str, asked: str, error: Callable[[str], Exception]) -> None:
        self.rest = bytearray()
        self._who = who
        self._asked = asked
        self._error = error
        self._searched = 0  # how much of `rest` holds no end of a head
        self._room = MAX_HEAD_BYTES  # what the heads still to come may be long

    def receive(self, data: bytes) -> Head | None:
        """Take in bytes, b"" at the end of the stream; return the final head, or None to ask for more. Interim ones
        (1xx, but for 101) are skipped.
        """
        if not data:
            raise self._ended_early()
        self.rest += data
        while (raw := self._next_head()) is not None:
            head = self._parse(raw)
            if not 100 <= head.status < 200 or head.status == 101:
                return head
        return None

    def _next_head(self) -> bytes | None:
        if self.rest[: len(_BEGINNING)] != _BEGINNING[: len(self.rest)]:
            raise self._error(f"{self._who} does not speak HTTP/1.1; its answer begins {show(self.rest)}")
        end = _BLANK_LINE.search(self.rest, max(0, self._searched - 2))
        size = len(self.rest) if end is None else end.end()
        if size > self._room:
            raise self._error(f"the headers of {self._who}'s answer are longer than {MAX_HEAD_BYTES:,} bytes")
        if end is None:
            self._searched = size
            return None
        head = bytes(self.rest[:size])
        del self.rest[:size]
        self._searched = 0
        self._room -= size
        return head

    def _parse(self, raw: bytes) -> Head:
        status_line, *lines = re.split(r"\r?\n", raw.decode("latin-1"))
        status = _STATUS_LINE.fullmatch(status_line)
        if status is None:
            raise self._error(f"{self._who}'s answer has no HTTP status line; it begins {show(status_line)}")
        headers = []
        for line in lines[:-2]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise self._error(f"{self._who}'s answer has a malformed header line: {show(line)}")
            headers.append((name, value.strip(" \t")))
        return Head(int(status[1]), in_short(status[2] or ""), headers, raw)

    def _ended_early(self) -> Exception:
        if self.rest or self._room < MAX_HEAD_BYTES:
            return self._error(f"{self._who} closed the connection in the middle of its answer")
        return self._error(f"{self._who} closed the connection without answering {self._asked}")


def show(value: object) -> str:
    """A value from the peer, fit for an error message: at most the first 40 characters or bytes of it."""
    if value is None:
        return "missing"
    if isinstance(value, bytearray):
        value = bytes(value)
    return repr(value[:40] if isinstance(value, (str, bytes)) else value)
