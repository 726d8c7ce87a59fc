"""The promises of the documentation that are about amounts: how many, how much, how long, at which speed.

Every run measures at a moderate size; NWEBSOCKET_FULL=1 measures at the size that is promised, for minutes. Each
test prints what it has measured in a line that begins with "measured: ".

Servers run in processes of their own, so that their work does not count as ours, and so do the clients whose memory
is bounded. Sleeps are what these tests are about, never a way to wait.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import peers
import pytest
import websockets.sync.client
from measure import MIB, size

from nwebsocket import WebSocket, connect

pytestmark = pytest.mark.timeout(measure.LIMIT + 10)

Tell = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Tell:
    """Print what was measured, also when pytest captures the output."""

    def tell(text: str) -> None:
        record_property("measured", text)
        with capsys.disabled():
            print(f"\nmeasured: {text}", flush=True)

    return tell


# --- 1. No message is lost to a race with the constructor

GREETING = peers.text(json.dumps({"type": "message", "data": "welcome"}))


def chat_protocol() -> Any:
    """Return the class ChatProtocol as the README has it, word for word."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (block,) = (block for block in blocks if "class ChatProtocol" in block)
    definition, _, _ = block.partition("\nchat = ")
    namespace: dict[str, Any] = {}
    exec(definition, namespace)
    return namespace["ChatProtocol"]


def slow_chat_protocol() -> Any:
    """Return a ChatProtocol whose constructor goes on for long after the greeting has come."""

    class SlowChatProtocol(chat_protocol()):  # type: ignore[misc]
        def __init__(self, url: str) -> None:
            super().__init__(url)
            time.sleep(0.2)
            self.messages = []  # what a callback had heard before would be lost here

    return SlowChatProtocol


def greet(peer: peers.Peer) -> None:
    """Send the greeting in the same packet as the 101."""
    peer.accept(after=GREETING)
    peer.read_until_close()
    peer.send(peers.close_frame())


@pytest.mark.parametrize(("protocol", "at_once"), [(chat_protocol, 1), (slow_chat_protocol, 50)])
def test_the_message_that_comes_with_the_101_is_heard_by_the_chat_example(protocol, at_once, tell):
    connections = size(100, 1000)
    chat_class = protocol()

    def heard(_: int) -> list[str]:
        chat = chat_class(server.url).wait_open(10)
        chat.close()
        chat.wait_closed(10)
        return chat.messages

    with peers.RawServer(greet) as server, ThreadPoolExecutor(at_once) as threads:
        all_heard = list(threads.map(heard, range(connections)))
    tell(f"{chat_class.__name__}: greeting heard on {all_heard.count(['welcome'])} of {connections} connections")
    assert all_heard == [["welcome"]] * connections


# --- 2. Every message once, whole and in order

THREADS = 4
LARGEST = 200_000
_BYTES = random.Random(2).randbytes(2 * LARGEST)
_TEXT = "".join(random.Random(3).choices("abcdefgh ijklm\n\0äß€日本🐍", k=LARGEST))


def numbered_messages(thread: int, count: int) -> Iterator[str | bytes]:
    """Generate the messages of one thread, the same every time: text and bytes, most of them small."""
    dice = random.Random(thread)
    for number in range(count):
        length = int(LARGEST * dice.random() ** dice.choice((30, 30, 30, 6)))
        start = dice.randrange(LARGEST)
        if dice.random() < 0.5:
            # A character takes at most four bytes.
            yield f"{thread}:{number}:" + _TEXT[start : start + length // 4]
        else:
            yield b"%d:%d:" % (thread, number) + _BYTES[start : start + length]


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_from_four_threads_come_back_once_whole_and_in_order(compression, tell):
    each = size(600, 25_000)
    with (
        measure.server("echo", compression=compression) as url,
        ThreadPoolExecutor(THREADS) as threads,
        connect(url, compression=compression) as ws,
    ):
        assert bool(ws.extensions) is bool(compression)
        began = time.perf_counter()
        sending = [threads.submit(send_all, ws, thread, each) for thread in range(THREADS)]
        received = receive_all(ws, each)
        seconds = time.perf_counter() - began
        for sender in sending:
            sender.result()
        assert ws.stats.inbox == 0
    tell(
        f"{THREADS * each} messages from {THREADS} threads, {received / MIB:.0f} MiB, compression={compression}: "
        f"all came back in order in {seconds:.1f} s"
    )


def send_all(ws: WebSocket, thread: int, each: int) -> None:
    for message in numbered_messages(thread, each):
        ws.send(message)


def receive_all(ws: WebSocket, each: int) -> int:
    """Receive what all threads send, each thread's messages in order; return how many bytes (or characters)."""
    expected = {str(thread): numbered_messages(thread, each) for thread in range(THREADS)}
    received = 0
    for _ in range(THREADS * each):
        message = ws.recv(timeout=30)
        start = message[:1]
        thread = start if isinstance(start, str) else start.decode()
        if message != next(expected[thread], None):
            pytest.fail(f"thread {thread}: this is not the next message of its: {message[:20]!r}")
        received += len(message)
    assert [next(messages, None) for messages in expected.values()] == [None] * THREADS
    return received


# --- 3. A callback that computes costs nothing but its own time


class Computing(WebSocket):
    """Computes for some seconds, in pure Python, when the server says so."""

    def __init__(self, url: str, seconds: float, **options: Any) -> None:
        super().__init__(url, **options)
        self.seconds = seconds
        self.computing = threading.Event()
        self.computed = threading.Event()
        self.echoed = threading.Event()

    def onmessage(self, message: str) -> None:
        if message != "compute":
            self.echoed.set()
            return
        self.computing.set()
        number, end = 1, time.monotonic() + self.seconds
        while time.monotonic() < end:
            number = number * 48271 % 2147483647
        self.computed.set()


@pytest.mark.slow
def test_a_callback_that_computes_costs_neither_its_connection_nor_another(tell):
    seconds = size(6, 30)
    with (
        measure.server("echo", ping_interval=1, ping_timeout=3) as url,
        Computing(url, seconds) as busy,
        connect(url, compression=None) as other,
    ):
        busy.send("compute")
        assert busy.computing.wait(5)
        times = round_trips_while(other, lambda: not busy.computed.is_set())
        busy.send("are you there?")
        assert busy.echoed.wait(5)
        assert busy.readyState == busy.OPEN
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    tell(
        f"a callback computed for {seconds} s, the server's patience 3 s: the connection lives; another's {len(times)} "
        f"round trips meanwhile: p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {max(times):.1f} ms"
    )
    assert p99 < 50


def round_trips_while(ws: WebSocket, condition: Callable[[], bool]) -> list[float]:
    """Echo one message after the other while `condition()`; return how long each took, in ms."""
    times = []
    while condition():
        began = time.perf_counter()
        ws.send("x")
        ws.recv(timeout=10)
        times.append((time.perf_counter() - began) * 1000)
    return times


# --- 4. A slow consumer slows the server down and is not flooded


@pytest.mark.slow
@pytest.mark.parametrize("consumer", ["consume_in_handler", "consume_with_recv"])
def test_a_slow_consumer_gets_everything_in_order_in_little_memory(consumer, tell):
    # The moderate size would fit into the default inbox as a whole, and so gets a smaller one and less memory.
    megabytes, max_queue, allowed = (200, 1024, 150) if measure.FULL else (40, 128, 60)
    messages = megabytes * 1_000_000 // measure.FLOOD_SIZE
    with measure.server("flood", compression=None) as url:
        figures = measure.client(consumer, f"{url}{messages}", max_queue)
    tell(
        f"{consumer}, 10 ms each: {figures['in_order']} of {messages} messages of 64 KiB in order, at most "
        f"{figures['longest_inbox']} in the inbox, peak memory {figures['peak']} MiB"
    )
    assert (figures["in_order"], figures["code"]) == (messages, 1000)
    assert figures["longest_inbox"] > max_queue / 2, "the server was not faster than the consumer"
    assert figures["peak"] is None or figures["peak"] < allowed
    assert ["reading stops" in line for line in figures["log"]] == [True], "one warning"


# --- 5. A fast producer waits for the server


@pytest.mark.slow
def test_a_producer_waits_for_a_server_that_does_not_read_and_close_ends_it(tell):
    close_timeout = 0.5

    def accept_only(peer: peers.Peer) -> None:
        peer.accept()
        peer.stall()

    with peers.RawServer(accept_only) as server:
        figures = measure.client("produce", server.url, 300 * MIB, close_timeout)
    tell(
        f"a server that does not read: send() waits after {figures['accepted']} messages of 64 KiB with "
        f"{figures['buffered'] / MIB:.1f} MiB buffered, peak memory {figures['peak']} MiB; close() with "
        f"close_timeout={close_timeout} took {figures['seconds_to_close']:.2f} s"
    )
    assert figures["blocked"]
    overhead = 300 * 128  # write_limit counts so many bytes more for each message
    assert 16 * MIB - overhead <= figures["buffered"] < 17 * MIB, "write_limit, and at most one message more"
    assert figures["peak"] is None or figures["peak"] < 100
    assert (figures["ended"], figures["raised"], figures["code"]) == (True, ["ConnectionClosed"], 1006)
    assert figures["seconds_to_close"] < close_timeout + 0.5


# --- 6. Connections leave nothing behind


@pytest.mark.slow
def test_connections_leave_nothing_behind(tell):
    first, connections = 100, size(500, 5_000)
    with measure.server("part") as url:
        figures = measure.client("open_and_close", url, first, connections)
    before, after = figures["before"], figures["after"]
    tell(
        f"after {first} connections: {before}; after {connections}: {after}; "
        f"at most {figures['most_threads']} threads; {figures['per_second']:.0f} per second"
    )
    assert figures["log"] == []
    assert after["threads"] == before["threads"]
    assert figures["most_threads"] < 50, "those of closed connections pile up"
    assert after["descriptors"] == before["descriptors"]
    assert after["memory"] is None or after["memory"] < before["memory"] + 2


# --- 7. Speed


def main_thread(url: str, count: int) -> float:
    """Round trips per second from the main thread."""
    with connect(url, compression=None) as ws:
        return per_second(count, lambda: len(round_trips_of(ws, count)))


def websockets_sync(url: str, count: int) -> float:
    """The same with the threaded client of the `websockets` package."""
    with websockets.sync.client.connect(url, compression=None, ping_interval=None) as ws:
        return per_second(count, lambda: len(round_trips_of(ws, count)))


def round_trips_of(ws: Any, count: int) -> list[str]:
    """Send and receive in turn; return the answers that are right."""
    answers = []
    for number in range(count):
        ws.send(f"{number:032}")
        answers.append(ws.recv(timeout=10))
    return [answer for number, answer in enumerate(answers) if answer == f"{number:032}"]


def callback_thread(url: str, count: int) -> float:
    """Round trips per second of a handler that answers itself."""
    return per_second(count, lambda: answers_to_itself(url, count, "thread"))


def callback_loop(url: str, count: int) -> float:
    """The same on the loop thread."""
    return per_second(count, lambda: answers_to_itself(url, count, "loop"))


def answers_to_itself(url: str, count: int, callbacks: str) -> int:
    """Send the next message in the handler of the last one; return how many answers were right."""
    done = threading.Event()

    class Player(WebSocket):
        right = number = 0

        def onopen(self) -> None:
            self.send(f"{0:032}")

        def onmessage(self, message: str) -> None:
            self.right += message == f"{self.number:032}"
            self.number += 1
            if self.number < count:
                self.send(f"{self.number:032}")
            else:
                done.set()

    with Player(url, compression=None, callbacks=callbacks) as player:
        assert done.wait(30)
        return player.right


def per_second(count: int, answers: Callable[[], int]) -> float:
    """Run `answers`, which must return `count`, and return the rate."""
    began = time.perf_counter()
    assert answers() == count
    return count / (time.perf_counter() - began)


@pytest.mark.slow
def test_round_trips_per_second(tell):
    rounds, count = size(3, 7), size(500, 4_000)
    runners = [main_thread, callback_thread, callback_loop, websockets_sync]
    with measure.server("fast_echo") as url:
        rates = [[runner(url, count) for runner in runners] for _ in range(rounds)]
    medians = [statistics.median(of_runner) for of_runner in zip(*rates, strict=True)]
    named = ", ".join(f"{runner.__name__} {rate:.0f}" for runner, rate in zip(runners, medians, strict=True))
    tell(f"round trips per second, medians of {rounds} x {count}: {named}")
