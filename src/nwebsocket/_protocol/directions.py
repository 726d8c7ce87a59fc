"""How far each direction of a connection has come; it only goes forward.

    sending    NOT_YET ──handshake──> OPEN ──our Close frame──────────> CLOSED
    receiving  NOT_YET ──handshake──> OPEN ─┬─the server's Close frame─> CLOSED
                                            └─what no server may send──> FAILED

After the server's Close frame nothing may be sent but ours; after a failure, what was answered to the messages before
it may go first.
"""

from __future__ import annotations

from enum import Enum, auto


class Direction(Enum):
    """How far one direction has come."""

    NOT_YET = auto()
    OPEN = auto()
    CLOSED = auto()
    FAILED = auto()


NOT_YET, OPEN, CLOSED, FAILED = Direction
"""To look one up in the class takes four times as long, and one is asked for with each message."""
