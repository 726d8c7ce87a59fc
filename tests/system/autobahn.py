"""The Autobahn test suite, the field's check of RFC 6455 and RFC 7692: its fuzzing server, and our client by callbacks.

    python tests/system/autobahn.py               all cases, with handlers on their thread, and with those on the loop
    python tests/system/autobahn.py --cases '5.*' '9.*'

The suite is written for Python 2.7, which is looked for in the environment variable PYTHON27, in the PATH and where
pyenv has it. It is installed once into the user's cache. Exit code 1 if a case is not as it should be.

A case is NON-STRICT when it is passed in a way that the suite would not take. We accept that for the seven in which an
echo would have to overtake the failure that stands behind its message, with handlers on a thread of their own: the
connection fails at once, and the handler may hear the message after that.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

sys.path.append(str(Path(__file__).parents[1] / "support"))

import programs

from nwebsocket import WebSocket

Where = Literal["thread", "loop"]

ALL = ("*",)
NON_STRICT = {"thread": {"3.2", "3.3", "4.1.3", "4.1.4", "4.2.3", "4.2.4", "5.15"}, "loop": set[str]()}
"""Cases that may be so."""

CASE_LIMIT = 300.0
"""Seconds that a case may take."""

_REQUIREMENTS = programs.SERVERS / "autobahn-requirements.txt"
# `autobahntestsuite` chooses the reactor, so it comes before twisted. It would listen on all interfaces.
_WSTEST = """
import site, sys
site.addsitedir(sys.argv.pop(1))
import autobahntestsuite
from twisted.internet import reactor
listen = reactor.listenTCP
reactor.listenTCP = lambda port, factory, backlog=50, interface="": listen(port, factory, backlog, "127.0.0.1")
from autobahntestsuite.wstest import run
run()
"""

Results = Mapping[str, Mapping[str, Any]]
"""For each case its ``behavior`` and ``behaviorClose``, as Autobahn's index.json has them."""


def run(
    callbacks: Where, cases: Sequence[str] = ALL, answer: Callable[[Any], Any] = lambda message: message
) -> Results:
    """Drive the cases, and return the server's verdicts. Skips the test without Python 2.7, or the suite."""
    python = _python27()
    site = _site(python)
    with tempfile.TemporaryDirectory(prefix="nwebsocket-tests-") as name, programs.free_ports() as ports:
        directory = Path(name)
        specification = {"url": f"ws://127.0.0.1:{ports[0]}", "outdir": name, "cases": cases}
        specification |= {"exclude-cases": [], "exclude-agent-cases": {}}
        (directory / "spec.json").write_text(json.dumps(specification))
        command = [python, "-c", _WSTEST, site, "-m", "fuzzingserver", "-s", directory / "spec.json", "-u", "0"]
        with programs.Program(command, ports, directory):
            count = _Driver(ports[0], callbacks, answer).drive_all()
        results: Results = json.loads((directory / "index.json").read_text())["nwebsocket"]
    assert len(results) == count, f"{len(results)} of {count} cases are reported"
    return results


class _Driver:
    """Has the server run one case after the other."""

    def __init__(self, port: int, callbacks: Where, answer: Callable[[Any], Any]) -> None:
        self._base = f"ws://127.0.0.1:{port}"
        self._callbacks = callbacks
        self._answer = answer

    def drive_all(self) -> int:
        """Return how many cases there were."""
        counted: list[Any] = []
        self._connect("/getCaseCount", counted.append)
        for case in range(1, int(counted[0]) + 1):
            self._connect(f"/runCase?case={case}&agent=nwebsocket")
        self._connect("/updateReports?agent=nwebsocket")
        return int(counted[0])

    def _connect(self, target: str, onmessage: Callable[[Any], object] | None = None) -> None:
        closed = threading.Event()
        ws = WebSocket(
            self._base + target, callbacks=self._callbacks, max_size=2**26, ping_interval=None, proxy=None
        )

        def echo(message: Any) -> None:
            with contextlib.suppress(ConnectionError):  # some cases close meanwhile
                ws.send(self._answer(message))

        ws.onclose = closed.set
        ws.onerror = lambda error: None  # which most cases are about
        ws.onmessage = onmessage or echo
        assert closed.wait(CASE_LIMIT), f"{target} has not ended within {CASE_LIMIT:g} s"


def faults(results: Results, callbacks: Where) -> list[str]:
    """What is not as it should be: "5.15 NON-STRICT" and so on."""
    found = []
    for case, result in results.items():
        allowed = {"OK", "INFORMATIONAL"} | ({"NON-STRICT"} if case in NON_STRICT[callbacks] else set())
        verdicts = {result["behavior"]: allowed, result["behaviorClose"]: {"OK", "INFORMATIONAL"}}
        found += [f"{case} {verdict}" for verdict, good in verdicts.items() if verdict not in good]
    return found


def summary(results: Results) -> Iterator[str]:
    """How many cases have which verdicts, and which those are that are not simply good."""
    for field in ("behavior", "behaviorClose"):
        cases = collections.defaultdict(list)
        for case, result in results.items():
            cases[result[field]].append(case)
        for verdict, names in cases.items():
            named = "" if verdict in ("OK", "INFORMATIONAL") else f": {' '.join(names)}"
            yield f"    {field:13} {verdict:13} {len(names):4}{named}"


# --- The suite


def _python27() -> str:
    """Skips the test where there is none."""
    at_pyenv = glob.glob(str(Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions/2.7*/bin/python")))
    for candidate in (os.environ.get("PYTHON27"), *at_pyenv, shutil.which("python2.7")):
        works = candidate and subprocess.run([candidate, "-m", "pip", "--version"], capture_output=True, check=False)
        if candidate and works and works.returncode == 0:
            return candidate
    pytest.skip("there is no Python 2.7 with pip, which the Autobahn test suite needs")


def _site(python: str) -> Path:
    """Where the suite is installed; skips the test if it cannot be."""

    def install(directory: Path) -> None:
        command = [python, "-m", "pip", "install", "-q", "--target", directory, "-r", _REQUIREMENTS]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode:
            pytest.skip(f"pip cannot install the Autobahn test suite: {result.stderr.strip()[-300:]}")

    return programs.installed(f"autobahn-{hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:16]}", install)


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--callbacks", choices=["thread", "loop"], help="default: one after the other")
    parser.add_argument("--cases", nargs="+", default=ALL, metavar="PATTERN", help="default: *")
    options = parser.parse_args()
    wrong = 0
    for callbacks in [options.callbacks] if options.callbacks else ["thread", "loop"]:
        results = run(callbacks, options.cases)
        found = faults(results, callbacks)
        print(f"callbacks={callbacks!r}: {len(results)} cases, {len(found)} not as they should be", *found, flush=True)
        print("\n".join(summary(results)), flush=True)
        wrong += len(found)
    return bool(wrong)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pytest.skip.Exception as missing:
        sys.exit(str(missing))
