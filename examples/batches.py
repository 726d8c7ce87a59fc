"""Many small messages: as JSON and as MessagePack, one by one and in batches, with compression and without.

Each reading is packed, sent to a server that sends it back, and unpacked; a batch is a list of readings in one message.
Starts its own server; run it as it is. MessagePack takes `pip install msgpack`.
"""

import contextlib
import itertools
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from websockets.sync.server import ServerConnection, serve

from nwebsocket import connect

try:
    import msgpack
except ImportError:
    msgpack = None

READINGS = [
    {"sensor": random.randrange(100), "time": 1_800_000_000 + n / 10, "value": random.gauss(20, 2), "ok": True}
    for n in range(1000)
]
BATCHES = (1, 10, 100)
ROUNDS = 5


class Format(NamedTuple):
    name: str
    pack: Callable[[Any], str | bytes]
    unpack: Callable[[Any], Any]


FORMATS = [Format("JSON", json.JSONEncoder(separators=(",", ":")).encode, json.loads)]
if msgpack:
    FORMATS.append(Format("MessagePack", msgpack.packb, msgpack.unpackb))

Compression = Literal["deflate"] | None
Case = tuple[Format, int, Compression]


class Result(NamedTuple):
    size: float  # bytes on the wire for a reading
    rate: float  # readings a second, there and back


def measure(url: str, form: Format, batch: int, compression: Compression) -> Result:
    """Send all readings and receive them again, on a connection of their own."""
    readings = [READINGS[start : start + batch] for start in range(0, len(READINGS), batch)]
    with connect(url, compression=compression) as ws:
        before, start = ws.stats.bytes_sent, time.perf_counter()
        for some in readings:
            ws.send(form.pack(some if batch > 1 else some[0]))
        answers = [form.unpack(ws.recv(10)) for _ in readings]
        seconds = time.perf_counter() - start
        size = (ws.stats.bytes_sent - before) / len(READINGS)
    assert (list(itertools.chain(*answers)) if batch > 1 else answers) == READINGS
    return Result(size, len(READINGS) / seconds)


def measure_all(url: str) -> dict[Case, Result]:
    """The median of several rounds, in which all take turns, so that what else the machine does meets all of them."""
    cases: list[Case] = list(itertools.product(FORMATS, BATCHES, (None, "deflate")))
    rounds = [{case: measure(url, *case) for case in cases} for _ in range(ROUNDS)]
    return {
        case: Result(rounds[0][case].size, statistics.median(results[case].rate for results in rounds))
        for case in cases
    }


def show(results: dict[Case, Result]) -> None:
    print(f"{'':24} {'bytes a reading':>17}   {'readings a second':>17}")
    print(f"{'':24} {'plain':>8} {'deflate':>8}   {'plain':>8} {'deflate':>8}")
    for form, batch in itertools.product(FORMATS, BATCHES):
        name = f"{form.name}, {f'{batch} together' if batch > 1 else 'one by one'}"
        plain, deflate = results[form, batch, None], results[form, batch, "deflate"]
        print(f"{name:24} {plain.size:8.1f} {deflate.size:8.1f}   {plain.rate:8,.0f} {deflate.rate:8,.0f}")


def conclude(results: dict[Case, Result]) -> None:
    for form in FORMATS:
        alone, together = results[form, 1, None], results[form, BATCHES[-1], None]
        ratio, share = together.rate / alone.rate, together.size / alone.size
        print(f"{form.name}: {BATCHES[-1]} together go {ratio:.1f} times as fast, in {share:.0%} of the bytes.")
    print("A batch pays where messages follow one another closely; for the first of them it is a delay.")


# --- The server, in a process of its own

SPAWN = multiprocessing.get_context("spawn")


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def run_server(parent: Connection) -> None:
    with serve(echo, "127.0.0.1", 0) as server:
        parent.send(server.socket.getsockname()[1])
        server.serve_forever()


@contextlib.contextmanager
def server_process() -> Iterator[str]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=run_server, args=(theirs,))
    process.start()
    try:
        yield f"ws://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def main() -> None:
    if not msgpack:
        print("MessagePack is left out: that takes `pip install msgpack`")
    with server_process() as url:
        results = measure_all(url)
    show(results)
    conclude(results)


if __name__ == "__main__":  # the server's process imports this file, too
    main()
