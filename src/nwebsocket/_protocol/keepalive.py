"""When to ping, which pong answers, and the latency. Pure: the time is passed in, in seconds of a monotonic clock.

Any byte received counts as life. After `interval` of silence a ping is due; after `timeout` more the peer is dead.
"""

from __future__ import annotations

import secrets
from typing import Literal


class Keepalive:
    """The pings of one connection."""

    __slots__ = ("_heard", "_interval", "_pinged", "_received", "_timeout", "_unanswered", "latency")

    def __init__(self, interval: float | None, timeout: float | None, now: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._heard: float | None = now  # None while we do not read: then silence is our own doing
        self._received = 0  # bytes; see heard_in_all()
        # When the keepalive ping of this silence was sent; None while none is needed.
        self._pinged: float | None = None
        # Unanswered pings, oldest first: payload -> when it was sent, and where its sender waits for the latency.
        self._unanswered: dict[bytes, tuple[float, list[float]]] = {}
        self.latency: float | None = None

    def heard(self, now: float) -> None:
        """Bytes have come."""
        self._heard = now
        self._pinged = None

    def heard_in_all(self, received: int, now: float, *, counts: bool) -> None:
        """So many bytes have come so far; if more than before, that `counts` as heard now."""
        if received != self._received:
            self._received = received
            if counts:
                self.heard(now)

    def pause(self) -> None:
        """The socket is not being read (back-pressure)."""
        self._heard = None

    def resume(self, now: float) -> None:
        """The socket is read again: silence counts from now."""
        self.heard(now)

    def ping(self, now: float, waiting: list[float] | None = None) -> bytes:
        """The payload of a new ping; when it is answered, the latency is appended to `waiting`."""
        payload = secrets.token_bytes(4)
        while payload in self._unanswered:
            payload = secrets.token_bytes(4)
        self._unanswered[payload] = (now, [] if waiting is None else waiting)
        return payload

    def keepalive_ping(self, now: float) -> bytes:
        """The payload of the ping that `due` asked for; the patience runs from `now`."""
        self._pinged = now
        return self.ping(now)

    def pong(self, payload: bytes, now: float) -> list[bytes]:
        """The pings that this pong answers, oldest first: its own and all earlier ones; none if it was unsolicited."""
        if payload not in self._unanswered:
            return []
        self.latency = now - self._unanswered[payload][0]
        answered = []
        for earlier in list(self._unanswered):
            answered.append(earlier)
            self._unanswered.pop(earlier)[1].append(self.latency)
            if earlier == payload:
                break
        return answered

    def due(self, now: float) -> Literal["ping", "dead"] | None:
        """What the silence so far asks for."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return None
        return "ping" if self._pinged is None else "dead"

    @property
    def silence(self) -> str:
        """Why the peer is taken for dead, in words."""
        return (
            f"nothing was heard from the server for ping_interval={self._interval:g} s, "
            f"nor an answer to a ping within ping_timeout={self._timeout:g} s"
        )

    def deadline(self) -> float | None:
        """When `due` must be asked again; None: not before something is heard or resumed."""
        if self._heard is None or self._interval is None:
            return None
        if self._pinged is None:
            return self._heard + self._interval
        return None if self._timeout is None else self._pinged + self._timeout
