"""The examples run as they are, say what they should, and leave nothing to complain about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

SAID = {
    "quickstart.py": ["text: hello", "text: no await in sight", "bytes: c0 ff ee", "closed"],
    "reconnecting.py": ["1: connected", "1: lost", "2: connected", "each number arrived once and in order"],
    "queries.py": ["news: welcome", "100 queries answered, each with its own answer", "12 squared is 144"],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_example(name: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert [line for line in lines if line in SAID[name]] == SAID[name]
