"""The examples run as they are, say what they should, and leave nothing to complain about."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

LIVED = "  8 computations in ... s; the connection lived"
JSON = ["JSON, one by one ...", "JSON, 10 together ...", "JSON, 100 together ..."]
MESSAGEPACK = ["MessagePack, one by one ...", "MessagePack, 10 together ...", "MessagePack, 100 together ..."]

#: The lines that tell whether it went well, in this order; "..." stands for figures.
SAID = {
    "quickstart.py": ["text: hello", "text: no await in sight", "bytes: c0 ff ee", "closed"],
    "reconnecting.py": ["1: connected", "1: lost", "2: connected", "each number arrived once and in order"],
    "queries.py": ["news: welcome", "100 queries answered, each with its own answer", "12 squared is 144"],
    "heavy_work.py": [f"in the callback    [{'#' * 32}] 8/8", LIVED, f"in other processes [{'#' * 32}] 8/8", LIVED],
    "batches.py": JSON + MESSAGEPACK if importlib.util.find_spec("msgpack") else JSON,
}

SLOW = {"heavy_work.py", "batches.py"}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAID.keys()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SAID])
def test_example(name: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stderr) == (0, "")
    patterns = {said: re.escape(said).replace(re.escape("..."), ".+") for said in SAID[name]}
    lines = run.stdout.splitlines()
    told = [said for line in lines for said, pattern in patterns.items() if re.fullmatch(pattern, line)]
    assert told == SAID[name], run.stdout
