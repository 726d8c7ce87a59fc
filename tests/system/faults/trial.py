"""Trying cells: many users at once, in one lab."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import judge
import matrix
from lab import Lab, Place
from matrix import SILENT, Cell, Expected
from peers import Authority
from user import use

if TYPE_CHECKING:
    from typing_extensions import Self

#: How many cells there are at a time, and of these, how many whose fault has not struck yet.
AT_ONCE, BUSY_AT_ONCE = 48, 8

#: A pause of so many seconds, found out in steps of so many, makes a trial unfair: the shortest time-outs are not much
#: longer. So often a cell is tried whose trial was.
PAUSE, TICK, ATTEMPTS = 0.2, 0.02, 5

Rule = Callable[[Cell, Place], Expected]


def promised(cell: Cell, place: Place) -> Expected:
    """What the matrix says."""
    return matrix.expected(cell)


class Turn:
    """The right to keep the processor busy, which few have at a time, lest the time-outs of others pass meanwhile."""

    def __init__(self, turns: threading.Semaphore) -> None:
        turns.acquire()
        self._ends = [turns.release]

    def end(self) -> None:
        """Leave it to the next one; may be called again."""
        with contextlib.suppress(IndexError):
            self._ends.pop()()


class Pauses:
    """Notices when this process stood still, as it does on a machine that has others to serve."""

    def __init__(self) -> None:
        self._last_ended_at = -inf
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        before = monotonic()
        while not self._end.wait(TICK):
            now = monotonic()
            if now - before > PAUSE:
                self._last_ended_at = now
            before = now

    def any_since(self, moment: float) -> bool:
        """Whether there was one."""
        return self._last_ended_at > moment


class Trial:
    """What all cells that are tried together have in common."""

    def __init__(self, lab: Lab, pauses: Pauses, trusting: ssl.SSLContext, rule: Rule) -> None:
        self._lab = lab
        self._pauses = pauses
        self._trusting = trusting
        self._rule = rule
        self._turns = threading.Semaphore(BUSY_AT_ONCE)

    def of(self, cell: Cell) -> list[str]:
        """Have a user in a cell; return what was wrong, unless the machine was: then try again."""
        for _ in range(ATTEMPTS):
            began = monotonic()
            found = self._attempt(cell, Turn(self._turns))
            if not found or not self._pauses.any_since(began):
                break
        return found

    def _attempt(self, cell: Cell, turn: Turn) -> list[str]:
        waits = cell.fault in (*SILENT, "delay")  # ... and does little else once the fault has struck
        with self._lab.place(cell, turn.end if waits else lambda: None) as place:
            if not place.will_be_struck:
                turn.end()
            try:
                seen = use(cell, place.url, self._trusting)
            except Exception as error:
                return [f"{cell}: {error!r}"]
            finally:
                turn.end()
            return [f"{cell}: {found}" for found in judge.complaints(cell, self._rule(cell, place), place, seen)]


def try_all(ca: Authority, cells: Iterable[Cell], rule: Rule = promised) -> dict[Cell, list[str]]:
    """Try many at once; return what was wrong in each."""
    tried = list(cells)
    with Lab(ca) as lab, Pauses() as pauses, ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(Trial(lab, pauses, ca.client(), rule).of, tried)
        return dict(zip(tried, found, strict=True))
