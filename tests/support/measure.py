"""The processes that test_promises.py measures with: servers that do not share our GIL, clients whose memory counts.

    python measure.py NAME '[ARGUMENT, ...]'

A server prints its port, and ends when its standard input does. A client prints its figures as JSON, and how much
memory it took at most. Here are also the few lines that read the operating system's figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import garbage
import websockets.asyncio.server
import websockets.exceptions

MIB = 2**20

#: Whether to measure at the size that is promised, instead of one that is fit for every run.
FULL = os.environ.get("NWEBSOCKET_FULL") == "1"

#: No client runs for longer than this (seconds).
LIMIT = 600.0 if FULL else 50.0

FLOOD_SIZE = 64 * 1024
_FILLER = random.Random(1).randbytes(FLOOD_SIZE - 8)


def size(moderate: int, full: int) -> int:
    """Return `moderate`, or `full` if the environment has NWEBSOCKET_FULL=1."""
    return full if FULL else moderate


# --- Starting them


@contextlib.contextmanager
def server(name: str, **options: Any) -> Iterator[str]:
    """Give the URL of the server `name` (see SERVERS); `options` are those of websockets.asyncio.server.serve()."""
    command = [sys.executable, __file__, name, json.dumps([options])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            yield f"ws://127.0.0.1:{int(process.stdout.readline())}/"


def client(name: str, *arguments: Any) -> dict[str, Any]:
    """Run the client `name` (see CLIENTS) to its end, and return its figures.

    Among them are ``peak``, the most memory it took, in MiB, or None where the system does not tell; and ``log``, the
    lines of its standard error, to which the library's warnings go.
    """
    command = [sys.executable, "-W", "error", __file__, name, json.dumps(arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout) | {"log": ended.stderr.splitlines()}


# --- Figures of this process


def peak_memory() -> float | None:
    """Return the most memory that was resident at once since the process began, in MiB."""
    # Not ru_maxrss on Linux: there it includes the parent's memory at the time of the fork.
    kibibytes = _proc_status("VmHWM")
    if kibibytes is not None:
        return round(kibibytes / 1024, 1)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (MIB if sys.platform == "darwin" else 1024), 1)


def resident_memory() -> float | None:
    """Return the memory that is resident now, in MiB."""
    kibibytes = _proc_status("VmRSS")
    return None if kibibytes is None else round(kibibytes / 1024, 1)


def open_descriptors() -> int | None:
    """Return how many file descriptors are open."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(directory))
    return None


def _proc_status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return None


# --- Servers

_Connection = websockets.asyncio.server.ServerConnection


async def _echo(connection: _Connection) -> None:
    async for message in connection:
        await connection.send(message)


async def _flood(connection: _Connection) -> None:
    """Send as many messages as the path says, as fast as they are taken, and close."""
    for number in range(int(_path(connection))):
        await connection.send(flood_message(number))


async def _part(connection: _Connection) -> None:
    """Say hello; then part, or wait for the client to do so if the path says "client"."""
    await connection.send("hello")
    if _path(connection) == "client":
        await connection.wait_closed()


def _path(connection: _Connection) -> str:
    assert connection.request is not None
    return connection.request.path.removeprefix("/")


def flood_message(number: int) -> bytes:
    """Return the message `number` of the server "flood"."""
    return number.to_bytes(8, "big") + _FILLER


def _serve(handler: Callable[[_Connection], Any], options: dict[str, Any]) -> None:
    async def handle(connection: _Connection) -> None:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            await handler(connection)

    async def main() -> None:
        async with websockets.asyncio.server.serve(handle, "127.0.0.1", 0, **{"max_size": None} | options) as serving:
            _announce(serving)
            await serving.serve_forever()

    asyncio.run(main())


def _serve_fast_echo(options: dict[str, Any]) -> None:
    """Echo with picows, which is written in C, if it is installed."""
    try:
        import picows
    except ImportError:
        return _serve(_echo, {"compression": None})

    class Echo(picows.WSListener):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == picows.WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_bytes())

    async def main() -> None:
        serving = await picows.ws_create_server(lambda request: Echo(), "127.0.0.1", 0)
        _announce(serving)
        await serving.serve_forever()

    return asyncio.run(main())


def _announce(serving: Any) -> None:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    print(serving.sockets[0].getsockname()[1], flush=True)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


SERVERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "echo": lambda options: _serve(_echo, options),
    "flood": lambda options: _serve(_flood, options),
    "part": lambda options: _serve(_part, options),
    "fast_echo": _serve_fast_echo,
}


# --- Clients


def _consume_in_handler(url: str, max_queue: int) -> dict[str, Any]:
    """Take 10 ms for each message, in onmessage."""
    from nwebsocket import WebSocket

    class Consumer(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url, max_queue=max_queue)
            self.in_order = 0
            self.longest_inbox = 0

        def onmessage(self, message: bytes) -> None:
            time.sleep(0.01)
            self.in_order += message == flood_message(self.in_order)
            self.longest_inbox = max(self.longest_inbox, self.stats.inbox)

    consumer = Consumer(url)
    code = consumer.wait_closed().code
    return {"in_order": consumer.in_order, "longest_inbox": consumer.longest_inbox, "code": code}


def _consume_with_recv(url: str, max_queue: int) -> dict[str, Any]:
    """Take 10 ms for each message, between two recv()."""
    from nwebsocket import WebSocket

    in_order = longest_inbox = 0
    socket = WebSocket(url, max_queue=max_queue)
    for message in socket:
        time.sleep(0.01)
        in_order += message == flood_message(in_order)
        longest_inbox = max(longest_inbox, socket.stats.inbox)
    return {"in_order": in_order, "longest_inbox": longest_inbox, "code": socket.wait_closed().code}


def _produce(url: str, offered: int, close_timeout: float) -> dict[str, Any]:
    """Send to a server that does not read; when nothing moves any more, close."""
    from nwebsocket import ConnectionClosed, connect

    socket = connect(url, compression=None, close_timeout=close_timeout)
    raised: list[str] = []

    def send_all() -> None:
        try:
            for number in range(offered // FLOOD_SIZE):
                socket.send(flood_message(number))
        except ConnectionClosed as error:
            raised.append(type(error).__name__)

    sender = threading.Thread(target=send_all, daemon=True)
    sender.start()
    accepted = _settled(lambda: (socket.bufferedAmount, socket.stats.messages_sent))[1]
    figures = {"buffered": socket.bufferedAmount, "accepted": accepted, "blocked": sender.is_alive()}
    began = time.perf_counter()
    socket.close()
    figures["code"] = socket.wait_closed(close_timeout + 20).code
    figures["seconds_to_close"] = time.perf_counter() - began
    sender.join(5)
    return figures | {"ended": not sender.is_alive(), "raised": raised}


def _settled(figure: Callable[[], Any]) -> Any:
    """Return what `figure()` gives once it has been the same for a second."""
    last, since = figure(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.02)
        now = figure()
        if now != last:
            last, since = now, time.monotonic()
    return last


def _open_and_close(url: str, first: int, connections: int) -> dict[str, Any]:
    """Open and close one connection after the other; compare what is left after the `first` ones and in the end."""
    seconds = 0.0
    most_threads = 0
    left = []
    for start in range(0, connections, first):
        began = time.perf_counter()
        for number in range(start, start + first):
            _converse(url, number)
            most_threads = max(most_threads, threading.active_count())
        seconds += time.perf_counter() - began
        left.append(_left_behind())  # each time: it is not the mood of Python's cycle collector that is measured
    return {"before": left[0], "after": left[-1], "most_threads": most_threads, "per_second": connections / seconds}


def _converse(url: str, number: int) -> None:
    from nwebsocket import WebSocket

    said: list[str] = []
    by_client = number % 2 == 0

    def hear(message: str) -> None:
        said.append(message)
        if by_client:
            socket.close()

    socket = WebSocket(url + ("client" if by_client else "server"))
    socket.onmessage = hear  # type: ignore[method-assign]
    event = socket.wait_closed(10)
    assert (said, event.code, event.wasClean) == (["hello"], 1005 if by_client else 1000, True), (said, event)


def _left_behind() -> dict[str, Any]:
    """Count what this process holds. Threads that are about to end are waited for."""
    garbage.collect()
    for thread in threading.enumerate():
        if thread.name == "nwebsocket-callbacks":
            thread.join(5)
    return {"threads": threading.active_count(), "descriptors": open_descriptors(), "memory": resident_memory()}


CLIENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "consume_in_handler": _consume_in_handler,
    "consume_with_recv": _consume_with_recv,
    "produce": _produce,
    "open_and_close": _open_and_close,
}


def main(name: str, arguments: list[Any]) -> None:
    """Be the server or the client `name`."""
    if name in SERVERS:
        SERVERS[name](*arguments)
    else:
        figures = CLIENTS[name](*arguments)
        print(json.dumps(figures | {"peak": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
