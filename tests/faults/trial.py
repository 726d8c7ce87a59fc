"""Trying cells: many users at once, in one lab."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import judge
import matrix
from lab import Lab, Place
from matrix import SILENT, Cell, Expected
from peers import Authority
from user import use

#: How many cells there are at a time, and of these, how many whose fault has not struck yet.
AT_ONCE, BUSY_AT_ONCE = 48, 8

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


def try_cell(lab: Lab, cell: Cell, trusting: ssl.SSLContext, rule: Rule, turn: Turn) -> list[str]:
    """Have a user in a cell; return what was wrong."""
    waits = cell.fault in (*SILENT, "delay")  # ... and does little else once the fault has struck
    with lab.place(cell, turn.end if waits else lambda: None) as place:
        if not place.will_be_struck:
            turn.end()
        try:
            seen = use(cell, place.url, trusting)
        except Exception as error:
            return [f"{cell}: {error!r}"]
        finally:
            turn.end()
        return [f"{cell}: {complaint}" for complaint in judge.complaints(cell, rule(cell, place), place, seen)]


def try_all(ca: Authority, cells: Iterable[Cell], rule: Rule = promised) -> dict[Cell, list[str]]:
    """Try many at once; return what was wrong in each."""
    tried, trusting, turns = list(cells), ca.client(), threading.Semaphore(BUSY_AT_ONCE)
    with Lab(ca) as lab, ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda cell: try_cell(lab, cell, trusting, rule, Turn(turns)), tried)
        return dict(zip(tried, found, strict=True))
