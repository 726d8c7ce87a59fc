"""A copy of the library with one of the planted faults, and the first seed that finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nwebsocket

from .planted import Fault

COMMAND = Path(__file__).parents[1] / "simulate.py"


def runs_to_find(fault: Fault, folder: Path, most: int) -> int | None:
    """How many runs it takes to find a fault that is planted into a copy in `folder`; None if it takes more."""
    package = folder / "nwebsocket"
    shutil.copytree(Path(nwebsocket.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / fault.file
    text = file.read_text()
    assert text.count(fault.old) == 1, f"not once in {fault.file}: {fault.old}"
    file.write_text(text.replace(fault.old, fault.new))
    arguments = [
        "--runs",
        str(most),
        "--until-failure",
        "--jobs",
        "1",
        fault.scenario,
        *(["--fine"] if fault.fine else []),
    ]
    found = subprocess.run(
        [sys.executable, str(COMMAND), *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    seeds = [line for line in found.stdout.splitlines() if line.startswith("FAIL simulate.py --seed ")]
    return int(seeds[0].split()[3]) + 1 if seeds else None
