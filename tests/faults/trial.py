"""Trying cells: many users at once, in one lab."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import judge
import matrix
from lab import Lab, Place
from matrix import Cell, Expected
from peers import Authority
from user import use

Rule = Callable[[Cell, Place], Expected]


def promised(cell: Cell, place: Place) -> Expected:
    """What the matrix says."""
    return matrix.expected(cell)


def try_cell(lab: Lab, cell: Cell, trusting: ssl.SSLContext, rule: Rule) -> list[str]:
    """Have a user in a cell; return what was wrong."""
    with lab.place(cell) as place:
        try:
            seen = use(cell, place.url, trusting)
        except Exception as error:
            return [f"{cell}: {error!r}"]
        return [f"{cell}: {complaint}" for complaint in judge.complaints(cell, rule(cell, place), place, seen)]


def try_all(ca: Authority, cells: Iterable[Cell], at_once: int, rule: Rule = promised) -> dict[Cell, list[str]]:
    """Try many at once; return what was wrong in each."""
    tried, trusting = list(cells), ca.client()
    with Lab(ca) as lab, ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda cell: try_cell(lab, cell, trusting, rule), tried)
        return dict(zip(tried, found, strict=True))
