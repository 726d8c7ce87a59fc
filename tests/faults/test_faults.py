"""The fault lab: whatever a network does to a connection, at whatever moment, its user sees what the README promises.

    relay.py    what does the harm        matrix.py   the cells, and what is promised for each: begin there
    lab.py      a real server behind it   sweep.py    the same before every single byte of a connection
    user.py     the client of one cell    judge.py    compares

Every run tries a small sample of the matrix, or, with the tests marked slow, every second cell. NWEBSOCKET_FULL=1 tries
all of them, and then the sweep, for some 20 minutes:

    NWEBSOCKET_FULL=1 python -m pytest tests/faults

RESULT
"""

from __future__ import annotations

import itertools
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import judge
import matrix
import pytest
import relay
import sweep
from lab import Lab, Place
from matrix import SILENT, Cell, Expected
from measure import FULL
from peers import Authority
from user import use

#: How many connections there are at a time: as many as keep the processor busy, and of those that mostly wait, more.
AT_ONCE, WAITING_AT_ONCE = 8, 48

#: Of how many cells one is in the sample.
SAMPLE = 41

Rule = Callable[[Cell, Place], Expected]
Tell = Callable[[str], None]


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


def check(found: dict[Cell, list[str]]) -> None:
    """Fail with all that was wrong."""
    if complaints := list(itertools.chain.from_iterable(found.values())):
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Print, also when pytest captures the output."""

    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", flush=True)

    return tell


def counted(found: dict[Cell, list[str]], kind: Callable[[Cell], str]) -> Iterator[str]:
    """Lines with the cells tried and passed of each kind."""
    tried = Counter(map(kind, found))
    passed = Counter(kind(cell) for cell, wrong in found.items() if not wrong)
    for name, count in tried.items():
        yield f"{name:30} {count:6} tried, {passed[name]:6} passed"


def test_a_sample_of_the_cells(ca: Authority) -> None:
    cells = list(itertools.islice(matrix.cells(), 0, None, SAMPLE))
    check(try_all(ca, cells, 4 * AT_ONCE))


@pytest.mark.slow
@pytest.mark.timeout(600 if FULL else 120)
@pytest.mark.parametrize("fault", relay.FAULTS)
def test_the_matrix(ca: Authority, fault: str, tell: Tell) -> None:
    chosen = matrix.cells() if FULL else matrix.checkered()
    cells = [cell for cell in chosen if cell.fault == fault]
    found = try_all(ca, cells, WAITING_AT_ONCE if fault in (*SILENT, "delay") else AT_ONCE)
    if FULL:
        tell("\n".join([f"matrix, {fault}:", *counted(found, lambda cell: cell.stage.phase)]))
    check(found)


@pytest.mark.skipif(not FULL, reason="takes some 20 minutes: NWEBSOCKET_FULL=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", list(sweep.undisturbed()), ids=str)
def test_the_sweep(ca: Authority, kind: Cell, tell: Tell) -> None:
    sizes: dict[relay.Direction, int] = {}

    def rule(cell: Cell, place: Place) -> Expected:
        sizes.update(up=place.relay.up.taken, down=place.relay.down.taken)
        return sweep.expected(cell, place)

    check(try_all(ca, [kind], 1, rule))
    cells = list(sweep.cells_like(kind, sizes))
    loud = try_all(ca, (cell for cell in cells if cell.fault not in SILENT), AT_ONCE, sweep.expected)
    silent = try_all(ca, (cell for cell in cells if cell.fault in SILENT), WAITING_AT_ONCE, sweep.expected)
    tell("\n".join([f"sweep, {kind}, {sizes}:", *counted(loud | silent, lambda cell: f"{cell.fault} {cell.stage.direction}")]))
    check(loud | silent)
