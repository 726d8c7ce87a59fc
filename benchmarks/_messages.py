"""What is sent: ticks of a feed in JSON, English prose, random bytes; and filler, which is nothing to a compressor."""

from __future__ import annotations

import re
from functools import cache
from random import Random

Message = str | bytes

TICK_SIZE = 106
TICKS = 4096
"""So many, in turn: none comes back while a compressor's window, 32 KiB, still holds it."""


def filler(size: int, kind: str) -> Message:
    """Return a message of `size` bytes, all the same; `kind` is "text" or "bytes"."""
    return "x" * size if kind == "text" else b"x" * size


@cache
def ticks() -> list[str]:
    """Return JSON objects like those of a feed of prices: counter, price, volume and time change each time."""
    source, price, milliseconds = Random(1), 20_000.0, 0
    made = []
    for number in range(TICKS):
        price = max(10_000.0, price + source.gauss(0, 3))
        milliseconds += source.randrange(1, 500)
        volume, time = source.uniform(0.01, 9), 1_767_182_400_000 + milliseconds
        made.append(
            f'{{"type": "tick", "n": {317_000 + number}, "symbol": "BTC-USD", '
            f'"price": {price:.2f}, "volume": {volume:.2f}, "ms": {time}}}'
        )
    return made


@cache
def prose() -> list[str]:
    """Return 64 texts of 4 KiB of English, which shrink to some 40 %: what Python says of itself in help()."""
    return pieces(4096, 64)


def pieces(size: int, number: int) -> list[str]:
    """Return so many texts of so many bytes, one after the other out of one book that begins again at its end."""
    from pydoc_data.topics import topics  # a megabyte of memory

    book = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics))).encode("ascii", "ignore").decode()
    book *= 1 + (size + 1) // len(book)
    last = len(book) - size + 1
    return [book[at : at + size] for at in (number * size % last for number in range(number))]


def random_bytes(size: int, number: int) -> list[bytes]:
    source = Random(1)
    return [source.randbytes(size) for _ in range(number)]


TEXTS = {"ticks": ticks, "prose": prose}
