"""A soak: hundreds of connections for a long time, with faults and restarts; were the promises kept for each message?

    pip install '.[tests,benchmarks]'
    python tests/system/soak.py --minutes 60 --plot soak.png

A client process with a thread for each connection (`soaking/client.py`), two servers that are killed, or asked to end,
and started again (`soaking/server.py`), and a relay that cuts, resets, silences and slows connections
(`soaking/relay.py`). Every message has a number and a checksum; all processes report what they send and receive, and
the ledger (`soaking/ledger.py`) compares. The memory, the threads and the descriptors of the client are shown over
time. Exit code 1 if a promise was broken, if anything is left behind at the end, or if the memory has grown. Linux.

The last result, of 60 minutes with seed 12 and 42 restarts, Python 3.11, two busy processors: 6,656,437 messages sent,
6,605,771 delivered, the other 50,666 at risk when a connection was lost; lost 0, duplicated 0, reordered 0. The memory
was 120 MiB in the second quarter and 119 in the last; 326 threads, 200 descriptors, and none of either left at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import trustme
from soaking.ledger import Ledger, Totals
from soaking.plan import AT_REST, READY, SERVERS, Record, read_records

START_LIMIT = 60.0
END_LIMIT = 150.0
"""Seconds that a process may take to start, and the client to bring everything to its end."""

GROWTH, GROWTH_MIB = 0.1, 8
"""How much more memory the client may have in the last quarter of its time than in the second one; but for short runs,
in which it has not found its level."""

LONG = 20 * 60.0

LASTING_DESCRIPTORS = 1
"""The epoll instance with which the loop looks after the sockets lent to recv(); made with the first of them."""

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}
"""For glibc, which otherwise has a heap for every few threads and leaves each in fragments, and keeps what a thread has
freed for that very thread: the process then grows for an hour although what it uses stays the same."""


class Plan(NamedTuple):
    """How long, and how much of everything."""

    seconds: float
    connections: int
    rate: float  # messages per second, of each connection in each direction
    seed: int

    @property
    def life(self) -> float:
        """How many seconds a connection lives, on the average, before something happens to it."""
        return min(60.0, max(2.0, self.seconds / 8))


class Sample(NamedTuple):
    """Figures of the client process at one moment."""

    seconds: float
    memory: float  # MiB
    threads: int
    descriptors: int
    messages: int = 0  # delivered so far


class Outcome(NamedTuple):
    """What came out."""

    totals: dict[str, Totals]
    queries: tuple[int, int]
    restarts: int
    samples: list[Sample]
    left: tuple[int, int]  # threads and descriptors at the end, more than at the beginning
    faults: list[str]  # what is wrong, in words


# --- The processes


class Part:
    """A process of the soak. What it reports is entered in the ledger."""

    def __init__(self, books: Books, name: str, *arguments: object) -> None:
        tests = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"soaking.{name}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ALLOCATOR, "PYTHONPATH": path},
        )
        self._name = name
        self._reached: set[bytes] = set()
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(books,), daemon=True)
        self._reader.start()

    def _read(self, books: Books) -> None:
        assert self.process.stdout is not None
        for records in read_records(self.process.stdout.fileno()):
            books.add(records)
            if kinds := {record.kind for record in records} & {READY, AT_REST}:
                with self._changed:
                    self._reached |= kinds
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, kind: bytes, limit: float) -> None:
        """Wait until it is READY or AT_REST."""
        with self._changed:
            self._changed.wait_for(lambda: kind in self._reached or self._ended, limit)
            if kind in self._reached:
                return
        if not self._ended:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1)  # for the stacks to be written
        what = "has ended" if self._ended else f"is not as far as it should be after {limit:g} s"
        raise TimeoutError(f"the {self._name} {what}, see above")

    def tell(self) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it, and enter all that it has reported."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()


class Books:
    """The ledger, for the threads that enter what the processes report."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._lock = threading.Lock()

    def add(self, records: list[Record]) -> None:
        with self._lock:
            self.ledger.add(records)


class Restarter(threading.Thread):
    """Keeps the servers running, but for killing one now and then, or asking it to end."""

    def __init__(self, plan: Plan, books: Books, commands: Sequence[tuple[object, ...]]) -> None:
        super().__init__(daemon=True)
        self.restarts = 0
        self._dice = random.Random(plan.seed)
        self._between = plan.life
        self._stopped = threading.Event()
        self._books = books
        self._commands = commands
        self.servers = [Part(books, "server", *command) for command in commands]
        for server in self.servers:
            server.wait(READY, START_LIMIT)

    def run(self) -> None:
        while not self._stopped.wait(self._dice.expovariate(1 / self._between)):
            index = self._dice.randrange(len(self.servers))
            self.servers[index].end(self._dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            self._stopped.wait(self._dice.expovariate(20 / self._between))
            self.servers[index] = Part(self._books, "server", *self._commands[index])
            self.servers[index].wait(READY, START_LIMIT)
            self.restarts += 1

    def stop(self) -> None:
        """Let them run from now on."""
        self._stopped.set()
        self.join()

    def end(self) -> None:
        """End them all."""
        for server in self.servers:
            server.end()


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody else gets: they are bound, and do not listen."""
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        yield [holder.getsockname()[1] for holder in holders]


@contextlib.contextmanager
def certificate() -> Iterator[tuple[str, str]]:
    """The files of a certificate for 127.0.0.1 with its key, and of the authority that has issued it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    with issued.tempfile() as own, authority.cert_pem.tempfile() as ca:
        yield own, ca


# --- The run


def soak(plan: Plan) -> Outcome:
    """Do all of it."""
    random.seed(plan.seed)
    books = Books()
    with contextlib.ExitStack() as stack:
        own, ca = stack.enter_context(certificate())
        # For each server: plain, plain through the relay, TLS, TLS through the relay.
        ports = stack.enter_context(held_ports(4 * SERVERS))
        commands = [(ports[at], ports[at + 2], own, plan.rate, plan.life) for at in range(0, len(ports), 4)]
        servers = Restarter(plan, books, commands)
        stack.callback(servers.end)
        routes = [f"{ports[at + 1]}:{ports[at]}" for at in range(0, len(ports), 2)]
        relay = Part(books, "relay", plan.life, *routes)
        stack.callback(relay.end)
        relay.wait(READY, START_LIMIT)
        client = Part(books, "client", plan.connections, plan.rate, plan.life, ca, *ports)
        stack.callback(client.end)
        client.wait(READY, START_LIMIT)
        samples = watch(plan, books, client, servers)
        faults = bring_to_rest(servers, relay, client)
        samples.append(take_sample(client.process.pid, plan.seconds, books))
    return judge(books.ledger, servers.restarts, samples, faults)


def watch(plan: Plan, books: Books, client: Part, servers: Restarter) -> list[Sample]:
    """Let it run, and look at the client now and then. The first sample is that of the client at rest."""
    samples = [take_sample(client.process.pid, 0.0, books)]
    began = said = time.monotonic()
    client.tell()
    servers.start()
    while (seconds := time.monotonic() - began) < plan.seconds and client.process.poll() is None:
        time.sleep(min(5.0, plan.seconds / 200))
        samples.append(take_sample(client.process.pid, seconds, books))
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            print(in_words(samples[-1]), flush=True)
    return samples


def take_sample(pid: int, seconds: float, books: Books) -> Sample:
    """Look at the client (Linux)."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    threads, descriptors = (len(os.listdir(process / name)) for name in ("task", "fd"))
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Sample(seconds, memory, threads, descriptors, books.ledger.delivered)


def bring_to_rest(servers: Restarter, relay: Part, client: Part) -> list[str]:
    """Let nothing more happen, and have the client end everything; return what is wrong."""
    servers.stop()
    assert relay.process.stdin is not None
    relay.process.stdin.close()
    client.tell()
    try:
        client.wait(AT_REST, END_LIMIT)
    except TimeoutError as error:
        return [str(error)]
    return []


def judge(ledger: Ledger, restarts: int, samples: list[Sample], faults: list[str]) -> Outcome:
    """Find what is wrong."""
    totals = ledger.totals()
    faults += [f"{name}: a promise was broken: {each}" for name, each in totals.items() if not each.kept]
    if ledger.errors:
        faults.append(f"{ledger.errors} errors, see above")
    left = samples[-1].threads - samples[0].threads, samples[-1].descriptors - samples[0].descriptors
    if left[0] > 0 or left[1] > LASTING_DESCRIPTORS:
        faults.append(f"left behind: {left[0]} threads, {left[1]} descriptors")
    before, after = memory_in_quarters(samples)
    if samples[-1].seconds >= LONG and after > before * (1 + GROWTH) + GROWTH_MIB:
        faults.append(f"the memory has grown from {before:.1f} to {after:.1f} MiB")
    return Outcome(totals, ledger.queries, restarts, samples, left, faults)


def memory_in_quarters(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the median memory of the second and of the last quarter."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter] or samples, samples[-quarter - 1 : -1] or samples
    return statistics.median(each.memory for each in second), statistics.median(each.memory for each in last)


# --- What is shown


def in_words(sample: Sample) -> str:
    """A line."""
    return (
        f"{sample.seconds / 60:5.1f} min: {sample.messages:,} messages delivered, {sample.memory:.1f} MiB, "
        f"{sample.threads} threads, {sample.descriptors} descriptors"
    )


def report(plan: Plan, outcome: Outcome) -> Iterator[str]:
    """All figures."""
    yield f"{plan.seconds / 60:g} minutes, {plan.connections} connections, {outcome.restarts} restarts of a server"
    columns = ("sent", "delivered", "at_risk", "lost", "duplicated", "reordered")
    yield f"{'':28}" + "".join(f"{column.replace('_', ' '):>12}" for column in columns)
    for name, totals in outcome.totals.items():
        yield f"{name:28}" + "".join(f"{getattr(totals, column):12,}" for column in columns)
    answered, unanswered = outcome.queries
    yield f"queries: {answered:,} answered, {unanswered:,} failed with their connection"
    running = outcome.samples[len(outcome.samples) // 4 : -1]
    for column in ("memory", "threads", "descriptors"):
        values = [getattr(each, column) for each in running]
        first, last = getattr(outcome.samples[0], column), getattr(outcome.samples[-1], column)
        yield (
            f"{column}: at first {first:.4g}, then {min(values):.4g} to {max(values):.4g} (median "
            f"{statistics.median(values):.4g}), at the end {last:.4g}"
        )
    before, after = memory_in_quarters(outcome.samples)
    yield f"memory in the second quarter {before:.1f} MiB, in the last {after:.1f} MiB"
    yield from outcome.faults or ["all promises were kept, and nothing is left behind"]


def plot(samples: Sequence[Sample], file: str) -> None:
    """Draw the figures over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, sharex=True, figsize=(10, 8))
    minutes = [sample.seconds / 60 for sample in samples]
    titles = {"memory": "memory, MiB", "threads": "threads", "descriptors": "descriptors", "messages": "delivered"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        axis.plot(minutes, [getattr(sample, column) for sample in samples], linewidth=1)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5.0, help="messages per second, per connection and direction")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plot", metavar="FILE", help="draw the figures over time")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the other processes end, too
    plan = Plan(60 * (options.hours * 60 or options.minutes), options.connections, options.rate, options.seed)
    print(f"seed {plan.seed}, {sys.version.split()[0]}", flush=True)
    outcome = soak(plan)
    print("\n".join(report(plan, outcome)))
    if options.plot:
        plot(outcome.samples, options.plot)
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
