"""When to connect again, and when not. No clock, no chance: both are passed in."""

from __future__ import annotations

import collections
import email.utils
import random
import time
from collections.abc import Callable

import pytest

from nwebsocket import ConnectionFailed, HandshakeError, MessageTooBig, ProtocolError, WebSocketError
from nwebsocket._connection.backoff import MAX_RETRY_AFTER, Backoff, is_final, retry_after

NOW = 1_700_000_000.0


def most(low: float, high: float) -> float:
    assert 0 <= low <= high
    return high


def least(low: float, high: float) -> float:
    return low


def refusal(status: int, *headers: tuple[str, str]) -> HandshakeError:
    return HandshakeError("refused", status=status, headers=list(headers))


def test_delays_grow_to_a_minute() -> None:
    backoff = Backoff(most)
    delays = [backoff.next_delay(0, None, NOW) for _ in range(12)]
    assert delays[:4] == pytest.approx([3, 4.8, 7.68, 12.288])
    assert delays[-3:] == [60, 60, 60]
    assert backoff.retry_count == 12


def test_the_first_is_drawn_from_all_of_that_the_others_from_the_greater_half() -> None:
    backoff = Backoff(least)
    assert [backoff.next_delay(0, None, NOW) for _ in range(3)] == pytest.approx([0, 2.4, 3.84])
    drawn = [Backoff().next_delay(0, None, NOW) for _ in range(1000)]
    assert all(0 <= delay <= 3 for delay in drawn)
    for tenth in range(10):
        assert 50 < sum(tenth * 0.3 <= delay < (tenth + 1) * 0.3 for delay in drawn) < 160


def test_retry_after_is_bounded() -> None:
    for asked in ("3000000", "9" * 500, "Fri, 31 Dec 9999 23:59:59 GMT"):
        assert retry_after(refusal(503, ("Retry-After", asked)), NOW) == MAX_RETRY_AFTER


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs tzset()")
@pytest.mark.parametrize(
    "date",
    ["Tue, 14 Nov 2023 22:13:25 GMT", "Tue, 14 Nov 2023 22:13:25 -0000", "Tue Nov 14 22:13:25 2023"],
    ids=["IMF", "-0000", "asctime"],
)
def test_the_date_of_retry_after_is_in_utc_wherever_the_client_is(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert retry_after(refusal(503, ("Retry-After", date)), NOW) == 5
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("asked", [None, "2", "30"])
@pytest.mark.parametrize("away", [0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0])
def test_a_thousand_clients_spread(away: float, asked: str | None) -> None:
    """No second sees more than three times the mean, whether the server refuses, with a Retry-After, or is gone."""
    chance = random.Random(away)
    error = None if asked is None else refusal(503, ("Retry-After", asked))
    attempts = []
    for _ in range(1000):
        backoff, now = Backoff(chance.uniform), 0.0
        while now == 0 or now < away:
            now += backoff.next_delay(0, error, NOW + now)
            attempts.append(now)
    seconds = collections.Counter(int(attempt - min(attempts)) for attempt in attempts)
    mean = len(attempts) / (max(seconds) + 1)
    assert max(seconds.values()) <= 3 * mean


@pytest.mark.parametrize(("lived", "delay"), [(0, 7.68), (4.9, 7.68), (5, 3), (3600, 3)])
def test_a_stable_connection_begins_anew(lived: float, delay: float) -> None:
    backoff = Backoff(most)
    for _ in range(2):
        backoff.next_delay(0, None, NOW)
    assert backoff.next_delay(lived, None, NOW) == pytest.approx(delay)


def test_a_thousand_attempts_do_not_overflow() -> None:
    backoff = Backoff(most)
    assert [backoff.next_delay(0, None, NOW) for _ in range(2000)][-1] == 60


def _http_date(seconds: float) -> str:
    return email.utils.formatdate(NOW + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0", 0),
        (_http_date(90), 90),
        (_http_date(-90), 0),
        ("", 0),
        ("soon", 0),
        ("-7", 0),
        ("1.5", 0),
        ("٧", 0),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    error = refusal(503, ("retry-After", value))
    assert retry_after(error, NOW) == seconds
    assert Backoff(least).next_delay(0, error, NOW) == seconds
    assert Backoff(most).next_delay(0, error, NOW) == (seconds + 3 if seconds else 3)


@pytest.mark.parametrize("clock", [NOW, NOW - 10**8, NOW + 10**8], ids=["right", "slow", "fast"])
@pytest.mark.parametrize("date", [_http_date(1000), time.asctime(time.gmtime(NOW + 1000))])
def test_the_date_of_retry_after_is_counted_from_that_of_the_answer(clock: float, date: str) -> None:
    error = refusal(503, ("DATE", date), ("Retry-After", _http_date(1020)))
    assert retry_after(error, clock) == 20


@pytest.mark.parametrize("date", ["", "soon", "Tue, 99 Nov 2023 22:13:20 GMT"])
def test_a_date_that_is_none_is_no_date(date: str) -> None:
    assert retry_after(refusal(503, ("Date", date), ("Retry-After", _http_date(20))), NOW) == 20


def test_without_a_refusal_there_is_no_retry_after() -> None:
    for error in (None, ConnectionFailed("x"), refusal(503)):
        assert retry_after(error, NOW) == 0


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (refusal(400), True),
        (refusal(401), True),
        (refusal(403), True),
        (refusal(404), True),
        (refusal(408), False),
        (refusal(425), False),
        (refusal(429), False),
        (refusal(499), True),
        (refusal(500), False),
        (refusal(503), False),
        (refusal(302), False),
        (HandshakeError("garbled"), False),
        (ConnectionFailed("refused"), False),
        (ProtocolError("broken", sent_code=1002), True),
        (ProtocolError("broken", sent_code=1007), True),
        (MessageTooBig("large"), True),
    ],
    ids=str,
)
def test_which_errors_are_final(error: WebSocketError, final: bool) -> None:
    assert is_final(1006, error, asks_again=False) is final


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 3000, 4000])
def test_which_close_codes_are_final(code: int) -> None:
    assert is_final(code, None, asks_again=False) is (code in (1002, 1003, 1007, 1008, 1009, 1010))


def test_401_is_not_final_if_the_next_token_may_be_another() -> None:
    check: Callable[[int], bool] = lambda status: is_final(1006, refusal(status), asks_again=True)  # noqa: E731
    assert [check(401), check(403)] == [False, True]
