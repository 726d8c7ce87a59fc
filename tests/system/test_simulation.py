"""A share of the runs of `simulate.py`, that they repeat, and that they find the faults that are planted.

All in processes of their own: the loop thread of this one has another clock.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import measure
import pytest
import simulate
from simulation.plant import runs_to_find
from simulation.planted import FAULTS
from simulation.scenarios import SCENARIOS
from simulation.scheduler import PCT, Random, Replay, Scheduler, Strategy

import nwebsocket

pytestmark = pytest.mark.timeout(measure.size(300, 3600))  # much is computed: how long it takes is the machine's

SCRIPT = Path(simulate.__file__)

MOST = 200
"""Runs in which a planted fault is found; it takes some more for those that `simulation/planted.py` calls rare."""


def simulated(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("fine", [pytest.param((), id="coarse"), pytest.param(("--fine",), id="fine")])
def test_a_share_of_the_runs(fine: tuple[str, ...]) -> None:
    """The same ones each time: more of them, and others, are for the command."""
    count = measure.size(2 if fine else 8, 100)
    ran = simulated("--runs", str(count), "--jobs", "1", *fine)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(f": {count} runs, 0 failed") == len(SCENARIOS)


REPEAT = """
import sys
sys.path.insert(0, sys.argv[1])
from simulation.running import replay, run
for scenario in sys.argv[2:]:
    for seed in range(4):
        for fine in (False, True):
            first, again = (run(scenario, seed, fine=fine, keep_trace=True) for _ in range(2))
            assert first.trace == again.trace and len(first.trace) == first.steps
            assert replay(scenario, first.choices, fine=fine, keep_trace=True).trace == first.trace
            print(hash(tuple(first.trace)))
"""


def test_the_same_seed_is_the_same_schedule_in_any_process() -> None:
    scenarios = ["two_receivers", "handlers", "queries", "outbox"]
    command = [sys.executable, "-c", REPEAT, str(SCRIPT.parent), *scenarios]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    one, other = (subprocess.run(command, capture_output=True, text=True, env=environment) for _ in range(2))
    assert one.stderr == ""
    assert one.stdout == other.stdout
    assert len(set(one.stdout.split())) == len(scenarios) * 4 * 2  # other seeds are other schedules


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.rare])
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    assert runs_to_find(FAULTS[name], tmp_path, MOST) is not None


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.rare])
def test_a_rare_fault_is_still_the_planted_one(name: str) -> None:
    fault = FAULTS[name]
    assert (Path(nwebsocket.__file__).parent / fault.file).read_text().count(fault.old) == 1


def test_a_failure_is_told_with_its_seed_and_shrunk(tmp_path: Path) -> None:
    fault = FAULTS["nobody who waits hears of the end"]
    assert runs_to_find(fault, tmp_path, 5) == 1
    command = [sys.executable, str(SCRIPT), "--seed", "0", fault.scenario]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert ran.returncode == 1
    assert "receiver 0 has not ended" in ran.stdout
    assert "with the fewest choices:" in ran.stdout
    assert f"FAIL {fault.scenario} --seed 0: " in ran.stdout


class TestScheduler:
    def test_who_waits_for_ever_is_a_deadlock(self) -> None:
        scheduler = Scheduler(Random(0))
        scheduler.run(lambda: scheduler.wait("Godot", lambda: False, None))
        assert scheduler.errors[0].startswith("Deadlock: main (Godot)")

    def test_who_never_ends_is_endless(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def spin() -> None:
            while True:
                scheduler.point("spins")

        monkeypatch.setattr("simulation.scheduler.MAX_STEPS", 100)
        scheduler = Scheduler(Random(0))
        scheduler.run(spin)
        assert scheduler.errors[0].startswith("Endless: 101 steps; main (spins)")

    def test_time_passes_when_nobody_can_go_on(self) -> None:
        scheduler = Scheduler(Random(0))
        waited: list[bool] = []
        scheduler.run(lambda: waited.append(scheduler.wait("an hour", lambda: False, 3600)))
        assert waited == [False]
        assert 3600 <= scheduler.now - 1000 < 3601
        assert not scheduler.errors

    def test_what_a_thread_raises_is_an_error(self) -> None:
        scheduler = Scheduler(Random(0))
        scheduler.run(lambda: 1 / 0)
        assert "ZeroDivisionError" in scheduler.errors[0]

    def test_what_is_waited_for_may_raise(self) -> None:
        scheduler = Scheduler(Random(0))
        scheduler.run(lambda: scheduler.wait("nonsense", lambda: 1 / 0, None))
        assert scheduler.errors[0].startswith("ZeroDivisionError")

    @pytest.mark.parametrize("strategy", [Random, lambda seed: PCT(seed, depth=4, steps=8)], ids=["random", "PCT"])
    def test_strategies_interleave_in_many_ways_and_can_be_replayed(self, strategy: Callable[[int], Strategy]) -> None:
        def orders(strategy: Strategy) -> tuple[str, list[int]]:
            scheduler = Scheduler(strategy)
            order: list[str] = []

            def work(name: str) -> None:
                for _ in range(3):
                    order.append(name)
                    scheduler.point(name)

            def main() -> None:
                for name in "ab":
                    scheduler.spawn(lambda name=name: work(name), name)  # type: ignore[misc]

            scheduler.run(main)
            return "".join(order), scheduler.choices

        found = {}
        for seed in range(60):
            order, choices = orders(strategy(seed))
            found[order] = choices
        assert len(found) > 6
        for order, choices in found.items():
            assert orders(Replay(choices))[0] == order
