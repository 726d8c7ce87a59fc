"""nwebsocket side by side with other clients: the same work, in alternating short rounds, against the same server.

    pip install '.[benchmarks]' && python benchmarks/compare.py

There are two groups of rows, --rows default,plain; without that option, the first is measured.

default  What users get: default options on both sides, against servers as users run them (`websockets`, aiohttp,
         uvicorn, Node's `ws`), each in a process of its own, started for the row. Who can compress does; the table says
         who. Each round has a new connection. The texts differ as those of a feed do (see _messages.py), and each must
         come back as it was sent. For each client, "to websockets" and "to websocket-client" are its rate and its CPU
         time to theirs: of pairs of the same round, and of those the median. In "received" the server, which sends the
         messages one by one, may be the slower side: there the CPU time tells more.
plain    No compression, each client as its documentation says is fastest, one connection for each row, against a server
         in C. "ratio" is nwebsocket's figure to the client's, of pairs in the same way.

The raw socket is no client, but the floor under all (see _raw.py).

Every client runs in a process of its own. Before each measured round comes an unmeasured one of a fifth of its length.
The figures are medians of the rounds; the ratios tell more than the figures, which depend on the machine and on what
else it does. "CPU us" is the client process's CPU time for each message (all its threads, and the system's work for
it), in microseconds. Where the system lets us (Linux), the server has the last processor to itself and the clients have
the others. The first group takes some ten minutes, the second twenty.

The first release of nwebsocket has the same import name; it is measured from a directory of its own:

    pip install --no-deps --target /tmp/v1 nwebsocket==1.0.0 && python benchmarks/compare.py --nwebsocket1 /tmp/v1

And so is any other version, from its source tree, in each row and way that ours is measured in, to judge a change:

    git worktree add /tmp/before main && python benchmarks/compare.py --base /tmp/before/src

What a shortcut gains (see nwebsocket/_base/shortcuts.py) is seen in the same way, beside the library without it:

    python benchmarks/compare.py --rows plain --without burst_end

    --rows       which rows, by group or by name (see --help), in _rows.py
    --base SRC   another source tree, to be compared too
    --without X  the library without the shortcut X, to be compared too
    --json FILE  everything measured, each round too
    --plot FILE  a bar chart; needs matplotlib
    --markdown   the tables for a README: a line a row, a column a client
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import _plot
import _report
from _real_servers import COMPRESSING, ServerMissing, real_server
from _report import Progress, Result, paired
from _rows import BASE, GROUPS, IDLE, ROWS, SMALL, V1, Row, library
from _server import Address, running_server, split_processors, stay_on
from _worker import ClientFailed, Worker

TIMEOUT = 30.0
"""Seconds that a client may take for any one step before it is killed and left out of the row."""

GROWTH = {
    "messages": (1_000, 10_000, 100_000, 1_000_000),  # on one connection, 64 in flight
    "connections": (1, 10, 100, 1_000),  # one message at a time, each on the next connection
}

MODULES = {
    "nwebsocket": "nwebsocket",
    "websockets": "websockets.sync.client",
    "websocket-client": "websocket",
    "simple-websocket": "simple_websocket",
    "curl_cffi": "curl_cffi",
    "aiohttp": "aiohttp",
    V1: "nwebsocket",
    BASE: "nwebsocket",
}

IMPORT = "from time import perf_counter; began = perf_counter(); import {}; print((perf_counter() - began) * 1e3)"


class Bench:
    """The clients' processes, and how each kind of row is measured with them."""

    def __init__(self, address: Address, processors: tuple[set[int], set[int]], options: argparse.Namespace) -> None:
        self._address = address
        self._processors = processors
        self._options = options
        self._progress = Progress()
        self._workers: dict[str, Worker] = {}
        self._left_out: dict[str, str] = {}  # clients that cannot run at all, and why
        self.versions: dict[str, str] = {}
        self.files: dict[str, str] = {}  # where ours and the other source tree were imported from
        self.servers: dict[str, str] = {}  # those with default options, and what they are

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.kill()

    def measure(self, row: Row) -> list[Result]:
        """Measure a row; a client that has failed has a result that says why. Raises ServerMissing."""
        kinds: dict[str, Callable[[Row], Iterator[Result]]] = {
            "rounds": self._rounds,
            "default": self._default,
            "idle": self._idle,
            "import": self._imports,
            "growth": self._growth,
        }
        results = list(kinds[row.measure](row))
        self._progress.clear()
        if row.measure != "growth":
            results.sort(key=lambda result: row.clients.index(result.client))
            for result in results:
                result.ratio = paired(results[0].rounds, result.rounds)
        return results

    # --- The kinds of rows

    def _rounds(self, row: Row) -> Iterator[Result]:
        """Rounds of a job, alternating between the clients, each with its connection kept."""
        url = self._address.url(row.path, tls=row.tls)
        results = {client: Result(client) for client in row.clients}
        for client, result in results.items():
            self._step(result, client, "open", row.job, url, *row.arguments)
        for result in self._alternating(row, results):
            self._step(result, result.client, "round", row.messages or self._options.seconds)
        for client, result in results.items():
            self._step(result, client, "close")
        yield from results.values()

    def _default(self, row: Row) -> Iterator[Result]:
        """Rounds of a job with default options, alternating between the clients, against a server of the row's own.

        Each has a new connection: a client that answers pings in recv() only would lose one while the others are
        measured.
        """
        results = {client: Result(client) for client in row.clients}
        with real_server(row.server, self._processors) as server:
            self.servers[row.server] = server.about
            url = server.address.url(row.path, tls=False)
            for result in self._alternating(row, results):
                self._step(result, result.client, "open", row.job, url, *row.arguments)
                self._check_compression(row, result)
                self._step(result, result.client, "round", row.messages or self._options.seconds)
                self._step(result, result.client, "close")
        yield from results.values()

    def _alternating(self, row: Row, results: dict[str, Result]) -> Iterator[Result]:
        """The results, each once a round, in the other order every other round."""
        for number in range(self._options.rounds):
            for result in list(results.values())[:: -1 if number % 2 else 1]:
                self._progress.show(f"{row.name}: round {number + 1} of {self._options.rounds}, {result.client}")
                yield result

    def _check_compression(self, row: Row, result: Result) -> None:
        """See to it that the connection is compressed if both sides do that by default, and not otherwise."""
        if result.note:
            return
        told = self._worker(result.client).ask("compression")
        compressed = "permessage-deflate" in told["extensions"]
        if compressed != (told["offers"] and COMPRESSING[row.server]):
            result.fail(f"with {told['extensions'] or 'no'} extension, which is not the default")
        result.compression = "deflate" if compressed else "none" if told["offers"] else "cannot"

    def _step(self, result: Result, client: str, *request: Any) -> None:
        """Have a client do the next step of its row, unless it has failed in one before."""
        if result.note:
            return
        try:
            figures = self._worker(client).ask(*request)
        except ClientFailed as failure:
            result.fail(str(failure))
        else:
            if figures:
                result.add(**figures)

    def _idle(self, row: Row) -> Iterator[Result]:
        """What idle connections cost, each client in a fresh process."""
        if sys.platform == "win32":
            yield Result(row.clients[0], note="Windows does not tell how much memory is resident in the way used here")
            return
        for client in row.clients:
            self._progress.show(f"{row.name}: {client}")
            try:
                with self._fresh(client) as worker:
                    figures = worker.ask("idle", self._address.url("echo", tls=False), IDLE, 10)
            except ClientFailed as failure:
                yield Result(client, note=str(failure))
            else:
                yield Result(client, [figures["figure"]], note=f"threads: {figures['threads']}")

    def _imports(self, row: Row) -> Iterator[Result]:
        """The time of an import in fresh interpreters, alternating, after one of each to fill the caches."""
        results = {client: Result(client) for client in row.clients if self._can_run(client)}
        for number in range(4 * self._options.rounds + 1):
            self._progress.show(f"{row.name}: round {number} of {4 * self._options.rounds}")
            for client, result in results.items():
                milliseconds = _import_time(MODULES[client], self._path(client))
                if number:
                    result.add(milliseconds)
        yield from results.values()
        for client in row.clients:
            if client not in results:
                yield Result(client, note=self._left_out[client])

    def _growth(self, row: Row) -> Iterator[Result]:
        """CPU for each message at several amounts of work, alternating; its ratio is to the smallest amount's."""
        (client,) = row.clients
        results = {(what, n): Result(f"{what}: {n:,}") for what, amounts in GROWTH.items() for n in amounts}
        for number in range(min(self._options.rounds, 3)):
            for (what, amount), result in results.items():
                self._progress.show(f"{row.name}: round {number + 1}, {amount:,} {what}")
                try:
                    result.add(self._cost(client, what, amount))
                except ClientFailed as failure:
                    yield Result(client, note=f"{amount:,} {what}: {failure}")
                    return
        for (what, _), result in results.items():
            result.ratio = _quotient(result.figure, results[what, GROWTH[what][0]].figure)
            yield result

    def _cost(self, client: str, what: str, amount: int) -> float:
        """Microseconds of CPU for a message. Few messages are sent on several connections: one alone tells little."""
        url, worker = self._address.url("echo", tls=False), self._worker(client)
        if what == "connections":
            worker.ask("open", "spread", url, SMALL, amount)
            cost: float = worker.ask("round", 10_000)["cpu"]
            worker.ask("close")
            return cost
        costs: list[float] = []
        piece = min(amount, 100_000)  # no step may take longer than TIMEOUT
        for _ in range(max(1, 20_000 // amount)):
            worker.ask("open", "exchange", url, SMALL, 64)
            costs += [worker.ask("round", piece)["cpu"] for _ in range(amount // piece)]
            worker.ask("close")
        return fmean(costs)

    # --- The processes

    def _worker(self, client: str) -> Worker:
        """The client's process, started at its first use, and again after it has been killed."""
        worker = self._workers.get(client)
        if worker is None or not worker.alive():
            worker = self._workers[client] = self._fresh(client)
        return worker

    def _fresh(self, client: str) -> Worker:
        if client not in self._left_out:
            try:
                return self._started(client)
            except ClientFailed as failure:
                self._left_out[client] = str(failure)
        raise ClientFailed(self._left_out[client])

    def _started(self, client: str) -> Worker:
        path = self._path(client)
        if path is None and client.startswith(V1):
            raise ClientFailed("needs --nwebsocket1")
        name = client.replace(BASE, "nwebsocket", 1) if library(client) == BASE else client
        without = self._options.without if library(client) == BASE else None
        worker = Worker(name, self._address.ca, path, TIMEOUT, without)
        elsewhere = path is not None and not Path(worker.file).resolve().is_relative_to(Path(path).resolve())
        if library(client) == BASE and elsewhere:
            worker.kill()
            raise ClientFailed(f"{worker.file} was imported instead of what is in {path}")
        self.versions[client] = worker.version
        if worker.file:
            self.files[library(client)] = worker.file
        return worker

    def _can_run(self, client: str) -> bool:
        try:
            self._worker(client)
        except ClientFailed:
            return False
        return True

    def _path(self, client: str) -> str | None:
        """Where the client's modules are, if not where everybody finds them."""
        paths: dict[str, str | None] = {V1: self._options.nwebsocket1, BASE: self._options.base}
        return paths.get(library(client))


def _quotient(number: float | None, divisor: float | None) -> float | None:
    return number / divisor if number and divisor else None


def _import_time(module: str, path: str | None) -> float:
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    command = [sys.executable, "-c", IMPORT.format(module)]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=TIMEOUT).stdout)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="nwebsocket side by side with other clients.",
        epilog="; ".join(f"{group}: {', '.join(row.name for row in rows)}" for group, rows in GROUPS.items()),
    )
    parser.add_argument("--rows", type=_rows, default="default", help="groups or names, with commas (default: default)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each client, alternating (default: 7)")
    parser.add_argument("--base", metavar="SRC", help="another source tree of nwebsocket, its src, to be compared too")
    parser.add_argument("--without", metavar="SHORTCUT", help="the library without a shortcut, to be compared too")
    parser.add_argument("--nwebsocket1", metavar="DIRECTORY", help="where nwebsocket 1.0.0 is, to be compared too")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart (needs matplotlib)")
    return parser.parse_args()


def _rows(names: str) -> list[Row]:
    if unknown := [name for name in names.split(",") if name not in ROWS and name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join([*GROUPS, *ROWS])}")
    return list(dict.fromkeys(row for name in names.split(",") for row in GROUPS.get(name) or (ROWS[name],)))


def _measured(bench: Bench, row: Row) -> list[Result]:
    """Measure a row and print it; if its server is missing, say so and return nothing."""
    try:
        results = bench.measure(row)
    except ServerMissing as missing:
        print(f"{row.name}: left out, because {missing}\n", flush=True)
        return []
    print(_report.table(row, results), flush=True)
    return results


def main() -> None:
    options = parse_options()
    if options.plot:
        _plot.require_matplotlib()
    results: dict[Row, list[Result]] = {}
    load = _report.load()
    processors = split_processors()
    with running_server() as address, Bench(address, processors, options) as bench:
        stay_on(processors[1])  # and with us all clients, which we start
        for row in (row.with_base() if options.base or options.without else row for row in options.rows):
            if found := _measured(bench, row):
                results[row] = found
    about = _report.about(bench.versions, bench.servers, processors, load)
    print(about)
    if options.base:
        print(*(f"{name} is {file}" for name, file in bench.files.items()), sep="\n")
    if options.markdown:
        print(_report.markdown(results))
    if options.json:
        options.json.write_text(_report.as_json(results, bench.versions, about))
    if options.plot:
        _plot.plot(results, about, options.plot)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
