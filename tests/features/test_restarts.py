"""Servers that are killed and restarted, and clients that sleep: what is promised about messages then.

NWEBSOCKET_FULL=1 does it as often as promised, which takes a minute; the figures are shown with -s.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import measure
import pytest
from numbered import free_port, kill, start_server
from peers import LIMIT, Connection, echo_server

from nwebsocket import CloseEvent, ConnectionClosed, OutboxFull, ReconnectingWebSocket
from nwebsocket._connection import backoff, supervisor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
    pytest.mark.timeout(120 if measure.FULL else 50),
]


class Feed(ReconnectingWebSocket):
    """Counts its losses, and checks that what each server sends comes whole and in order."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.losses = 0
        self.numbers: dict[str, int] = {}
        self.out_of_order: list[str] = []

    def onmessage(self, message: str) -> None:
        server, number = message.split()
        if int(number) != self.numbers.get(server, -1) + 1:
            self.out_of_order.append(message)
        self.numbers[server] = int(number)

    def onclose(self, event: CloseEvent) -> None:
        self.losses += event.retry_in is not None


def send_numbers(ws: ReconnectingWebSocket, stop: threading.Event, sent: list[int]) -> None:
    while not stop.is_set():
        try:
            ws.send(str(sent[0]))
            sent[0] += 1
        except OutboxFull:
            stop.wait(0.01)
        if sent[0] % 20 == 0:
            stop.wait(0.001)


def test_a_server_that_is_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.1)
    monkeypatch.setattr(supervisor, "CONFIRM_INTERVAL", 0.02)
    log, stop, sent = tmp_path / "received", threading.Event(), [0]
    with free_port() as port:
        server = start_server(port, log)
        ws = Feed(f"ws://127.0.0.1:{port}/", compression=None).wait_open(LIMIT)
        before = open_descriptors(), threading.active_count()
        memory = resident()
        sender = threading.Thread(target=send_numbers, args=(ws, stop, sent))
        sender.start()
        for number in range(measure.size(10, 200)):
            if number % 2:
                ws.wait_open(LIMIT)  # else it may be killed before it is found
            time.sleep(random.uniform(0, 0.15))  # a random moment is what is wanted
            kill(server)
            server = start_server(port, log)
        stop.set()
        sender.join()
        while ws.bufferedAmount:
            ws.wait_open(LIMIT)
            with contextlib.suppress(ConnectionClosed):
                ws.ping(LIMIT)
        after = open_descriptors(), threading.active_count() - 1  # the callback thread, which was about to start
        memory = resident() - memory
        ws.close()
        ws.wait_closed(LIMIT)
        kill(server)
    received = [int(line) for line in log.read_text().split("\n")[:-1] if line]
    gaps = [b - a - 1 for a, b in itertools.pairwise([-1, *received, sent[0]]) if b - a != 1]
    print(f"\n{ws.losses} losses: {sent[0]} sent, {len(received)} arrived, {ws.at_risk} at risk, {sum(gaps)} lost")
    print(f"{memory / 2**20:.1f} MiB more memory")
    assert ws.losses >= measure.size(10, 200) / 4
    assert ws.out_of_order == []
    assert received == sorted(set(received)), "each once and in order"
    assert len(gaps) <= ws.losses
    assert sum(gaps) <= ws.at_risk, "what is lost was at risk"
    assert sent[0] - len(received) == sum(gaps)
    assert after <= before
    assert memory < 32 * 2**20


def resident() -> int:
    """Bytes of this process's memory."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


CLIENT = """
import json, sys
from nwebsocket import ReconnectingWebSocket
from nwebsocket._connection import backoff

backoff.FIRST_DELAY = backoff.MAX_DELAY = 0.02

class Sleeper(ReconnectingWebSocket):
    def onopen(self):
        print(json.dumps("open"), flush=True)

    def onmessage(self, message):
        print(json.dumps(message), flush=True)

    def onclose(self, event):
        print(json.dumps(["close", event.code, event.retry_in is not None]), flush=True)

ws = Sleeper(sys.argv[1], ping_interval=0.2, ping_timeout=0.2)
for line in sys.stdin:
    if line == "ping\\n":
        print(json.dumps(ws.ping(10) > 0), flush=True)  # what was sent before has arrived
    else:
        ws.send(line.strip())
ws.close()
ws.wait_closed(10)
print(json.dumps(ws.at_risk))
"""

TIME_OUTS = 0.4
"""Of the client, until it gives a silent connection up: ping_interval and ping_timeout."""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP")
def test_a_client_that_sleeps_for_longer_than_the_time_outs() -> None:
    gone = threading.Event()

    def reflect(connection: Connection) -> None:
        try:
            for message in connection:
                connection.send(message)
        finally:
            gone.set()

    with echo_server(handler=reflect, ping_interval=0.1, ping_timeout=0.2, close_timeout=0.1) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdin is not None
        assert client.stdout is not None

        def said() -> Any:
            assert client.stdout is not None
            return json.loads(client.stdout.readline())

        def ask(text: str) -> None:
            assert client.stdin is not None
            client.stdin.write(text + "\n")
            client.stdin.flush()

        assert said() == "open"
        ask("before")
        assert said() == "before"
        ask("ping")
        assert said() is True
        client.send_signal(signal.SIGSTOP)
        asleep = time.monotonic()
        assert gone.wait(LIMIT), "the server has given the sleeper up"
        time.sleep(max(0.0, asleep + 2 * TIME_OUTS - time.monotonic()))  # a sleep is what is wanted
        ask("while asleep")
        client.send_signal(signal.SIGCONT)
        kind, _, comes_back = said()
        assert (kind, comes_back) == ("close", True)
        assert said() == "open"
        ask("after")
        heard = [said()]
        while heard[-1] != "after":
            heard.append(said())
        assert heard in (["while asleep", "after"], ["after"])
        client.stdin.close()
        assert said() == ["close", 1005, False]
        assert said() == 2 - len(heard), "what is lost went out before the loss was seen, and was at risk"
        assert client.wait(LIMIT) == 0
        client.stdout.close()
