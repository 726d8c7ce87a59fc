"""What everybody in the soak knows: how the connections differ, what a message looks like, and what is reported.

Each process but the ledger's writes records to its standard output, a pipe, where they outlive it if it is killed.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# --- How the connections differ

MODES = ("thread", "loop", "recv", "query")
"""How messages are consumed: by handlers, by handlers on the loop, with recv(); by handlers, with queries besides."""

SERVERS = 2
TLS_EVERY = 20


class Profile(NamedTuple):
    """What distinguishes one of the connections, which its number, the key, decides."""

    key: int
    reconnecting: bool
    mode: str
    compressed: bool
    tls: bool
    relayed: bool
    server: int
    write_limit: int


def profile(key: int) -> Profile:
    """Return what the connection `key` is like."""
    return Profile(
        key=key,
        reconnecting=key % 2 == 1,
        mode=MODES[key // 2 % len(MODES)],
        compressed=key // 8 % 2 == 1,
        tls=key % TLS_EVERY in (6, 17),
        relayed=key // 3 % 4 != 0,
        server=key // 2 % 3 % SERVERS,
        write_limit=64 * 1024 if key % 7 == 0 else 16 * 2**20,
    )


def path_of(key: int, attempt: int) -> str:
    """Return the path of the URL that says which connection this is."""
    return f"/{key}/{attempt}"


def of_path(path: str) -> tuple[int, int]:
    """Return the key and the attempt in a path."""
    key, attempt = path.strip("/").split("/")
    return int(key), int(attempt)


# --- The messages

LARGEST = 200_000
EMPTY_EVERY = 50
_BYTES = random.Random(1).randbytes(2 * LARGEST)
_TEXT = "".join(random.Random(2).choices("abcdefgh ijklm\n\0äß€日本🐍", k=LARGEST)).encode()


def message(number: int, tag: int = 0, *, may_be_empty: bool = True) -> str | bytes:
    """Return message `number`: text or bytes, small ones above all, with its number and a checksum, or empty."""
    if may_be_empty and is_empty(number):
        return b""
    dice = random.Random(number)
    size = int(LARGEST * dice.random() ** 60)
    if number % 2:
        body = _TEXT[:size].decode(errors="ignore").encode()
        return (_head(number, tag, body) + body).decode()
    start = dice.randrange(LARGEST)
    body = _BYTES[start : start + size]
    return _head(number, tag, body) + body


def is_empty(number: int) -> bool:
    """Whether that message is empty."""
    return number % EMPTY_EVERY == EMPTY_EVERY - 1


def _head(number: int, tag: int, body: bytes) -> bytes:
    return b"%d:%d:%d:%d:" % (number, tag, len(body), zlib.crc32(body))


def read_message(data: str | bytes) -> tuple[int, int]:
    """Return the number and the tag of a message, NO_NUMBER for an empty one. ValueError if it is damaged."""
    if not data:
        return NO_NUMBER, 0
    raw = data.encode() if isinstance(data, str) else data
    if raw.count(b":") < 4:
        raise ValueError(f"a message is damaged: {len(raw)} bytes, {raw[:60]!r}")
    number, tag, size, checksum, body = raw.split(b":", 4)
    if len(body) != int(size) or zlib.crc32(body) != int(checksum) or int(number) % 2 != isinstance(data, str):
        raise ValueError(f"a message is damaged: {raw[:60]!r}")
    return int(number), int(tag)


# --- The records

RECORD = struct.Struct("<cHII")
NO_NUMBER = 2**32 - 1

SENT, AT_SERVER = b"S", b"R"  # towards the server: accepted by send(); received
PUSHED, HEARD = b"s", b"r"  # towards the client: given to the connection by the server; received
ALL_PUSHED = b"C"  # the connection has ended cleanly
ALL_SENT = b"F"  # ... and the client closed first
AT_RISK = b"A"  # so many messages (the number), as the socket says
DAMAGED = b"D"  # a message, a reply or a frame is not what it was
ERROR = b"X"  # what must not happen in the client
ANSWERED, UNANSWERED = b"Q", b"U"  # a query
READY, AT_REST = b"0", b"Z"  # the process listens, or has had its first connection; it has ended all of them


class Record(NamedTuple):
    """Something that happened: ``kind``, of which connection, and the number of a message, or how many."""

    kind: bytes
    key: int = 0
    attempt: int = 0
    number: int = 0


class Reporter:
    """Writes records to standard output."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lock = threading.Lock()  # for writing

    def note(self, kind: bytes, key: int = 0, attempt: int = 0, number: int = 0) -> None:
        """Have a record written with the next flush()."""
        self._buffer += RECORD.pack(kind, key, attempt, number)  # one atomic step

    def flush(self) -> None:
        """Write what was noted."""
        with self._lock:
            size = len(self._buffer)
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            while data:
                data = data[os.write(1, data) :]


def read_records(descriptor: int) -> Iterator[list[Record]]:
    """Generate what a process reports until it ends; a record that it could not finish is none."""
    rest = b""
    while data := os.read(descriptor, 1 << 16):
        rest += data
        whole = len(rest) // RECORD.size * RECORD.size
        yield [Record(*fields) for fields in RECORD.iter_unpack(rest[:whole])]
        rest = rest[whole:]
