"""Which cells there are, and what `docs` promises for each: every fault at every stage, by both schemes, in all
ways to receive, with and without compression.

The conversation of a cell is: some messages one after the other, each echoed by the client; the message of the stage;
one more; and a close, the client's or the server's. A stage is a place in one direction of that: "before" a byte of it
has passed, or within.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from relay import FAULTS, Direction

from nwebsocket import (
    ConnectionFailed,
    ConnectionLost,
    HandshakeError,
    KeepaliveTimeout,
    OpenTimeout,
    ProtocolError,
    TLSError,
    WebSocketError,
)

#: Seconds of each time-out in the cells where it must be what ends the connection; elsewhere the defaults hold.
OPEN_TIMEOUT = CLOSE_TIMEOUT = 0.5
PING_INTERVAL, PING_TIMEOUT = 0.5, 0.4

#: How many messages are exchanged before the one of the stage: with two, the socket is lent to recv() from then on.
BEFORE = 2


class Stage(NamedTuple):
    """Where a fault strikes.

    ``phase``      of the conversation
    ``direction``  "up", from the client to the server, or "down"
    ``place``      within the phase
    ``plain``      how many bytes of the phase have passed in that direction, without TLS
    ``tls``        ... and with it
    """

    phase: str
    direction: Direction
    place: str
    plain: int
    tls: int

    def __str__(self) -> str:
        return f"{self.phase} {self.direction} {self.place}"


class Cell(NamedTuple):
    """One field of the matrix.

    ``way``      how the client receives: by handlers on their "thread", on the "loop", or by "recv"
    ``deflate``  whether the messages are compressed
    """

    stage: Stage
    fault: str
    secure: bool
    way: str
    deflate: bool

    def __str__(self) -> str:
        scheme = "wss" if self.secure else "ws"
        return f"{self.fault} at {self.stage}, {scheme}, {self.way}, {'deflate' if self.deflate else 'plain'}"

    @property
    def offset(self) -> int:
        """How many bytes of the phase pass."""
        return self.stage.tls if self.secure else self.stage.plain

    @property
    def bit(self) -> int:
        """Which bit of the next byte "corrupt" flips: in the first byte of a frame a reserved one, in the second the
        mask bit, in ASCII the one that makes it something else.
        """
        return 7 if self.stage.place in ("header", "payload", "body") else 4


# --- Stages: the places of each phase, with the bytes before them without TLS and with it. A record of TLS has a header
# of 5 bytes and 17 bytes at its end; a frame has one of 2 bytes, and up a mask of 4.

_BEFORE = {"before": (0, 0)}
_HELLO = {**_BEFORE, "header": (3, 3), "body": (60, 60)}
_FRAME = {**_BEFORE, "header": (1, 3), "payload": (12, 20)}
_CLOSE_DOWN = {**_BEFORE, "header": (1, 3), "payload": (2, 12)}
_CLOSE_UP = {**_BEFORE, "header": (1, 3), "payload": (6, 12)}

Places = dict[str, tuple[int, int]]

PHASES: dict[str, dict[Direction, Places]] = {
    "dns": {"up": {"question": (0, 0)}},
    "connect": {"up": {"syn": (0, 0)}},
    "tls hello": {"up": _HELLO, "down": _HELLO},
    "tls finished": {"up": {**_BEFORE, "body": (20, 20)}},
    "request": {"up": {**_BEFORE, "body": (6, 20)}},
    "response": {"down": {**_BEFORE, "body": (10, 20)}},
    "idle": {"up": {"now": (0, 0)}, "down": {"now": (0, 0)}},
    "text": {"up": _FRAME, "down": _FRAME},
    "binary": {"up": _FRAME, "down": _FRAME},
    "large": {
        "up": {"length": (5, 4), "payload": (20_000, 20_000)},
        "down": {"length": (3, 4), "payload": (20_000, 20_000)},
    },
    "fragments": {"up": {**_FRAME, "between": (66, 66)}, "down": {**_FRAME, "between": (0, 0)}},
    "two": {"down": {"between": (0, 0)}},
    "our close": {"up": _CLOSE_UP, "down": {**_CLOSE_DOWN, "after": (8, 30)}},
    "server's close": {"down": _CLOSE_DOWN, "up": {**_CLOSE_UP, "after": (12, 34)}},
}

STAGES = [
    Stage(phase, direction, place, *offsets)
    for phase, directions in PHASES.items()
    for direction, places in directions.items()
    for place, offsets in places.items()
]

OPENING = ("dns", "connect", "tls hello", "tls finished", "request", "response")
MESSAGES = ("text", "binary", "large", "fragments", "two")

HARMLESS = ("nothing", "delay", "throttle", "split")
SILENT = ("black-hole", "stall")


def every_third() -> Iterator[Cell]:
    """A third of them, such that at each stage of the open connection any fault, scheme, way and compression meet."""
    ways = ("thread", "loop", "recv")
    for cell in cells():
        stage, fault = STAGES.index(cell.stage), list(FAULTS).index(cell.fault)
        if (stage + fault + cell.secure + ways.index(cell.way) + cell.deflate) % 3 == 0:
            yield cell


def cells() -> Iterator[Cell]:
    """All of them."""
    schemes, ways, compressions = (False, True), ("thread", "loop", "recv"), (False, True)
    for fields in itertools.product(STAGES, FAULTS, schemes, ways, compressions):
        cell = Cell(*fields)
        if _makes_sense(cell):
            yield cell


def _makes_sense(cell: Cell) -> bool:
    stage = cell.stage
    if stage.phase.startswith("tls") and not cell.secure:
        return False
    if stage.phase in OPENING and cell.deflate:
        return False  # nothing is compressed yet
    if stage.phase == "connect":
        return cell.fault in ("delay", "reset", "black-hole")  # there is no stream that could be harmed yet
    if stage.phase == "dns":
        return cell.fault in ("delay", "cut", "reset", "corrupt", "black-hole")
    if cell.fault == "nothing":
        return stage.phase == "idle" and stage.direction == "down"
    if cell.fault == "corrupt":
        # There is no byte to corrupt, or it announces bytes that never come, which is as silence: see the sweep.
        if stage.place in ("now", "after", "length"):
            return False
        # How compressed bytes are divided over fragments is up to zlib.
        return not (cell.deflate and (stage.phase, stage.direction) == ("fragments", "up") and stage.plain > 1)
    return True


# --- What is promised


class Expected(NamedTuple):
    """What the user of one cell's client must see.

    ``messages``  how many come, whole, once and in order
    ``errors``    the one error is of one of these kinds; None: there is none
    ``codes``     ... and the one close has one of these codes, or any: 1006 if and only if there is an error
    ``within``    seconds from the strike to the end, at most
    ``altered``   nobody can notice the harm: "a bit" of the stage's message is another, or "anything" may follow those
    ``opened``    whether the connection has been open; None: that depends
    """

    messages: int
    errors: tuple[type[WebSocketError] | None, ...]
    codes: tuple[int, ...] = (1006,)
    within: float = 0.0
    altered: str = ""
    opened: bool | None = True


def total(stage: Stage) -> int:
    """How many messages the server sends if all goes well."""
    return BEFORE + 2 + (stage.phase in ("two", "our close"))


def expected(cell: Cell) -> Expected:
    """What the documentation promises."""
    stage, fault = cell.stage, cell.fault
    if fault in HARMLESS or _is_decided(stage):
        return Expected(total(stage), (None,), (1000,), within=2.0)
    if stage.phase in OPENING:
        errors = _opening_errors(cell)
        return Expected(0, errors, within=OPEN_TIMEOUT if errors == (OpenTimeout,) else 0.0, opened=False)
    whole = _whole_messages(stage)
    if fault in SILENT and stage.phase == "our close":
        return Expected(whole, (ConnectionLost,), within=CLOSE_TIMEOUT)
    if fault in SILENT:
        return Expected(whole, (KeepaliveTimeout,), within=PING_INTERVAL + PING_TIMEOUT)
    if fault == "corrupt" and not cell.secure:
        return _corrupted(cell, whole)
    return Expected(whole, (ConnectionLost,))


def _is_decided(stage: Stage) -> bool:
    """Whether the client has the server's Close frame by then: it must answer, but nothing can go wrong any more."""
    return (stage.phase, stage.direction) == ("server's close", "up") or (
        (stage.phase, stage.place) == ("our close", "after")
    )


def _whole_messages(stage: Stage) -> int:
    """How many messages have come when the fault strikes."""
    if stage.phase == "idle":
        return BEFORE
    if stage.phase in MESSAGES:
        return BEFORE + (stage.direction == "up" or stage.phase == "two")
    return total(stage)


def _opening_errors(cell: Cell) -> tuple[type[WebSocketError], ...]:
    """Which step of opening has failed: the error says so.

    TLS 1.3's verdict on the client's last part comes when that is asking already, and this server just hangs up.
    """
    phase, fault = cell.stage.phase, cell.fault
    if fault in SILENT or (phase == "dns" and fault == "corrupt"):
        return (OpenTimeout,)  # an answer to no question of its is none to the C library, either
    if phase == "tls hello":
        return (TLSError,)
    if phase == "tls finished" and fault in ("cut", "reset"):
        return (HandshakeError, ConnectionFailed)  # who is still speaking finds out by writing or by reading
    if phase in ("dns", "connect") or fault == "reset":
        return (ConnectionFailed,)
    if fault == "corrupt" and cell.secure and phase == "response":
        return (TLSError,)
    return (HandshakeError,)


def _corrupted(cell: Cell, whole: int) -> Expected:
    """One bit without TLS: noticed in headers and in UTF-8. A server that notices closes, with a code that says why."""
    stage = cell.stage
    in_text = stage.phase in ("text", "fragments") and stage.place == "payload"
    in_data = stage.phase in MESSAGES and stage.place == "payload"
    noticed_by_us = stage.direction == "down"
    if in_data and cell.deflate:
        codes = (1000, 1006) if noticed_by_us else (1000, 1002, 1007)
        return Expected(whole, (None, ProtocolError) if noticed_by_us else (None,), codes, 2.0, "anything")
    if in_data and not in_text:
        return Expected(total(stage), (None,), (1000,), within=2.0, altered="a bit")
    if noticed_by_us:
        return Expected(whole, (ProtocolError,))
    return Expected(whole, (None,), (1007,) if in_text else (1002,), within=2.0)
