"""The scenarios of `schedules.py` for a moment, and that they find what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import schedules
from scheduling.scenarios import SCENARIOS

pytestmark = pytest.mark.slow

SCRIPT = Path(schedules.__file__)


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own; `before` is done there first."""
    program = f"{before}\nimport runpy\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    command = [sys.executable, "-c", program, "--seconds", "1", "--probability", "0.002", *arguments]
    return subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_for_a_moment(scenario: str) -> None:
    ran = run(scenario)
    assert ran.stdout.startswith(f"PASS {scenario}"), ran.stdout + ran.stderr
    assert (ran.returncode, ran.stderr) == (0, "")


LOSES_A_MESSAGE = """
from nwebsocket._protocol.connection import Protocol
receive_some, count = Protocol.receive_some, [0]
def receive_most(self, data):
    received = receive_some(self, data)
    count[0] += bool(received.messages)
    if count[0] == 3:
        del received.messages[-1:]
    return received
Protocol.receive_some = receive_most
"""


@pytest.mark.parametrize("scenario", ["recv_timeouts", "handlers_flood"])
def test_a_message_that_is_lost_is_found(scenario: str) -> None:
    ran = run(scenario, before=LOSES_A_MESSAGE)
    assert ran.stdout.startswith(f"FAIL {scenario}"), ran.stdout + ran.stderr
    assert ran.returncode == 1


FAILS_BESIDE = """
import logging, threading, stress
listen = stress.listen_for_errors
def listen_and_fail(faults):
    listen(faults)
    logging.getLogger("nwebsocket").error("something")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
stress.listen_for_errors = listen_and_fail
"""


def test_an_error_in_the_log_or_in_a_thread_is_a_fault() -> None:
    ran = run("closing", before=FAILS_BESIDE)
    assert ran.stdout.startswith("FAIL closing"), ran.stdout + ran.stderr
    assert "something" in ran.stdout
    assert "ZeroDivisionError" in ran.stdout
    assert ran.returncode == 1
