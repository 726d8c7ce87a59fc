"""The life of one connection: its phase, what close() has asked for, and how it has ended."""

from __future__ import annotations

from threading import RLock
from typing import NamedTuple

from .._base.clock import monotonic
from ..exceptions import ConnectionClosed, InvalidStateError, Side, WebSocketError
from .phase import CLOSED, CLOSING, CONNECTING, OPEN, READY_STATES, STEPS, Phase, ReadyState
from .waiters import Waiters


class Ending(NamedTuple):
    """How a connection ended."""

    code: int
    reason: str
    clean: bool
    closed_first: Side | None
    error: WebSocketError | None  # why it failed; None after a clean close


class Life:
    """Where a connection is in its life.

    ``lock``        the connection's, which guards all attributes
    ``waiters``     those who are woken at each step
    ``comes_back``  whether there is another connection after one that is lost
    """

    def __init__(self, lock: RLock, waiters: Waiters, *, comes_back: bool) -> None:
        self._lock = lock
        self._waiters = waiters
        self._comes_back = comes_back
        self.phase = CONNECTING
        self.ending: Ending | None = None
        self.opened_at: float | None = None
        """When this connection, or the last one, was open first; None if it never was. Monotonic clock."""
        self.ended_at: float | None = None
        self.error_raised = False
        """A user's call has raised what ended the connection."""
        self.close_request: tuple[int | None, str] | None = None
        """The code and the reason that close() was given; set once. All messages accepted by then go out before."""
        self.close_requested_at = 0.0  # monotonic clock

    @property
    def state(self) -> ReadyState:
        """The phase as users see it."""
        return READY_STATES[self.phase]

    @property
    def was_open(self) -> bool:
        """Whether the connection is open or has been; of several, the present one or the last."""
        return self.opened_at is not None and self.phase is not CONNECTING

    @property
    def closed_locally(self) -> bool:
        """Whether close() was called."""
        return self.close_request is not None

    def enter(self, phase: Phase) -> None:
        """Take a step."""
        with self._lock:
            assert phase in STEPS[self.phase], f"from {self.phase.name} to {phase.name}"
            self.phase = phase

    def open(self) -> bool:
        """The handshake is done. False if close() came before."""
        with self._lock:
            if self.phase is not CONNECTING:
                return False
            self.enter(OPEN)
            self.opened_at = monotonic()
            self.ended_at = None
            self._waiters.release_all()
            return True

    def may_close(self) -> bool:
        """Whether close() has anything to do; with the lock held."""
        if self._comes_back:  # also while the server closes: there would be another connection
            return self.ending is None and not self.closed_locally
        return self.phase < CLOSING

    def ask_to_close(self, code: int | None, reason: str) -> None:
        """close() was called; a second time does nothing."""
        with self._lock:
            if self.may_close():
                now, phase = monotonic(), max(self.phase, CLOSING)
                # Assignments in a row, which nothing interrupts.
                self.close_requested_at = now
                self.close_request = (code, reason)
                self.phase = phase
                self._waiters.release_all()

    def next_attempt(self) -> None:
        """There will be another connection now, which has not been open; on the loop thread."""
        self.opened_at = None

    def closing_by_server(self) -> None:
        """The server's Close frame has come, or what no server may send."""
        with self._lock:
            if self.phase is OPEN:
                self.enter(CLOSING)
                self._waiters.release_all()

    def connect_again(self) -> None:
        """The connection is lost, and there may be another one; on the loop thread."""
        with self._lock:
            self.ended_at = monotonic()
            if not self.closed_locally:
                self.enter(CONNECTING)
            self._waiters.release_all()

    def end(self, ending: Ending) -> None:
        """It is over; the only place that enters CLOSED. The caller wakes who waits."""
        with self._lock:
            assert CLOSED in STEPS[self.phase]
            self.ending = ending
            self.ended_at = self.ended_at or monotonic()
            self.phase = CLOSED

    # ---- what is raised

    def require_open(self, what: str) -> None:
        """Raise InvalidStateError or ConnectionClosed unless the connection is open."""
        if self.phase is CONNECTING:
            raise InvalidStateError(f"{what} needs an open connection, this is CONNECTING: use wait_open() or onopen")
        if self.phase is not OPEN:
            raise self.closed_error()

    def closed_error(self) -> ConnectionClosed:
        """What a method raises that needs an open connection, in CLOSING or CLOSED."""
        self.error_raised = True
        return self.error_of(self.ending)

    def error_of(self, ending: Ending | None) -> ConnectionClosed:
        """What a query fails with, or a method, after such an ending; None: there is none yet."""
        if ending is None:
            who = "close() was called" if self.closed_locally else "the server has closed it"
            return ConnectionClosed(
                f"the connection is closing: {who}", closed_first="client" if self.closed_locally else "server"
            )
        if isinstance(ending.error, ConnectionClosed):
            return ending.error.with_traceback(None)
        text = f"the connection is closed: {describe(ending)}"
        error = ConnectionClosed(text, code=ending.code, reason=ending.reason, closed_first=ending.closed_first)
        return error.because_of(ending.error)

    def opening_error(self) -> WebSocketError:
        """Why the connection, which has ended, was never open."""
        assert self.ending is not None
        assert self.ending.error is not None
        self.error_raised = True
        return self.ending.error.with_traceback(None)

    def after_fork_in_child(self, lock: RLock) -> None:
        """The connection is the parent's: here it is CLOSED, whatever it was."""
        self._lock = lock
        if self.ending is None:
            error = ConnectionClosed("the connection belongs to the parent process")
            self.ending = Ending(1006, "", False, None, error)
        self.phase = CLOSED


def describe(ending: Ending) -> str:
    """An ending in words, for messages and logs."""
    if ending.error is not None:
        return f"{ending.code}, {ending.error}"
    by = f" by the {ending.closed_first}" if ending.closed_first else ""
    return f"{ending.code}{f' {ending.reason!r}' if ending.reason else ''}, closed{by}"
