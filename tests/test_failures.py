"""What users see when something goes wrong: the table of the README against real runs, and the memory that hostile
servers can have a client take.
"""

from __future__ import annotations

import sys

import pytest
from conftest import Log
from failures import CASES, README, Case, rows_of, run_case

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the README has the words of Linux's C library")


@needs_linux
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES]
)
def test_the_readme_says_what_a_user_sees(case: Case, log: Log) -> None:
    row = str(run_case(case))
    assert row in rows_of(README.read_text(encoding="utf-8"))
    assert log.warnings() == []


def test_the_readme_has_these_cases_and_no_others() -> None:
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows_of(README.read_text(encoding="utf-8"))]
    assert names == [case.name for case in CASES]
