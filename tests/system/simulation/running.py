"""One run from its seed, or from its choices."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence

from nwebsocket._threads import the_loop

from .scenarios import SCENARIOS, Run
from .scheduler import PCT, Random, Replay, Scheduler, Strategy
from .world import World

END = 10.0
"""Virtual seconds for the loop to end."""


RUNS_TO_COLLECT = 20
"""Runs after which garbage is collected: none is during a run."""

STEPS = {False: 250, True: 3000}
"""Steps of a run, roughly: coarse, and fine."""

_since_collection = 0


class Result:
    """What a run came to.

    ``errors``   what went wrong; nothing: it passed
    ``choices``  by which replay() repeats it
    ``trace``    a line for each step, if it was kept
    """

    def __init__(self, scheduler: Scheduler, errors: list[str]) -> None:
        self.errors = errors
        self.choices = scheduler.choices
        self.trace = scheduler.trace
        self.steps = scheduler.steps


def strategy_of(seed: int, *, fine: bool) -> Strategy:
    """Half of the seeds are for one strategy, half for the other."""
    return PCT(seed, depth=1 + seed // 2 % 5, steps=STEPS[fine]) if seed % 2 else Random(seed)


def run(scenario: str, seed: int, *, compressed: bool = False, fine: bool = False, keep_trace: bool = False) -> Result:
    """Run a scenario as this seed decides."""
    return _run(scenario, strategy_of(seed, fine=fine), compressed=compressed, fine=fine, keep_trace=keep_trace)


def replay(
    scenario: str, choices: Sequence[int], *, compressed: bool = False, fine: bool = False, keep_trace: bool = False
) -> Result:
    """Run a scenario as these choices decide."""
    return _run(scenario, Replay(choices), compressed=compressed, fine=fine, keep_trace=keep_trace)


def _run(scenario: str, strategy: Strategy, *, compressed: bool, fine: bool, keep_trace: bool) -> Result:
    global _since_collection
    _since_collection += 1
    if _since_collection == RUNS_TO_COLLECT:
        _since_collection = 0
        gc.collect()
    scheduler = Scheduler(strategy, fine=fine, keep_trace=keep_trace)
    world = World(scheduler)
    log = _Log()
    logger = logging.getLogger("nwebsocket")
    logger.addHandler(log)
    collecting = gc.isenabled()
    gc.disable()  # finalizers would run at moments that no seed decides

    def main() -> None:
        try:
            SCENARIOS[scenario](Run(scheduler, world, compressed=compressed))
        finally:
            the_loop.stop(END)

    try:
        with world.entered():
            scheduler.run(main)
    finally:
        logger.removeHandler(log)
        if collecting:
            gc.enable()
    return Result(scheduler, scheduler.errors + log.lines)


def shrink(
    scenario: str, choices: Sequence[int], *, compressed: bool = False, fine: bool = False, most: int = 300
) -> list[int]:
    """The fewest choices found that still fail: the end is cut off, and what can be 0 is."""

    def fails(candidate: list[int]) -> bool:
        nonlocal most
        most -= 1
        return most >= 0 and bool(replay(scenario, candidate, compressed=compressed, fine=fine).errors)

    best = list(choices)
    size = len(best)
    while size:
        for start in range(0, len(best), size):
            if not any(best[start : start + size]):
                continue
            candidate = best[:start] + [0] * len(best[start : start + size]) + best[start + size :]
            if fails(candidate):
                best = candidate
        size //= 2
    while best and not best[-1]:
        best.pop()
    return best


class _Log(logging.Handler):
    """What the library's log tells of errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))
