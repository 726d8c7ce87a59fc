"""The fault lab: whatever a network does to a connection, at whatever moment, its user sees what `docs` promises.

    relay.py    what does the harm        matrix.py   the cells, and what is promised for each: begin there
    lab.py      a real server behind it   sweep.py    the same before every single byte of a connection
    talk.py     what that says            names.py    the same in DNS
    user.py     the client of one cell    judge.py    compares what is promised and what is seen
    trial.py    many cells at once

Every run tries a small sample of the matrix, or, with the tests marked slow, every third cell. NWEBSOCKET_FULL=1 tries
all of them, and then the sweep, for some 20 minutes; it prints how many cells were tried and passed:

    NWEBSOCKET_FULL=1 python -m pytest tests/system/faults

The last results, Python 3.11, two very busy processors: of the matrix 4,806 cells tried, 4,806 passed; of the sweep
without TLS 22,050 tried, 22,050 passed; of that with TLS 36,125 tried, 36,125 passed.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import bad_network
import matrix
import names
import pytest
import relay
import sweep
from lab import Place
from matrix import Cell, Expected
from measure import FULL
from peers import Authority
from trial import try_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts on how Linux's sockets deliver and refuse")

#: Of how many cells one is in the sample.
SAMPLE = 53

Tell = Callable[[str], None]


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


def is_here(cell: Cell) -> bool:
    """Whether a cell can be tried in this process."""
    return cell.stage.phase != "dns"


def test_a_sample_of_the_cells(ca: Authority) -> None:
    cells = list(itertools.islice(filter(is_here, matrix.cells()), 0, None, SAMPLE))
    check(try_all(ca, cells))


@pytest.mark.slow
@pytest.mark.timeout(600 if FULL else 120)
@pytest.mark.parametrize("fault", relay.FAULTS)
def test_the_matrix(ca: Authority, fault: str, tell: Tell) -> None:
    chosen = matrix.cells() if FULL else matrix.every_third()
    cells = [cell for cell in chosen if cell.fault == fault and is_here(cell)]
    found = try_all(ca, cells)
    if FULL:
        tell("\n".join([f"matrix, {fault}:", *counted(found, lambda cell: cell.stage.phase)]))
    check(found)


@pytest.mark.slow
@pytest.mark.skipif(bad_network.missing() is not None, reason=str(bad_network.missing()))
def test_looking_up_a_name() -> None:
    result = names.run_apart()
    cells = sum(not is_here(cell) for cell in matrix.cells())
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{cells} tried\n", "")


@pytest.mark.skipif(not FULL, reason="takes some 20 minutes: NWEBSOCKET_FULL=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", list(sweep.undisturbed()), ids=str)
def test_the_sweep(ca: Authority, kind: Cell, tell: Tell) -> None:
    sizes: dict[relay.Direction, int] = {}

    def rule(cell: Cell, place: Place) -> Expected:
        sizes["up"], sizes["down"] = place.relay.up.taken, place.relay.down.taken
        return sweep.expected(cell, place)

    check(try_all(ca, [kind], rule))
    found = try_all(ca, sweep.cells_like(kind, sizes), sweep.expected)
    lines = counted(found, lambda cell: f"{cell.fault} {cell.stage.direction}")
    tell("\n".join([f"sweep, {kind}, {sizes}:", *lines]))
    check(found)
