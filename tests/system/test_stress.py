"""The stress of `stress.py`, for a few seconds, and what it can find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import stress

SCRIPT = Path(stress.__file__)


def run(variant: str, seconds: float) -> str:
    """Run it in a process of its own: what it does to the interpreter is not for others."""
    command = [sys.executable, str(SCRIPT), "--variant", variant, "--seconds", str(seconds)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_all_methods_from_many_threads_for_a_moment() -> None:
    assert "\n0 faults" in run("mixed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gc", "cpu", "reconnecting", "queries"])
def test_all_methods_from_many_threads(variant: str) -> None:
    assert "\n0 faults" in run(variant, 2)
