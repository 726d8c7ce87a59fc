"""Threads that share a socket, with pauses at random lines of the library: rare races become frequent ones.

    python tests/system/schedules.py --seconds 600                         every scenario; plain, by TLS and compressed
    python tests/system/schedules.py --seconds 60 queries --tls --seed 7   one of them, in this process

The scenarios, and what must hold in each, are in `scheduling/scenarios.py`. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import faulthandler
import itertools
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from scheduling.chaos import Chaos
from scheduling.scenarios import PATIENCE, SCENARIOS, Fault, Run
from stress import listen_for_errors

from nwebsocket._connection import backoff

WAYS: dict[str, tuple[str, ...]] = {"plain": (), "TLS": ("--tls",), "compressed": ("--deflate",)}


def one(options: argparse.Namespace, scenario: str) -> bool:
    """Run one scenario in this process, which is of no use for anything else afterwards; print what was found."""
    seed = random.randrange(10**6) if options.seed is None else options.seed
    faulthandler.dump_traceback_later(options.seconds + 2 * PATIENCE, exit=True)
    backoff.FIRST_DELAY, backoff.MAX_DELAY = 0.01, 0.02
    run = Run(options.seconds, seed, tls=options.tls, deflate=options.deflate)
    listen_for_errors(run.faults)
    if run.dice.random() < 0.5:
        sys.setswitchinterval(1e-6)
    with Chaos(options.probability, seed) as chaos:
        try:
            SCENARIOS[scenario](run)
        except Fault as fault:
            run.faults.append(str(fault))
        except BaseException:
            run.faults.append(traceback.format_exc())
    done = ", ".join(f"{count:,} {what}" for what, count in run.counts.items())
    what = f"{scenario}{' --tls' if options.tls else ''}{' --deflate' if options.deflate else ''} --seed {seed}"
    verdict = "FAIL" if run.faults else "PASS"
    print(f"{verdict} {what}: {done}; {chaos.lines:,} lines", *run.faults[:3], sep="\n  ", flush=True)
    return not run.faults


def all_of_them(options: argparse.Namespace) -> bool:
    """Run each scenario in each way, so many side by side, in processes of their own."""

    def start(scenario: str, way: tuple[str, ...]) -> str:
        arguments = ["--seconds", str(options.seconds), "--probability", str(options.probability), scenario, *way]
        if options.seed is not None:
            arguments += ["--seed", str(options.seed)]
        ran = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
        return ran.stdout if ran.returncode == 0 else f"{ran.stdout}{ran.stderr}FAIL: exit code {ran.returncode}\n"

    passed = True
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        for output in executor.map(start, *zip(*itertools.product(SCENARIOS, WAYS.values()), strict=True)):
            print(output, end="", flush=True)
            passed = passed and output.startswith("PASS")
    return passed


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="?", choices=SCENARIOS, help="default: all, in processes of their own")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each scenario")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--probability", type=float, default=0.01, help="of a pause at a line")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--deflate", action="store_true", help="with compressed messages")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many processes side by side")
    options = parser.parse_args(arguments)
    return not (one(options, options.scenario) if options.scenario else all_of_them(options))


if __name__ == "__main__":
    if main():
        os._exit(1)  # threads may be stuck
