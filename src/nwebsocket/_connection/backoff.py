"""Whether to connect again after a connection has ended, and after how long. Pure: times and chance are passed in."""

from __future__ import annotations

import datetime
import email.utils
import random
from collections.abc import Callable

from ..close_codes import CloseCode
from ..exceptions import HandshakeError, ProtocolError, WebSocketError

FIRST_DELAY = 3.0
FACTOR = 1.6
MAX_DELAY = 60.0
STABLE = 5.0
"""Seconds. A connection that lived for so long was one: the next delay is the first again."""

MAX_RETRY_AFTER = 86_400.0
"""Seconds, a day, that a server's Retry-After may ask for: a wrong number must not keep a client away for ever."""

_FINAL_CODES = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_PAYLOAD,
        CloseCode.POLICY_VIOLATION,
        CloseCode.MESSAGE_TOO_BIG,
        CloseCode.MANDATORY_EXTENSION,
    }
)
_PASSING_STATUSES = frozenset({408, 425, 429})


class Backoff:
    """Delays that grow, drawn at random: clients that lose their server together do not come back together.

    The first is anything up to `FIRST_DELAY`, each later one the greater half of a range `FACTOR` times as long. Of
    1,000 clients whose server is away for 10 s, no second then sees more than 3 times as many attempts as the mean;
    with a first delay of 1 s, and all later ones drawn from 0 up, some second sees 8 times as many.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self.retry_count = 0
        """Attempts since the last connection that was stable."""

    def next_delay(self, lived: float, error: WebSocketError | None, now: float) -> float:
        """Seconds to wait before the next attempt.

        ``lived``  for how many seconds the connection was open
        ``error``  what it ended with: a refusal's Retry-After is a lower bound
        ``now``    the time of day, in seconds since the epoch
        """
        if lived >= STABLE:
            self.retry_count = 0
        most = min(MAX_DELAY, FIRST_DELAY * FACTOR ** min(self.retry_count, 32))
        drawn = self._uniform(most / 2 if self.retry_count else 0.0, most)
        self.retry_count += 1
        if asked := retry_after(error, now):  # of many clients the same
            return max(drawn, asked + self._uniform(0.0, FIRST_DELAY))
        return drawn


def retry_after(error: WebSocketError | None, now: float) -> float:
    """The seconds that a refusal's Retry-After header asks for (RFC 9110 section 10.2.3), 0 without one.

    A date is counted from the answer's own Date, if there is one: our clock may be wrong, or frozen.
    """
    headers = error.headers if isinstance(error, HandshakeError) else []
    value = _first(headers, "retry-after")
    if value.isascii() and value.isdigit():
        return min(MAX_RETRY_AFTER, float(value[:9]))
    date = _timestamp(value)
    if date is None:
        return 0.0
    answered = _timestamp(_first(headers, "date"))
    return min(MAX_RETRY_AFTER, max(0.0, date - (now if answered is None else answered)))


def _first(headers: list[tuple[str, str]], wanted: str) -> str:
    return next((value.strip() for name, value in headers if name.lower() == wanted), "")


def _timestamp(value: str) -> float | None:
    """The seconds since the epoch that a date in a header stands for; None if it is none."""
    try:
        date = email.utils.parsedate_to_datetime(value)
        if date.tzinfo is None:  # asctime's form, and the zone -0000, mean UTC, too (RFC 9110 section 5.6.7)
            date = date.replace(tzinfo=datetime.timezone.utc)
        return date.timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def is_final(code: int, error: WebSocketError | None, *, asks_again: bool) -> bool:
    """Whether to try again would lead to the same end.

    ``code``        the close code
    ``asks_again``  the headers or the URL come from a function: the next token may not be refused with 401
    """
    if isinstance(error, HandshakeError) and error.status is not None and 400 <= error.status < 500:
        return error.status not in _PASSING_STATUSES and not (error.status == 401 and asks_again)
    if isinstance(error, ProtocolError):
        code = error.sent_code
    return code in _FINAL_CODES


