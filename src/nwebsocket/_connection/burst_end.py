"""Who writes the end of a burst: the last messages that a thread has sent one after another.

    send() send() send() ... recv()
      |      `------`--------- + ---> queued: written by the sender, a piece at a time; the end when it comes to recv()
      `---> written at once

To have the loop thread write the end costs more than to send it. So a thread that has come to recv() in time after its
last bursts is left with the end of the next one, while the socket is lent to it (`reader.py`). Should it not come this
once, the timer that looks after such sockets (`lent_sockets.py`) has it written, up to 10 ms late, and the trust is
gone.
"""

from __future__ import annotations

from threading import get_ident

from .._base.clock import monotonic
from .._base.shortcuts import taken

AVAILABLE = taken("burst_end")
"""Whether the end of a burst is ever left to its sender."""

BURST = 256
"""Messages that the sender writes itself, in one piece."""

FIRST_PIECE = 32
"""The same at first, when the end is left to it: so the server has work while the rest of the burst is sent."""

_TRUSTED = 8
"""Ends in a row, written in time."""

_MOMENT, _EACH = 50e-6, 10e-6
"""Seconds, and more of them for each message of the end, from the last write to recv() that are in time."""

_LATE = 1e-3
"""Seconds after the last write when an end that is still there is late."""


class BurstEnd:
    """What is known of the ends of one connection's bursts."""

    __slots__ = ("_in_time", "_thread", "left", "piece")

    def __init__(self) -> None:
        self.left = False
        """The thread that sends is left with the present one."""
        self.piece = BURST
        """So many messages in the queue are written by who sends."""
        # Which thread has come to recv() last with an end, and how often in a row in time.
        self._thread: int | None = None
        self._in_time = 0

    def trusts(self) -> bool:
        """Whether the calling thread will come in time."""
        return self._in_time >= _TRUSTED and self._thread == get_ident()

    def leave(self) -> bool:
        """Leave the calling thread with the present one, if it can be trusted; return whether it is."""
        if not (AVAILABLE and self.trusts()):
            self.is_not_left()
            return False
        self.piece = FIRST_PIECE
        self.left = True
        return True

    def is_not_left(self) -> None:
        """The loop writes the present one."""
        self.piece = BURST

    def take(self) -> None:
        """Its thread has come, and writes it."""
        self.left = False

    def grow(self) -> None:
        """A piece was written: the next one may be larger."""
        self.piece = min(2 * self.piece, BURST)

    def comes(self, written_at: float, messages: int) -> None:
        """The calling thread has come to write an end of so many messages; something was written last at that time."""
        thread = get_ident()
        in_time = monotonic() - written_at < _MOMENT + _EACH * messages
        self._in_time = self._in_time + 1 if in_time and thread == self._thread else 0
        self._thread = thread

    def found(self, written_at: float) -> None:
        """The timer has found one: is it late?"""
        if monotonic() - written_at > _LATE:
            self._in_time = 0
