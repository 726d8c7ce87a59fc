"""Many clients that lose their server together: each comes back with all it has kept, and they do not come as one.

NWEBSOCKET_FULL=1 does it with as many clients as promised and at the pace of the real world, which takes a minute; else
all delays are much shorter. The figures are shown with -s.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import garbage
import measure
import pytest
from numbered import free_port, kill, start_server
from peers import LIMIT

from nwebsocket import CloseEvent, ReconnectingWebSocket
from nwebsocket._connection import backoff, supervisor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
    pytest.mark.timeout(180 if measure.FULL else 50),
]

CLIENTS = measure.size(150, 1000)
SECOND = 1.0 if measure.FULL else 0.15
"""How long what the library takes for a second is here."""

OUTAGE = 3 * SECOND
PATIENCE = 60 if measure.FULL else 20
"""Seconds within which all must be back."""

MOST = 3.0
"""No second has more attempts than so many times the mean."""


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (backoff, "FIRST_DELAY"),
        (backoff, "MAX_DELAY"),
        (backoff, "STABLE"),
        (supervisor, "CONFIRM_INTERVAL"),
    ):
        monkeypatch.setattr(module, name, SECOND * getattr(module, name))


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Allow as many open files as the clients need; the server inherits that."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + 500
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, this system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Member(ReconnectingWebSocket):
    """One of the herd: tells it of all that happens."""

    def __init__(self, url: str, herd: Herd, name: int) -> None:
        self.herd = herd
        self.name = name
        super().__init__(url, headers=self.note_attempt, callbacks="loop", compression=None)

    def note_attempt(self) -> dict[str, str]:
        self.herd.attempts.append(time.monotonic())
        return {}

    def onopen(self) -> None:
        self.herd.note(self.name, is_open=True)

    def onclose(self, event: CloseEvent) -> None:
        self.herd.note(self.name, is_open=False)


class Herd:
    """All clients, and the numbered messages that each has sent."""

    def __init__(self, url: str) -> None:
        self.attempts: list[float] = []
        self.sent = 0  # messages, by each
        self.kept: list[range] = []  # those that all have sent while there was no server
        self._open: set[int] = set()
        self._changed = threading.Condition()
        self.members = [Member(url, self, name) for name in range(CLIENTS)]

    def note(self, name: int, *, is_open: bool) -> None:
        with self._changed:
            (self._open.add if is_open else self._open.discard)(name)
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Wait until so many are open."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._open) == number, PATIENCE), len(self._open)

    def send_round(self, halfway: Callable[[], object] = lambda: None) -> None:
        """Have each send its next number."""
        for member in self.members:
            if member.name == CLIENTS // 2:
                halfway()
            member.send(f"{member.name} {self.sent}")
        self.sent += 1

    def send_rounds(self, seconds: float) -> range:
        """Have each send a number now and then; return the numbers."""
        first, pause, end = self.sent, threading.Event(), time.monotonic() + seconds
        while time.monotonic() < end:
            self.send_round()
            pause.wait(SECOND / 4)
        return range(first, self.sent)

    def close(self) -> None:
        """The server answers the Close frames when it has noted all messages before."""
        for member in self.members:
            member.close()
        for member in self.members:
            assert member.wait_closed(LIMIT).wasClean


@dataclass(frozen=True)
class Footprint:
    """What a process takes, when nothing is under way."""

    memory: float | None  # MiB
    descriptors: int | None
    threads: int

    @classmethod
    def now(cls) -> Footprint:
        for thread in threading.enumerate():
            if thread.name == "nwebsocket-ask":
                thread.join(LIMIT)
        garbage.collect()
        return cls(measure.resident_memory(), measure.open_descriptors(), threading.active_count())


@dataclass(frozen=True)
class Spread:
    """How attempts are spread over the seconds between the loss and the return of the last client."""

    per_second: list[int]
    mean: float

    @classmethod
    def of(cls, attempts: list[float], begin: float, end: float, second: float = SECOND) -> Spread:
        seconds = (end - begin) / second
        per_second = [0] * (int(seconds) + 1)
        for moment in attempts:
            if begin <= moment < end:
                per_second[int((moment - begin) / second)] += 1
        return cls(per_second, sum(per_second) / max(seconds, 1.0))

    @property
    def highest(self) -> float:
        """The highest second, in times of the mean."""
        return max(self.per_second) / self.mean

    def __str__(self) -> str:
        return (
            f"{sum(self.per_second)} attempts, per second: {' '.join(map(str, self.per_second))}; "
            f"mean {self.mean:.0f}, highest {self.highest:.1f} times that"
        )


class Server:
    """The server process."""

    def __init__(self, port: int, log: Path) -> None:
        self._start: Callable[[], subprocess.Popen[str]] = lambda: start_server(port, log)
        self._process = self._start()

    def kill(self) -> None:
        kill(self._process)

    def start(self) -> None:
        self._process = self._start()


def suffer(herd: Herd, server: Server) -> Spread:
    """One outage, after a time without any."""
    herd.send_rounds(backoff.STABLE)
    herd.send_round(halfway=server.kill)
    lost = time.monotonic()
    herd.wait(0)
    herd.kept.append(herd.send_rounds(OUTAGE - (time.monotonic() - lost)))
    server.start()
    herd.wait(CLIENTS)
    back = time.monotonic()
    herd.send_round()
    return Spread.of(herd.attempts, lost, back)


@contextlib.contextmanager
def gathered(log: Path) -> Iterator[tuple[Herd, Server]]:
    with free_port() as port:
        server = Server(port, log)
        try:
            herd = Herd(f"ws://127.0.0.1:{port}/0")
            herd.wait(CLIENTS)
            yield herd, server
            herd.close()
        finally:
            server.kill()


def received(log: Path) -> dict[int, list[int]]:
    """The numbers that have come from each, in order."""
    numbers = defaultdict(list)
    for line in log.read_text().splitlines():
        name, number = line.split()
        numbers[int(name)].append(int(number))
    return numbers


def test_a_herd_loses_its_server_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "received"
    with gathered(log) as (herd, server):
        before = Footprint.now()
        spreads = [suffer(herd, server)]
        once = Footprint.now()
        spreads.append(suffer(herd, server))
        twice = Footprint.now()
    lost, at_risk = check_delivery(herd, received(log))
    print(f"\n{CLIENTS} clients, {herd.sent} messages of each: {at_risk} at risk, {lost} lost")
    print(*spreads, before, once, twice, sep="\n")
    for after in (once, twice):
        assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
    assert caplog.records == []
    assert twice.memory is None or once.memory is None or twice.memory < once.memory + 6
    if measure.FULL:  # else a second is short for a busy machine
        assert max(spread.highest for spread in spreads) < MOST


def check_delivery(herd: Herd, numbers: dict[int, list[int]]) -> tuple[int, int]:
    """Return how many messages were lost, and how many were at risk."""
    kept = {number for away in herd.kept for number in away}
    assert kept
    lost = at_risk = 0
    for member in herd.members:
        arrived = numbers[member.name]
        assert all(a < b for a, b in pairwise(arrived)), f"client {member.name}: each once and in order: {arrived}"
        missing = set(range(herd.sent)).difference(arrived)
        assert not missing & kept, f"client {member.name}: what was kept arrives"
        assert len(missing) <= member.at_risk, f"client {member.name}: what is lost was at risk"
        lost += len(missing)
        at_risk += member.at_risk
    return lost, at_risk
