"""Scenarios of several threads, run as a seed decides: which thread goes on, where bytes are cut, when Ctrl-C comes.

    python tests/system/simulate.py --runs 10000                     every scenario so often, by all cores
    python tests/system/simulate.py --runs 500 --fine queries        one of them; a thread may go on at any opcode
    python tests/system/simulate.py --seed 17 queries                that run again, with its trace, shrunk if it fails

A run is the same for the same seed, on any machine. The scenarios, and what must hold in each, are in
`simulation/scenarios.py`. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from simulation.running import replay, run, shrink
from simulation.scenarios import SCENARIOS

CHUNK = 25
"""Runs that a process is given at once."""

SHOWN = 40
"""Lines of the end of a trace that are shown."""

Job = tuple[str, int, int, bool]


def compressed(seed: int) -> bool:
    """A third of the runs are."""
    return seed % 3 == 0


def runs_of(job: Job) -> list[tuple[int, str]]:
    """Do the runs of a job; return the seeds that failed, and why."""
    scenario, first, count, fine = job
    failed = []
    for seed in range(first, first + count):
        result = run(scenario, seed, compressed=compressed(seed), fine=fine)
        if result.errors:
            failed.append((seed, "\n".join(result.errors)))
    return failed


def begin_process(numbers: multiprocessing.Queue[int]) -> None:
    """One core for each process: a thread is soonest followed by another on the same one."""
    logging.getLogger("nwebsocket").propagate = False
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[numbers.get() % len(cores)]})


def many(options: argparse.Namespace, scenarios: list[str]) -> bool:
    """Run them all; print what failed, and how many there were."""
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    workers = options.jobs or os.cpu_count() or 1
    for number in range(workers):
        numbers.put(number)
    begun, failures = time.monotonic(), Counter[str]()
    with ProcessPoolExecutor(workers, context, begin_process, (numbers,)) as pool:
        jobs = list(jobs_of(options, scenarios))
        for (scenario, *_), failed in zip(jobs, pool.map(runs_of, jobs), strict=True):
            for seed, why in failed:
                failures[scenario] += 1
                if failures[scenario] <= 3:
                    fine = " --fine" if options.fine else ""
                    print(f"FAIL simulate.py --seed {seed}{fine} {scenario}\n{why}\n", flush=True)
    seconds = time.monotonic() - begun
    total = options.runs * len(scenarios)
    for scenario in scenarios:
        print(
            f"{'FAIL' if failures[scenario] else 'PASS'} {scenario}: {options.runs} runs, {failures[scenario]} failed"
        )
    print(f"{total:,} runs, {total / seconds:.0f} a second, by {workers} processes")
    return not failures


def until_failure(options: argparse.Namespace, scenarios: list[str]) -> bool:
    """Run them one after the other; stop at the first that fails."""
    logging.getLogger("nwebsocket").propagate = False
    for scenario, first, count, fine in jobs_of(options, scenarios):
        for seed in range(first, first + count):
            if failed := runs_of((scenario, seed, 1, fine)):
                print(f"FAIL simulate.py --seed {seed}{' --fine' * fine} {scenario}\n{failed[0][1]}")
                return False
    return True


def jobs_of(options: argparse.Namespace, scenarios: list[str]) -> Iterator[Job]:
    """The runs, in pieces; of all scenarios side by side."""
    for offset, scenario in itertools.product(range(0, options.runs, CHUNK), scenarios):
        yield scenario, options.first + offset, min(CHUNK, options.runs - offset), options.fine


def one(options: argparse.Namespace, scenario: str) -> bool:
    """Repeat one run: print its trace, and if it fails, the fewest choices that still do."""
    seed = options.seed
    result = run(scenario, seed, compressed=compressed(seed), fine=options.fine, keep_trace=True)
    print(*result.trace[-SHOWN:], sep="\n")
    if not result.errors:
        print(f"PASS {scenario} --seed {seed}: {result.steps} steps")
        return True
    choices = shrink(scenario, result.choices, compressed=compressed(seed), fine=options.fine)
    shrunk = replay(scenario, choices, compressed=compressed(seed), fine=options.fine, keep_trace=True)
    print(*result.errors, "", "with the fewest choices:", *shrunk.trace[-SHOWN:], *shrunk.errors, sep="\n")
    print(f"FAIL {scenario} --seed {seed}: {sum(map(bool, choices))} choices of {len(result.choices)}: {choices}")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], metavar="scenario")
    parser.add_argument("--runs", type=int, default=1000, help="of each scenario (default: 1000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the seed of the first run (default: 0)")
    parser.add_argument(
        "--fine", action="store_true", help="a thread may go on at each opcode where CPython may let it"
    )
    parser.add_argument("--jobs", type=int, help="processes side by side (default: one for each core)")
    parser.add_argument("--seed", type=int, help="repeat this run of the one scenario named, and show it")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first failure, in this process")
    options = parser.parse_args()
    scenarios = options.scenarios or list(SCENARIOS)
    if options.until_failure:
        return not until_failure(options, scenarios)
    if options.seed is None:
        return not many(options, scenarios)
    if len(scenarios) != 1:
        parser.error("--seed is for one scenario: which?")
    logging.getLogger("nwebsocket").propagate = False
    return not one(options, scenarios[0])


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the threads of failed runs are still waiting
