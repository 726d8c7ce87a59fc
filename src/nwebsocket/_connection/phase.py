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


STEPS: Mapping[Phase, frozenset[Phase]] = {
    Phase.CONNECTING: frozenset({Phase.CONNECTING, Phase.OPEN, Phase.CLOSING, Phase.CLOSED}),
    Phase.OPEN: frozenset({Phase.CLOSING, Phase.CLOSED, Phase.CONNECTING}),
    Phase.CLOSING: frozenset({Phase.DRAINING, Phase.CLOSED, Phase.CONNECTING}),
    Phase.DRAINING: frozenset({Phase.DRAINING, Phase.CLOSED, Phase.CONNECTING}),
    Phase.CLOSED: frozenset(),
}
"""The legal ones. Only a socket that comes back goes to CONNECTING; another failure may come while it drains."""

READY_STATES: Mapping[Phase, ReadyState] = {
    Phase.CONNECTING: ReadyState.CONNECTING,
    Phase.OPEN: ReadyState.OPEN,
    Phase.CLOSING: ReadyState.CLOSING,
    Phase.DRAINING: ReadyState.CLOSING,
    Phase.CLOSED: ReadyState.CLOSED,
}
"""What the user sees of each."""
