"""Heavy work on what comes: pings, other sockets and the main thread do not feel it. With NumPy or without.

Frames of numbers come, and each needs a tenth of a second and more. First the work is done in the callback: that holds
up the frames behind it, and nothing else. Then in a pool of processes (their start included), which puts all processors
to it. Meanwhile the server pings, and hangs up if a pong takes longer than two seconds; the main thread draws a bar and
talks through another socket. Starts its own server; run it as it is.
"""

import array
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.connection import Connection

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from nwebsocket import WebSocket, connect

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

FRAMES = 8
NUMBERS = 7_500 if numpy else 1_000  # in a frame

# Not "fork": the child would inherit the locks of threads that it does not have. Python 3.12 warns of that.
SPAWN = multiprocessing.get_context("spawn")


def mean_distance(frame: bytes) -> float:
    """How far any two of the numbers are apart: the heavy work."""
    if numpy:
        numbers = numpy.frombuffer(frame)
        return float(statistics.fmean(numpy.abs(numbers - number).mean() for number in numbers))
    values = array.array("d", frame)
    return statistics.fmean(abs(a - b) for a in values for b in values)


class Worker(WebSocket):
    def __init__(self, url: str, pool: Executor | None) -> None:
        super().__init__(url)
        self.pool = pool
        self.results: list[float] = []

    def onmessage(self, frame: bytes) -> None:
        if self.pool is None:
            self.results.append(mean_distance(frame))
        else:
            self.pool.submit(mean_distance, frame).add_done_callback(self.finished)

    def finished(self, work: Future[float]) -> None:
        self.results.append(work.result())


def work(title: str, url: str, pool: Executor | None = None) -> None:
    """Have all frames worked on, talk through another socket meanwhile, and say how that went."""
    with connect(url) as other, Worker(url, pool) as worker:
        worker.send("work")
        start = time.perf_counter()
        trips = []
        while len(worker.results) < FRAMES and worker.readyState == WebSocket.OPEN:
            show_progress(title, len(worker.results))
            trips.append(round_trip(other))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        show_progress(title, len(worker.results))
        other.send("pongs")
        pongs = json.loads(other.recv(5))
        lived = worker.readyState == WebSocket.OPEN
    print(f"  {len(worker.results)} computations in {seconds:.1f} s; the connection {'lived' if lived else 'was lost'}")
    print(f"  {len(pongs)} pings of the server answered: {in_milliseconds(pongs)}")
    print(f"  {len(trips)} round trips of the other socket: {in_milliseconds(trips)}")


def round_trip(ws: WebSocket) -> float:
    start = time.perf_counter()
    ws.send("are you there?")
    ws.recv(5)
    return time.perf_counter() - start


def in_milliseconds(seconds: list[float]) -> str:
    return f"median {statistics.median(seconds) * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms"


def show_progress(title: str, done: int) -> None:
    """A bar on a terminal; elsewhere a line at the end."""
    bar = f"{title} [{'#' * (done * 4):{FRAMES * 4}}] {done}/{FRAMES}"
    if sys.stdout.isatty():
        print("\r" + bar, end="\n" if done == FRAMES else "", flush=True)
    elif done == FRAMES:
        print(bar)


# --- The server, in a process of its own

pongs: list[float] = []


def handle(connection: ServerConnection) -> None:
    for message in connection:
        if message == "work":
            threading.Thread(target=demand_pongs, args=(connection,), daemon=True).start()
            for _ in range(FRAMES):
                connection.send(array.array("d", (random.random() for _ in range(NUMBERS))).tobytes())
        elif message == "pongs":
            connection.send(json.dumps(pongs))
            pongs.clear()
        else:
            connection.send(message)


def demand_pongs(connection: ServerConnection) -> None:
    """Ping ten times a second, and hang up if an answer takes longer than two."""
    with contextlib.suppress(ConnectionClosed):
        start = time.perf_counter()
        while connection.ping().wait(2):
            pongs.append(time.perf_counter() - start)
            time.sleep(0.1)
            start = time.perf_counter()
        connection.close(1008, "no pong")


def run_server(parent: Connection) -> None:
    with serve(handle, "127.0.0.1", 0) as server:
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
    with server_process() as url, ProcessPoolExecutor(mp_context=SPAWN) as pool:
        print("each frame is worked on with", "NumPy" if numpy else "pure Python")
        work("in the callback   ", url)
        work("in other processes", url, pool)


if __name__ == "__main__":  # the other processes import this file, too
    main()
