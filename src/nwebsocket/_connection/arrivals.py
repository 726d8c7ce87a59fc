"""Messages that have come, and of which a sifter takes what is its own, before anybody else hears of them.

The sifter runs code of the user's, so no lock is held. Its thread may be interrupted anywhere, and then the next one
goes on from there: a message leaves for the inbox, or is done with, in one call of C, and what the sifter has taken
elsewhere for the first message is kept until then.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from operator import length_hint
from typing import Any, Protocol


class Sifter(Protocol):
    """What takes messages out of those that come."""

    def takes(self, message: str | bytes, taken_out: list[Any]) -> bool: ...


class Arrivals:
    """Messages in the order in which they have come."""

    __slots__ = ("_messages", "_rest", "_taken_out")

    def __init__(self, messages: list[str | bytes]) -> None:
        self._messages = messages
        self._rest = iter(messages)
        self._taken_out: dict[int, list[Any]] = {}

    def sift(self, sifter: Sifter, sink: deque[str | bytes]) -> None:
        """Move to ``sink`` what the sifter does not take. By one thread at a time; again if that was interrupted."""
        messages, rest = self._messages, self._rest
        size = len(messages)
        while (position := size - length_hint(rest)) < size:
            if sifter.takes(messages[position], self._taken_out.setdefault(position, [])):
                next(rest)
            else:
                sink.extend(islice(rest, 1))
