"""Round trips per second of one connection: a 32-byte text to an echo server and back, one at a time.

    pip install '.[benchmarks]' && python benchmarks/roundtrip.py

Starts an echo server in a process of its own (picows, in C, so that the client is what is measured) unless --url names
one. The ways are measured in turn, in short rounds, and the medians are printed, with the ratio to websockets' sync
client in the same run: these figures depend on the machine and on what else it does, the ratios hardly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import picows
import websockets.sync.client

from nwebsocket import WebSocket, connect

MESSAGE = "x" * 32


class Round(NamedTuple):
    per_second: float  # round trips
    cpu: float  # microseconds of this process a round trip


class Meter:
    """Counts round trips until the time is up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._count = 0

    def start(self) -> None:
        self._cpu, self._began = time.process_time(), time.perf_counter()

    def again(self) -> bool:
        """One more is done; whether to go on."""
        self._count += 1
        return time.perf_counter() - self._began < self._seconds

    def result(self) -> Round:
        wall, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        return Round(self._count / wall, cpu / self._count * 1e6)


def websockets_sync(url: str, seconds: float) -> Round:
    meter = Meter(seconds)
    with websockets.sync.client.connect(url, compression=None) as ws:
        meter.start()
        ws.send(MESSAGE)
        while ws.recv() and meter.again():
            ws.send(MESSAGE)
        return meter.result()


def main_thread(url: str, seconds: float) -> Round:
    meter = Meter(seconds)
    with connect(url, compression=None) as ws:
        meter.start()
        ws.send(MESSAGE)
        while ws.recv() and meter.again():
            ws.send(MESSAGE)
        return meter.result()


class Player(WebSocket):
    """Sends the next query when the answer to the last one has come."""

    def play(self, meter: Meter) -> Round:
        self.meter, self.done = meter, threading.Event()
        self.wait_open()
        meter.start()
        self.send(MESSAGE)
        self.done.wait()
        return meter.result()

    def onmessage(self, message: str) -> None:
        if self.meter.again():
            self.send(message)
        else:
            self.done.set()


def callback_thread(url: str, seconds: float) -> Round:
    with Player(url, compression=None) as player:
        return player.play(Meter(seconds))


def callback_on_loop(url: str, seconds: float) -> Round:
    with Player(url, compression=None, callbacks="loop") as player:
        return player.play(Meter(seconds))


WAYS: dict[str, Callable[[str, float], Round]] = {
    "websockets.sync": websockets_sync,
    "nwebsocket, main thread": main_thread,
    "nwebsocket, callbacks": callback_thread,
    'nwebsocket, callbacks="loop"': callback_on_loop,
}


class Echo(picows.WSListener):  # type: ignore[misc]
    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
            return
        transport.send(frame.msg_type, frame.get_payload_as_bytes())
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.disconnect()


def serve(port: Connection) -> None:
    async def main() -> None:
        server = await picows.ws_create_server(lambda request: Echo(), "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"ws://127.0.0.1:{ours.recv()}/"
    finally:
        process.terminate()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Round trips per second, one at a time.")
    parser.add_argument("--url", help="measure this echo server instead of one of our own")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way, in turn (default: 5)")
    options = parser.parse_args()
    results: dict[str, list[Round]] = {name: [] for name in WAYS}
    with contextlib.nullcontext(options.url) if options.url else echo_server() as url:
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                results[name].append(way(url, options.seconds))
    floor = statistics.median(r.per_second for r in results["websockets.sync"])
    print(f"{'':32}{'per second':>12}{'ratio':>8}{'CPU us':>8}")
    for name, rounds in results.items():
        median = statistics.median(r.per_second for r in rounds)
        cpu = statistics.median(r.cpu for r in rounds)
        print(f"{name:32}{median:12,.0f}{median / floor:8.2f}{cpu:8.0f}")


if __name__ == "__main__":
    main()
