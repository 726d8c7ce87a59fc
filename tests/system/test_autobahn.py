"""The Autobahn test suite: see `autobahn.py`."""

from __future__ import annotations

from typing import Any

import autobahn
import measure
import pytest

takes_long = pytest.mark.skipif(not measure.FULL, reason="takes some 20 minutes: NWEBSOCKET_FULL=1")


@takes_long
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_all_cases(callbacks: autobahn.Where) -> None:
    results = autobahn.run(callbacks)
    assert len(results) == 517
    assert autobahn.faults(results, callbacks) == []


@takes_long
@pytest.mark.slow
def test_what_fails_a_case_is_found() -> None:
    results = autobahn.run("thread", ["1.1.*"], answer=lambda message: message + message)
    assert "1.1.2 FAILED" in autobahn.faults(results, "thread")


@pytest.mark.parametrize(
    ("behavior", "behavior_close", "found"),
    [
        ("OK", "OK", []),
        ("INFORMATIONAL", "INFORMATIONAL", []),
        ("FAILED", "OK", ["1.1.1 FAILED"]),
        ("UNIMPLEMENTED", "OK", ["1.1.1 UNIMPLEMENTED"]),
        ("OK", "WRONG CODE", ["1.1.1 WRONG CODE"]),
        ("OK", "UNCLEAN", ["1.1.1 UNCLEAN"]),
        ("NON-STRICT", "FAILED BY CLIENT", ["1.1.1 NON-STRICT", "1.1.1 FAILED BY CLIENT"]),
    ],
)
def test_verdicts(behavior: str, behavior_close: str, found: list[str]) -> None:
    results: Any = {"1.1.1": {"behavior": behavior, "behaviorClose": behavior_close}}
    assert autobahn.faults(results, "thread") == found


def test_some_cases_may_be_non_strict_with_handlers_on_their_thread() -> None:
    results: Any = {"3.2": {"behavior": "NON-STRICT", "behaviorClose": "OK"}}
    assert autobahn.faults(results, "thread") == []
    assert autobahn.faults(results, "loop") == ["3.2 NON-STRICT"]
