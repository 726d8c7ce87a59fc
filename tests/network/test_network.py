"""Bad networks: addresses that lead nowhere, links that are cut, that lose packets, that go away and come back.

The client is a process of its own at the far end of a bad_network.Link. `pytest -s` shows how long all took.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_network
import numbered
import pytest
import websockets.exceptions
from bad_network import HOST, PORT, SERVER_IPV4, SERVER_IPV6, Client, Link
from peers import Connection, Peer, RawServer, close_frame, echo_server

slow = pytest.mark.slow


KEEPALIVE = {"ping_interval": 0.5, "ping_timeout": 0.5}
CLOSE_TIMEOUT = 0.5
MARGIN = 1.0
"""Seconds by which the limits above may be passed."""

ATTEMPT_DELAY = 0.25
"""Seconds between two attempts to connect (RFC 8305)."""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    if reason := bad_network.missing():
        pytest.skip(reason)
    with Link(tmp_path) as link:
        yield link


# --- A name with two addresses

CONNECT_TWICE = """
import socket

def now():
    # Without the time for which the main thread, which loads the modules, waited for a processor (if the kernel tells).
    try:
        with open("/proc/self/schedstat") as file:
            return time.monotonic() - int(file.read().split()[1]) / 1e9
    except FileNotFoundError:
        return time.monotonic()

host = options.pop("host")
for _ in range(2):  # cold, as in a new process, and warm
    begun = now()
    ws = WebSocket(url, **options)
    opened = []
    ws.onopen = lambda: opened.append(now() - begun)
    ws.wait_open()
    waited = now() - begun
    ws.close()
    ws.wait_closed()
    tell(onopen=opened[0], wait_open=waited)
tell(families=[found[0].name for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)])
"""


def connect_twice(link: Link) -> tuple[float, float]:
    """Return how long it took to connect to HOST (seconds), by the slower of both ways to see it: cold, and warm.

    The best of three processes each: loading the modules takes as long as the waits, and more on a busy machine.
    """
    times = [_connect_twice(link) for _ in range(3)]
    cold, warm = map(min, zip(*times, strict=True))
    print(f"connected in {cold:.3f} s, then in {warm:.3f} s")
    return cold, warm


def _connect_twice(link: Link) -> tuple[float, float]:
    with link.client(CONNECT_TWICE, f"ws://{HOST}:{PORT}/", host=HOST) as client:
        cold, warm = (max(client.hear().values()) for _ in range(2))
        assert client.hear() == {"families": ["AF_INET6", "AF_INET"]}
    return cold, warm


def test_a_dead_ipv6_address_beside_a_live_ipv4_one(link: Link) -> None:
    """It costs the delay until the next attempt. How long the modules take to load is measured just before."""
    link.ipv6.close()
    with echo_server(host=link.ipv4):
        loading, _ = connect_twice(link)  # IPv6 is refused at once
        link.drop = bad_network.ipv6
        cold, warm = connect_twice(link)
    assert cold - loading < ATTEMPT_DELAY + 0.12
    assert warm < 0.5


def test_a_live_ipv6_address_comes_first(link: Link) -> None:
    with echo_server(host=link.ipv6):  # nobody serves the other
        cold, warm = connect_twice(link)
    assert cold < 0.5
    assert warm < ATTEMPT_DELAY


def test_a_refused_ipv6_address_costs_nothing(link: Link) -> None:
    link.ipv6.close()
    with echo_server(host=link.ipv4):
        cold, warm = connect_twice(link)
    assert cold < 0.5
    assert warm < ATTEMPT_DELAY


# --- A link that is cut

HANDLERS = """
errors = []
ws = WebSocket(url, **options)
ws.onopen = lambda: tell(open=True)
ws.onerror = errors.append
ws.onclose = lambda event: tell(error=type(errors[0]).__name__, code=event.code, at=time.monotonic())
ws.wait_closed()
"""

RECV = """
messages = options.pop("messages")
ws = connect(url, **options)
for _ in range(messages):
    ws.send("")
    ws.recv()
tell(open=True)
try:
    ws.recv()
except ConnectionClosed as error:
    tell(error=type(error).__name__, code=error.code, at=time.monotonic())
"""


@pytest.mark.parametrize(
    ("script", "options"),
    [
        pytest.param(HANDLERS, {"callbacks": "thread"}, id="handlers"),
        pytest.param(HANDLERS, {"callbacks": "loop"}, id="handlers on the loop", marks=slow),
        pytest.param(RECV, {"messages": 0}, id="recv", marks=slow),
        pytest.param(RECV, {"messages": 10}, id="recv that reads the socket itself", marks=slow),
    ],
)
def test_a_cut_link_is_noticed_in_time(link: Link, script: str, options: dict[str, Any]) -> None:
    with echo_server(host=link.ipv4) as server, link.client(script, server.url, **KEEPALIVE, **options) as client:
        assert client.hear() == {"open": True}
        link.cut()
        check_noticed(link, client.hear())


def check_noticed(link: Link, told: dict[str, Any]) -> None:
    took = told["at"] - link.cut_at
    print(f"noticed after {took:.3f} s")
    assert (told["error"], told["code"]) == ("KeepaliveTimeout", 1006)
    assert took < KEEPALIVE["ping_interval"] + KEEPALIVE["ping_timeout"] + MARGIN


SEND = """
size = options.pop("size")
ws = connect(url, **options)
try:
    while True:
        begun = time.monotonic()
        ws.send(bytes(size))
except ConnectionClosed as error:
    at = time.monotonic()
    tell(error=type(error).__name__, code=error.code, blocked=at - begun, at=at)
"""


@slow
@pytest.mark.parametrize("size", [64 * 1024, 32 * 1024 * 1024], ids=["small messages", "one large message"])
def test_a_link_that_is_cut_while_send_waits(link: Link, size: int) -> None:
    link.drop = cut_after(link, packets=200)
    options: dict[str, Any] = {"size": size, "write_limit": 256 * 1024, "compression": None, **KEEPALIVE}
    with (
        echo_server(host=link.ipv4, handler=read_all) as server,
        link.client(SEND, server.url, **options) as client,
    ):
        told = client.hear()
    check_noticed(link, told)
    assert told["blocked"] > KEEPALIVE["ping_timeout"]


def cut_after(link: Link, packets: int) -> bad_network.Drop:
    """Cut the link once it has carried so many packets."""

    def drop(packet: bytes) -> bool:
        if link.packets == packets:
            link.cut()
        return False

    return drop


def read_all(connection: Connection) -> None:
    for _ in connection:
        pass


CLOSE = """
messages = options.pop("messages")
ws = connect(url, **options)
for _ in range(messages):
    ws.send(bytes(65536))
ws.close()
asked = time.monotonic()
try:
    code = ws.wait_closed().code
    ws.recv()
except ConnectionClosed as error:
    tell(error=str(error), code=code, asked=asked, at=time.monotonic())
"""


def cut_before_the_answer(link: Link) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_until_close()
        link.cut()
        peer.send(close_frame(1000))
        peer.stall()

    return script


def cut_before_the_close_frame(link: Link) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()
        link.cut()
        peer.stall()

    return script


@pytest.mark.parametrize(
    ("script", "messages"),
    [
        pytest.param(cut_before_the_answer, 0, id="before the answer"),
        pytest.param(cut_before_the_close_frame, 200, id="before the Close frame", marks=slow),
    ],
)
def test_a_link_that_is_cut_while_closing(
    link: Link, script: Callable[[Link], Callable[[Peer], None]], messages: int
) -> None:
    options: dict[str, Any] = {"messages": messages, "close_timeout": CLOSE_TIMEOUT, "compression": None}
    with RawServer(script(link), host=link.ipv4) as server, link.client(CLOSE, server.url, **options) as client:
        told = client.hear()
    assert told["code"] == 1006
    assert "close_timeout" in told["error"]
    took = told["at"] - max(told["asked"], link.cut_at)
    print(f"closed after {took:.3f} s")
    assert took < CLOSE_TIMEOUT + MARGIN


# --- A link that comes back, and one that is slow and loses packets

ECHO = """
count, window = options.pop("count"), options.pop("window")
ws = connect(url, **options)
received, longest_silence, heard = [], 0.0, time.monotonic()
for number in range(count + window):
    if number < count:
        ws.send(str(number))
    if number >= window:
        received.append(ws.recv())
        now = time.monotonic()
        longest_silence, heard = max(longest_silence, now - heard), now
in_order = received == [str(number) for number in range(count)]
latency = ws.ping()
ws.close(1000)
event = ws.wait_closed()
tell(in_order=in_order, silence=longest_silence, latency=latency, code=event.code, clean=event.wasClean)
"""


def check_echoed(link: Link, options: dict[str, Any], on_message: Callable[[int], None]) -> dict[str, Any]:
    """Have numbers echoed, none lost, none twice, none out of turn; return what the client tells."""
    seen: list[str | bytes] = []

    def handler(connection: Connection) -> None:
        for message in connection:
            seen.append(message)
            on_message(len(seen))
            connection.send(message)

    with (
        echo_server(host=link.ipv4, handler=handler) as server,
        link.client(ECHO, server.url, limit=50, **options) as client,
    ):
        told = client.hear()
    print(f"{link.dropped} of {link.packets} packets dropped; {told}")
    assert seen == [str(number) for number in range(options["count"])]
    assert (told["in_order"], told["code"], told["clean"]) == (True, 1000, True)
    return told


@slow
def test_nothing_is_lost_when_the_link_comes_back(link: Link) -> None:
    options = {"count": 10_000, "window": 1000, "ping_interval": 0.2, "ping_timeout": 3}

    def go_away(messages: int) -> None:
        if messages == options["count"] / 2:
            link.drop = bad_network.everything_for(0.6)

    told = check_echoed(link, options, go_away)
    assert told["silence"] > 2 * options["ping_interval"]  # a ping was due, and was not answered at once


@slow
def test_a_slow_link_that_loses_packets(link: Link) -> None:
    count = 50_000
    link.delay, link.drop = 0.2, bad_network.some(0.01)
    options = {"count": count, "window": count, "max_queue": count, "compression": None}
    told = check_echoed(link, options, lambda messages: None)
    assert told["latency"] > 2 * link.delay
    assert link.dropped > link.packets / 500


# --- A socket that comes back

STREAM = """
from nwebsocket._connection import backoff, supervisor

backoff.FIRST_DELAY = backoff.MAX_DELAY = supervisor.CONFIRM_INTERVAL = 0.1
count, rate = options.pop("count"), options.pop("rate")

class Feed(ReconnectingWebSocket):
    last, in_order = {}, True

    def onopen(self):
        self.received = 0
        tell(event="open")

    def onmessage(self, message):
        server, number = map(int, message.split())
        self.in_order = self.in_order and number == self.last.get(server, -1) + 1
        self.last[server] = number
        self.received += 1
        if self.received == 100:
            tell(event="hundred")

    def onclose(self, event):
        if event.retry_in is not None:
            tell(event="close", code=event.code)

feed = Feed(url, compression=None, **options)
begun = time.monotonic()
for number in range(count):
    feed.send(str(number))
    time.sleep(max(0, begun + (number + 1) / rate - time.monotonic()))
while feed.bufferedAmount:
    feed.wait_open()
    time.sleep(0.01)
feed.close()
clean = feed.wait_closed().wasClean
tell(event="end", clean=clean, in_order=feed.in_order, servers=len(feed.last), at_risk=feed.at_risk)
"""


class Numbers:
    """A server that sends numbers to each client, and takes those that come from it."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._visits = itertools.count()

    def __call__(self, connection: Connection) -> None:
        gone = threading.Event()
        push = threading.Thread(target=self._push, args=(connection, gone))
        push.start()
        try:
            for message in connection:
                self.received.append(int(message))
        finally:
            gone.set()
            push.join()

    def _push(self, connection: Connection, gone: threading.Event) -> None:
        visit = next(self._visits)
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            for number in itertools.count():
                connection.send(f"{visit} {number}")
                if gone.wait(0.005):
                    return


def hear_until(client: Client, event: str) -> dict[str, Any]:
    """Have the client tell, until it tells this."""
    while (told := client.hear())["event"] != event:
        pass
    return told


def check_stream(received: list[int], count: int, losses: int, told: dict[str, Any]) -> int:
    """Return how many messages were lost."""
    lost = count - len(received)
    print(f"{count} sent, {told['at_risk']} at risk, {lost} lost")
    assert all(a < b for a, b in itertools.pairwise(received)), "each once and in order"
    gaps = [b - a - 1 for a, b in itertools.pairwise([-1, *received, count])]
    assert sum(gap > 0 for gap in gaps) <= losses, "what was lost with a connection was lost together"
    assert lost <= told["at_risk"]
    assert (told["clean"], told["in_order"], told["servers"]) == (True, True, losses + 1)
    return lost


@slow
def test_a_stream_goes_on_whenever_a_cut_link_comes_back(link: Link) -> None:
    count, numbers = 2000, Numbers()
    options: dict[str, Any] = {"count": count, "rate": 500, "ping_interval": 0.3, "ping_timeout": 0.3}
    with (
        echo_server(host=link.ipv4, handler=numbers, ping_interval=0.5, ping_timeout=0.5) as server,
        link.client(STREAM, server.url, limit=50, **options) as client,
    ):
        for _ in range(2):
            hear_until(client, "hundred")
            link.cut()
            hear_until(client, "close")
            link.drop = bad_network.nothing
        hear_until(client, "open")
        told = hear_until(client, "end")
    assert check_stream(numbers.received, count, 2, told) > 0, "what was sent into the dead connections"


@slow
def test_a_server_that_is_killed_behind_a_slow_link_that_loses_packets(link: Link, tmp_path: Path) -> None:
    count, log = 1500, tmp_path / "received"
    link.delay, link.drop = 0.2, bad_network.some(0.01)
    with (
        numbered_server(link.ipv4, log) as first,
        link.client(STREAM, f"ws://{SERVER_IPV4}:{PORT}/200", limit=50, count=count, rate=500) as client,
    ):
        hear_until(client, "hundred")
        first.kill()
        hear_until(client, "close")
        with numbered_server(link.ipv4, log):
            hear_until(client, "open")
            told = hear_until(client, "end")
    check_stream([int(line) for line in log.read_text().splitlines()], count, 1, told)
    assert link.dropped


@contextlib.contextmanager
def numbered_server(listener: socket.socket, log: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(numbered.SERVER), f"fd={listener.fileno()}", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[listener.fileno()]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


BY_NAME = """
from nwebsocket._connection import backoff

backoff.FIRST_DELAY = backoff.MAX_DELAY = 0.05

class Named(ReconnectingWebSocket):
    def onerror(self, error):
        tell(event="error", error=type(error).__name__, text=str(error))

    def onmessage(self, message):
        tell(event=message)
        if message == "kept":
            self.close()

ws = Named(url)
ws.addEventListener("close", lambda event: ws.send("kept"), once=True)
ws.send("first")
ws.wait_closed()
"""


@slow
@pytest.mark.skipif(not Path("/etc/resolv.conf").exists(), reason="needs a resolver that reads /etc/resolv.conf")
def test_a_name_server_that_fails_and_comes_back(link: Link) -> None:
    failures: dict[str | int, str] = {
        bad_network.NO_ANSWER: "Temporary failure in name resolution",
        bad_network.SERVFAIL: "Temporary failure in name resolution",
        bad_network.NXDOMAIN: "Name or service not known",
    }

    def lose_it_with_the_name(connection: Connection) -> None:
        names.answer = bad_network.NO_ANSWER
        connection.send(connection.recv())
        connection.close(1012)

    with (
        bad_network.NameServer(link.dns, SERVER_IPV4) as names,
        echo_server(host=link.ipv4, handler=lose_it_with_the_name),
        link.client(BY_NAME, f"ws://resolved.test:{PORT}/", limit=50) as client,
    ):
        assert client.hear() == {"event": "first"}
        for answer, text in failures.items():
            names.answer = answer
            told = client.hear()
            while not names.given[answer] or text not in told["text"]:
                told = client.hear()
            assert (told["event"], told["error"]) == ("error", "ConnectionFailed")
        names.answer = SERVER_IPV4
        assert hear_until(client, "kept")


# --- The link itself

WAIT = """
import os
tell(pid=os.getpid())
connect(url)  # nobody answers
"""


def test_nothing_is_left_when_a_test_fails(link: Link) -> None:
    before = open_descriptors()
    with pytest.raises(ZeroDivisionError), link.client(WAIT, f"ws://[{SERVER_IPV6}]:{PORT}/") as client:  # noqa: PT012
        pid = client.hear()["pid"]
        raise ZeroDivisionError
    assert not Path(f"/proc/{pid}").exists()
    assert open_descriptors() == before


def open_descriptors() -> list[str]:
    paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(path) for path in paths if os.path.exists(path))
