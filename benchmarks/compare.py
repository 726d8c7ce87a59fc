"""nwebsocket side by side with other clients: the same work, in alternating short rounds, against the same server.

    pip install '.[benchmarks]' && python benchmarks/compare.py

Every client runs in a process of its own and keeps one connection for each row. Before each measured round comes an
unmeasured one of a fifth of its length. The figures are medians of the rounds; "ratio" is nwebsocket's figure to the
client's in the same run, which tells more than the figure: that depends on the machine and on what else it does.
"CPU us" is the client process's CPU time for each message (all its threads, and the system's work for it), in
microseconds. Where the system lets us (Linux), the server has the last processor to itself and the clients have the
others. Compression is off everywhere. The raw socket is no client, but the floor under all (see _clients.py).
All rows take a quarter of an hour.

The first release of nwebsocket has the same import name; it is measured from a directory of its own:

    pip install --no-deps --target /tmp/v1 nwebsocket==1.0.0 && python benchmarks/compare.py --nwebsocket1 /tmp/v1

    --rows       which rows, by name (see --help), in _rows.py
    --json FILE  everything measured, each round too
    --plot FILE  a bar chart; needs matplotlib
    --markdown   the table for a README: a line a row, a column a client
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

import _report
from _report import Progress, Result
from _rows import IDLE, ROWS, SMALL, V1, Row
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
}

IMPORT = "from time import perf_counter; began = perf_counter(); import {}; print((perf_counter() - began) * 1e3)"


class Bench:
    """The clients' processes, and how each kind of row is measured with them."""

    def __init__(self, address: Address, options: argparse.Namespace) -> None:
        self._address = address
        self._options = options
        self._progress = Progress()
        self._workers: dict[str, Worker] = {}
        self._left_out: dict[str, str] = {}  # clients that cannot run at all, and why
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.kill()

    def measure(self, row: Row) -> list[Result]:
        """Measure a row; a client that has failed has a result that says why."""
        kinds: dict[str, Callable[[Row], Iterator[Result]]] = {
            "rounds": self._rounds,
            "idle": self._idle,
            "import": self._imports,
            "growth": self._growth,
        }
        results = list(kinds[row.measure](row))
        self._progress.clear()
        if row.measure != "growth":
            results.sort(key=lambda result: row.clients.index(result.client))
            for result in results:
                result.ratio = _quotient(results[0].figure, result.figure)
        return results

    # --- The kinds of rows

    def _rounds(self, row: Row) -> Iterator[Result]:
        """Rounds of a job, alternating between the clients, each with its connection kept."""
        url = self._address.url(row.path, tls=row.tls)
        results = {client: Result(client) for client in row.clients}
        for client, result in results.items():
            self._step(result, client, "open", row.job, url, *row.arguments)
        for number in range(self._options.rounds):
            for client, result in list(results.items())[:: -1 if number % 2 else 1]:
                self._progress.show(f"{row.name}: round {number + 1} of {self._options.rounds}, {client}")
                self._step(result, client, "round", row.messages or self._options.seconds)
        for client, result in results.items():
            self._step(result, client, "close")
        yield from results.values()

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
        if client in self._left_out:
            raise ClientFailed(self._left_out[client])
        if client.startswith(V1) and self._options.nwebsocket1 is None:
            self._left_out[client] = "needs --nwebsocket1"
            raise ClientFailed(self._left_out[client])
        try:
            worker = Worker(client, self._address.ca, self._path(client), TIMEOUT)
        except ClientFailed as failure:
            self._left_out[client] = str(failure)
            raise
        self.versions[client] = worker.version
        return worker

    def _can_run(self, client: str) -> bool:
        try:
            self._worker(client)
        except ClientFailed:
            return False
        return True

    def _path(self, client: str) -> str | None:
        return self._options.nwebsocket1 if client.startswith(V1) else None


def _quotient(number: float | None, divisor: float | None) -> float | None:
    return number / divisor if number and divisor else None


def _import_time(module: str, path: str | None) -> float:
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    command = [sys.executable, "-c", IMPORT.format(module)]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=TIMEOUT).stdout)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="nwebsocket side by side with other clients.",
        epilog="rows: " + ", ".join(ROWS),
    )
    parser.add_argument("--rows", type=_rows, default=list(ROWS.values()), help="names, with commas (default: all)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each client, alternating (default: 5)")
    parser.add_argument("--nwebsocket1", metavar="DIRECTORY", help="where nwebsocket 1.0.0 is, to be compared too")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart (needs matplotlib)")
    return parser.parse_args()


def _rows(names: str) -> list[Row]:
    if unknown := [name for name in names.split(",") if name not in ROWS]:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}")
    return [ROWS[name] for name in names.split(",")]


def main() -> None:
    options = parse_options()
    if options.plot:
        _report.require_matplotlib()
    results: dict[Row, list[Result]] = {}
    load = _report.load()
    with running_server() as address, Bench(address, options) as bench:
        processors = split_processors()
        stay_on(processors[1])  # and with us all clients, which we start
        for row in options.rows:
            results[row] = bench.measure(row)
            print(_report.table(row, results[row]), flush=True)
    about = _report.about(bench.versions, processors, load)
    print(about)
    if options.markdown:
        print(_report.markdown(results))
    if options.json:
        options.json.write_text(_report.as_json(results, bench.versions, about))
    if options.plot:
        _report.plot(results, about, options.plot)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
