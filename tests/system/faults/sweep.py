"""The sweep: a fault before every single byte of a small conversation, counted from the first one of the connection.

What is promised follows from what had passed by then, which the server knows: see `expected()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lab import Place
from matrix import CLOSE_TIMEOUT, PING_INTERVAL, PING_TIMEOUT, SILENT, Cell, Expected, Stage
from relay import Direction
from talk import OF_PHASE, SWEEP, conversation
from user import PATIENCE, SWEEP_OPEN_TIMEOUT

from nwebsocket import (
    ConnectionFailed,
    ConnectionLost,
    HandshakeError,
    KeepaliveTimeout,
    MessageTooBig,
    OpenTimeout,
    ProtocolError,
    TLSError,
)

FAULTS = ("cut", "reset", "black-hole", "half-close", "corrupt")

PHASES = [phase for phase in OF_PHASE if phase.startswith(SWEEP)]

#: Bytes of the server's Close frame, without TLS and with it.
_CLOSE_SIZE = {False: 8, True: 30}


def byte(phase: str, direction: Direction, number: int) -> Stage:
    """The stage that is a byte of the connection, so many behind the first one."""
    return Stage(phase, direction, f"byte {number}", number, number)


def undisturbed() -> Iterator[Cell]:
    """A connection of each kind, to see how many bytes it has."""
    for phase, secure, deflate in itertools.product(PHASES, (False, True), (False, True)):
        if deflate and secure:
            continue  # TLS shows nothing of it
        yield Cell(byte(phase, "down", 0), "nothing", secure, "thread", deflate)


def cells_like(cell: Cell, sizes: dict[Direction, int]) -> Iterator[Cell]:
    """All cells of the kind of one that had so many bytes; the ways to receive take turns, and so do the bits."""
    ways = itertools.cycle(("thread", "loop", "recv"))
    for direction, size in sizes.items():
        for number, fault in itertools.product(range(size), FAULTS):
            yield cell._replace(stage=byte(cell.stage.phase, direction, number), fault=fault, way=next(ways))


def expected(cell: Cell, place: Place) -> Expected:
    """What the documentation promises for a cell, given what had passed when the fault struck."""
    struck, total = place.relay.struck_at is not None and cell.fault in FAULTS, len(conversation(cell))
    passed = cell.offset if struck and cell.stage.direction == "down" else place.relay.down.passed
    whole = sum(boundary <= passed for boundary in place.talk.boundaries) - 1
    if cell.fault == "corrupt" and struck:
        asked_wrongly = cell.stage.direction == "up" and cell.offset < place.talk.request_end
        return _corrupted(-1 if asked_wrongly else whole)
    if not struck or (whole == total and passed >= place.talk.boundaries[-1] + _CLOSE_SIZE[cell.secure]):
        return Expected(total, (None,), (1000,), within=PATIENCE)
    if whole < 0 and cell.fault in SILENT:
        return Expected(0, (OpenTimeout,), within=SWEEP_OPEN_TIMEOUT, opened=False)
    if whole < 0:
        return Expected(0, (ConnectionFailed, HandshakeError, TLSError), opened=False)
    if cell.fault in SILENT:
        within = max(PING_INTERVAL + PING_TIMEOUT, CLOSE_TIMEOUT)
        return Expected(whole, (KeepaliveTimeout, ConnectionLost), within=within)
    return Expected(whole, (ConnectionLost,))


def _corrupted(whole: int) -> Expected:
    """Anything may follow, but not without an end, nor what is not documented."""
    within = 2 * PATIENCE + CLOSE_TIMEOUT
    errors = (None, ConnectionLost, KeepaliveTimeout, ProtocolError, MessageTooBig)
    if whole >= 0:
        return Expected(whole, errors, (), within, "anything")
    to_open = (ConnectionFailed, HandshakeError, TLSError, OpenTimeout)
    return Expected(0, errors + to_open, (), within, "anything", opened=None)
