"""Round-trip queries per second of one connection to an echo server.

    pip install '.[benchmarks]' && python benchmarks/roundtrip.py

Starts an echo server in a process of its own unless --url names one: that of `websockets`, as users run it, which
accepts our offer to compress; with --compression none picows, which is C, so that the client is what is measured. The
ways to query:

    main         one query at a time from the main thread: send(), recv()
    callbacks    one at a time; onmessage, on the socket's callback thread, sends the next
    loop         the same on the loop thread (callbacks="loop")
    64, 1024     so many in flight from the main thread: send() them all, recv() them all, and again
    json         main with a JSON object around each text: json.dumps() and json.loads() by hand
    query        the same with QueryMixin: query() and result()
    json1024, query1024   so many of these in flight

with messages of 32 B to 1 MiB, text and bytes, plain and TLS. The texts are pieces of a book, the bytes are random, and
no message comes soon again, so that they shrink as real ones do: texts by half or more, bytes not at all. No more than
8 MiB are in flight: of 64 KiB, 64 and 128 messages; of 1 MiB, 8.

Everything is measured in turn, in short rounds, each on a new connection, after an unmeasured one of a fifth of its
length; the table has the medians of the rounds. The latency is that of a query, from its send() until its answer is
handed over, in microseconds. "CPU us" is this process's CPU time for a query (all its threads, and the
system's work for it), in microseconds. Where the system lets us (Linux), the server has the last processor to itself
and we have the others: on one processor, the same round trip is another thing.

    --only         what to measure, in the words of the table: --only plain text 32B 64KiB main loop
    --compression  deflate, the library's default, or none
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from statistics import median, quantiles
from string import ascii_letters, digits
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from _callback_jobs import CallbackEcho
from _jobs import Echo, Link, check_size
from _messages import Message, pieces, random_bytes
from _ours import Nwebsocket, NwebsocketCallbacks, NwebsocketLoop, NwebsocketQueries
from _real_servers import ServerMissing, real_server
from _report import Progress, about, load
from _server import Address, running_server, split_processors, stay_on
from _worker import WARM_UP

SIZES = {"32B": 32, "1KiB": 2**10, "64KiB": 2**16, "1MiB": 2**20}
OBJECT_WAYS = ("json", "query", "json1024", "query1024")
"""With JSON objects, so for text only."""
WAYS = ("main", "callbacks", "loop", "64", "1024", *OBJECT_WAYS)
WORDS = (("plain", "TLS"), ("text", "bytes"), tuple(SIZES), WAYS)
MOST_IN_FLIGHT = 8 * 2**20
"""Bytes: they all wait in the memory of both processes."""
MESSAGES = 2**22
"""Bytes of different messages, and at least four: then they come again."""


@cache
def messages_of(size: int, kind: str) -> list[Any]:
    return (pieces if kind == "text" else random_bytes)(size, min(max(4, MESSAGES // size), 10_000))


class TimedEcho(Echo):
    """An Echo of different messages, all of one size, that takes the time of each query as well."""

    def __init__(self, link: Link, messages: list[Any], in_flight: int) -> None:
        super().__init__(link, messages[0], in_flight)
        self.messages: Iterator[Message] = itertools.cycle(messages)
        self.seconds: list[float] = []  # of each query of the last round

    def round(self, seconds: float) -> int:
        self.seconds = []
        return super().round(seconds)

    def burst(self) -> None:
        (send, recv, _), size = self.link, len(self.message)
        sent = []
        for message in itertools.islice(self.messages, self.in_flight):
            sent.append(perf_counter())
            send(message)
        for began in sent:
            if len(reply := recv()) != size:
                check_size(reply, size)
            self.seconds.append(perf_counter() - began)


class JsonEcho(TimedEcho):
    """Each text in a JSON object, made and read by hand."""

    def burst(self) -> None:
        (send, recv, _), size = self.link, len(self.message)
        sent = []
        for number, message in enumerate(itertools.islice(self.messages, self.in_flight)):
            sent.append(perf_counter())
            send(json.dumps({"data": message, "id": number}))
        for began in sent:
            check_size(json.loads(recv())["data"], size)
            self.seconds.append(perf_counter() - began)


class QueryEcho(TimedEcho):
    """Each text in a query; the link's send() is query()."""

    def burst(self) -> None:
        query: Any = self.link.send
        size = len(self.message)
        sent = []
        for message in itertools.islice(self.messages, self.in_flight):
            began = perf_counter()
            sent.append((began, query({"data": message})))
        for began, asked in sent:
            check_size(asked.result()["data"], size)
            self.seconds.append(perf_counter() - began)


@dataclass
class Row:
    """A way to query, with what and over what; and what each round of it came to."""

    url: str
    words: tuple[str, ...]  # one of each of WORDS
    per_second: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)  # microseconds, as the others
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        number = self.words[3].lstrip(ascii_letters)
        return min(int(number), MOST_IN_FLIGHT // SIZES[self.words[2]]) if number else 1

    @property
    def how(self) -> str:
        name = self.words[3].rstrip(digits)
        return f"{name} {self.in_flight:,} in flight".lstrip() if name != self.words[3] else name

    def measure(self, ca: str | None, compression: str | None, seconds: float) -> None:
        """Add a round."""
        job = self._job(ca, compression)
        job.round(seconds * WARM_UP)
        cpu, began = process_time(), perf_counter()
        count = job.round(seconds)
        wall, cpu = perf_counter() - began, process_time() - cpu
        job.close()
        percentiles = quantiles(job.seconds, n=100) if count > 1 else job.seconds * 99
        self.per_second.append(count / wall)
        self.p50.append(percentiles[49] * 1e6)
        self.p99.append(percentiles[98] * 1e6)
        self.cpu.append(cpu / count * 1e6)

    def _job(self, ca: str | None, compression: str | None) -> Any:
        _, kind, name, way = self.words
        size, url = SIZES[name], self.url
        messages = messages_of(size, kind)
        if way in ("callbacks", "loop"):
            client = (NwebsocketLoop if way == "loop" else NwebsocketCallbacks)(ca, compression)
            return CallbackEcho(lambda handler: client.handled(url, handler), itertools.cycle(messages), size)
        if way.startswith("query"):
            return QueryEcho(NwebsocketQueries(ca, compression).open(url, kind), messages, self.in_flight)
        echo = JsonEcho if way.startswith("json") else TimedEcho
        return echo(Nwebsocket(ca, compression).open(url, kind), messages, self.in_flight)

    def line(self) -> str:
        over, kind, size, _ = self.words
        figures = [median(column) for column in (self.per_second, self.p50, self.p99, self.cpu)]
        return f"{self.how:24}{size:>7} {kind:6}{over:6}" + "".join(f"{figure:12,.0f}" for figure in figures)


HEAD = f"{'':44}{'queries/s':>12}{'p50 us':>12}{'p99 us':>12}{'CPU us':>12}"


def rows_of(urls: Mapping[str, str], only: list[str]) -> list[Row]:
    """All combinations that `only` leaves; each once, though MOST_IN_FLIGHT makes some of them the same."""
    chosen = [[word for word in words if word in only] or words for words in WORDS]
    products = [words for words in itertools.product(*chosen) if words[1] == "text" or words[3] not in OBJECT_WAYS]
    rows = [Row(urls[words[0]], words) for words in products if words[0] in urls]
    return list({(*row.words[:3], row.how): row for row in rows}.values())


def measure(rows: list[Row], ca: str | None, compression: str | None, seconds: float, rounds: int) -> None:
    """Measure all rows in turn, so many times, and show how far it is."""
    progress = Progress()
    for number, row in enumerate(rows * rounds):
        done = number / len(rows) / rounds
        progress.show(f"[{'#' * int(done * 40):40}] {done:4.0%}  {' '.join(row.words)}")
        row.measure(ca, compression, seconds)
    progress.clear()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Round-trip queries per second of one connection.")
    words = list(itertools.chain(*WORDS))
    parser.add_argument("--url", help="measure this echo server instead of one of our own")
    parser.add_argument(
        "--compression",
        choices=["deflate", "none"],
        default="deflate",
        help="what we offer; the server decides (default: deflate, as in the library)",
    )
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a round (default: 0.25)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each row (default: 3)")
    parser.add_argument("--only", nargs="+", choices=words, default=[], metavar="WORD", help=f"of {', '.join(words)}")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    compression = None if options.compression == "none" else options.compression
    before = load()
    server: dict[str, str] = {}
    processors: tuple[set[int], set[int]] = (set(), set()) if options.url else split_processors()
    with ExitStack() as stack:
        if options.url:
            urls, ca = {"TLS" if options.url.startswith("wss:") else "plain": options.url}, None
        else:
            address, server = own_server(stack, compression, processors)
            urls, ca = {"plain": address.url("echo", tls=False), "TLS": address.url("echo", tls=True)}, address.ca
        stay_on(processors[1])
        rows = rows_of(urls, options.only)
        used = extensions(rows[0].url, ca, compression) if rows else ""
        measure(rows, ca, compression, options.seconds, options.rounds)
    print(HEAD, *(row.line() for row in rows), sep="\n")
    print(f"compression: {used or 'none'}")
    print(about({"nwebsocket": version("nwebsocket")}, server, processors, before))


def own_server(
    stack: ExitStack, compression: str | None, processors: tuple[set[int], set[int]]
) -> tuple[Address, dict[str, str]]:
    """Start one that compresses if we do; return its address, and what it is."""
    if compression is None:
        return stack.enter_context(running_server()), {}
    try:
        server = stack.enter_context(real_server("websockets", processors, stack.enter_context(TemporaryDirectory())))
    except ServerMissing as missing:
        sys.exit(f"{missing}, which the server needs: pip install '.[benchmarks]'")
    return server.address, {"websockets": server.about}


def extensions(url: str, ca: str | None, compression: str | None) -> str:
    """What the server has accepted of our offer."""
    ws = Nwebsocket(ca, compression).made(url).wait_open()
    ws.close()
    return str(ws.extensions)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
