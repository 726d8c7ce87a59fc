"""The life of one connection: its phases, and the steps between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ReadyState(IntEnum):
    """The states of a connection; it only moves forward (WHATWG WebSockets section 3.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Phase(IntEnum):
    """Where a connection is in its life.

    ``CONNECTING``  DNS, TCP, TLS, handshake; of a socket that comes back also the time between two attempts
    ``OPEN``        messages go both ways
    ``CLOSING``     close() was called, or the server's Close frame or a failure has come; what was accepted goes out
    ``DRAINING``    nothing is left to hear, and only our Close frame to say; what still comes is thrown away
    ``CLOSED``      it is over, for good
    """

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    DRAINING = 3
    CLOSED = 4


CONNECTING, OPEN, CLOSING, DRAINING, CLOSED = Phase
"""To look one up in the class takes four times as long, and some are asked for with each message."""

STEPS: Mapping[Phase, frozenset[Phase]] = {
    CONNECTING: frozenset({CONNECTING, OPEN, CLOSING, CLOSED}),
    OPEN: frozenset({CLOSING, CLOSED, CONNECTING}),
    CLOSING: frozenset({DRAINING, CLOSED, CONNECTING}),
    DRAINING: frozenset({DRAINING, CLOSED, CONNECTING}),
    CLOSED: frozenset(),
}
"""The legal ones. Only a socket that comes back goes to CONNECTING; another failure may come while it drains."""

READY_STATES: Mapping[Phase, ReadyState] = {
    CONNECTING: ReadyState.CONNECTING,
    OPEN: ReadyState.OPEN,
    CLOSING: ReadyState.CLOSING,
    DRAINING: ReadyState.CLOSING,
    CLOSED: ReadyState.CLOSED,
}
"""What the user sees of each."""
