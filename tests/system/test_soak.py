"""The soak of `soak.py`, for a few seconds, and that its ledger finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soak
from soaking.ledger import Ledger
from soaking.plan import ALL_PUSHED, ALL_SENT, AT_RISK, AT_SERVER, HEARD, PUSHED, SENT, Record, message, read_message

PLAIN, BACK = 2, 3
"""The key of a WebSocket, and of a ReconnectingWebSocket."""


def ledger(*records: tuple[bytes, int, int, int]) -> Ledger:
    made = Ledger()
    made.add(Record(*record) for record in records)
    return made


def kept(made: Ledger) -> bool:
    return all(totals.kept for totals in made.totals().values())


SENDS = [(SENT, PLAIN, 1, number) for number in range(4)]
PUSHES = [(PUSHED, PLAIN, 1, number) for number in range(4)]
KEEPS = [(SENT, BACK, 0, number) for number in range(6)]


@pytest.mark.parametrize(
    ("records", "good"),
    [
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in range(4)), (ALL_SENT, PLAIN, 1, 0)], True),
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in range(3))], True),  # up to the loss
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in range(3)), (ALL_SENT, PLAIN, 1, 0)], False),
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in (0, 2, 3))], False),
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in (0, 1, 1))], False),
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in (0, 2, 1))], False),
        ([*SENDS, *((AT_SERVER, PLAIN, 1, number) for number in (1, 2))], False),
        ([*PUSHES, *((HEARD, PLAIN, 1, number) for number in range(2))], True),
        ([*PUSHES, *((HEARD, PLAIN, 1, number) for number in range(2)), (ALL_PUSHED, PLAIN, 1, 0)], False),
        ([*KEEPS, *((AT_SERVER, BACK, 1 + number // 3, number) for number in range(6))], True),
        ([*KEEPS, *((AT_SERVER, BACK, 1 + number // 3, number) for number in (0, 1, 3, 4, 5))], False),
        ([*KEEPS, *((AT_SERVER, BACK, 1 + n // 3, n) for n in (0, 1, 3, 4, 5)), (AT_RISK, BACK, 0, 1)], True),
        ([*KEEPS, *((AT_SERVER, BACK, n // 3, n) for n in range(6)), (AT_SERVER, BACK, 2, 5)], False),
    ],
)
def test_the_ledger_finds_what_is_wrong(records: list[tuple[bytes, int, int, int]], good: bool) -> None:
    assert kept(ledger(*records)) is good


def test_a_damaged_message_is_found() -> None:
    for number in (0, 1):
        whole = message(number)
        assert read_message(whole) == (number, 0)
        with pytest.raises(ValueError, match="damaged"):
            read_message(whole + "x" if isinstance(whole, str) else whole + b"x")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_short_soak() -> None:
    command = [sys.executable, soak.__file__, "--minutes", "0.05", "--connections", "30", "--seed", "1"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=55, check=False, cwd=Path(soak.__file__).parent
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all promises were kept" in ran.stdout
