"""The client of the soak, the process that is measured: python -m soaking.client CONNECTIONS RATE LIFE CA PORT...

A thread, the user, for each connection: it sends numbered messages at random moments, RATE per second, and notes what
comes. A WebSocket is closed and made anew by its user, a ReconnectingWebSocket comes back by itself. The ports are,
for each server, those that lead straight to it and through the relay, without and with TLS. When a line comes on
standard input it begins; at the next one all is sent to the end and closed; then it waits for its own end. SIGUSR1
shows all stacks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import random
import signal
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from nwebsocket import (
    CloseEvent,
    ConnectionClosed,
    ConnectionFailed,
    Deflate,
    OutboxFull,
    QueryMixin,
    ReconnectingWebSocket,
    WaitTimeout,
    WebSocket,
    WebSocketError,
    open_sockets,
)
from nwebsocket._connection import backoff
from soaking.plan import (
    ALL_PUSHED,
    ALL_SENT,
    ANSWERED,
    AT_REST,
    AT_RISK,
    DAMAGED,
    ERROR,
    HEARD,
    LARGEST,
    READY,
    SENT,
    UNANSWERED,
    Profile,
    Reporter,
    message,
    path_of,
    profile,
    read_message,
)

TIMEOUTS = {"open_timeout": 5.0, "close_timeout": 5.0, "ping_interval": 4.0, "ping_timeout": 4.0}
CLIENT_CLOSES = 3000
PATIENCE = 60.0
"""Seconds; far longer than any of the time-outs, for other processes may have the processors."""

LASTING = ("MainThread", "reporter", "nwebsocket-loop")

reporter = Reporter()


class User(threading.Thread):
    """Who uses one connection, and makes it anew when it has ended."""

    def __init__(self, one: Profile, url: str, rate: float, life: float, tls: ssl.SSLContext) -> None:
        super().__init__(name=f"user {one.key}", daemon=True)
        self.profile = one
        self.stop = threading.Event()
        self._dice = random.Random(one.key)
        self._url = url
        self._rate = rate
        self._life = life
        self._tls = tls
        self._attempt = 0
        self._sent = 0  # messages, on this connection if it does not come back
        self._done = 0.0  # when it is closed (monotonic clock)

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self._use_one()
        except BaseException:
            report_error(traceback.format_exc())

    def _use_one(self) -> None:
        ws = self._make()
        if isinstance(ws, ReconnectingWebSocket):
            self._talk(ws)
            self._flush(ws)
            self._close(ws)
            reporter.note(AT_RISK, self.profile.key, 0, ws.at_risk)
        else:
            try:
                self._talk(ws.wait_open(PATIENCE))
            except (ConnectionFailed, ConnectionClosed):
                self.stop.wait(self._dice.uniform(0.05, self._life / 20))
            self._ended(self._close(ws))

    def _close(self, ws: WebSocket) -> CloseEvent:
        ws.close(CLIENT_CLOSES, "done")
        self._drain(ws)
        event = ws.wait_closed(PATIENCE)
        if ws.stats.inbox or ws.readyState is not WebSocket.CLOSED:
            report_error(f"after its end: {ws!r}, {ws.stats}")
        return event

    # ---- making it

    def _make(self) -> WebSocket:
        one = self.profile
        cls: Any = CLASSES[one.reconnecting, one.mode]
        url: Any = self._next_url if one.reconnecting else self._next_url()
        ws: WebSocket = cls(
            url,
            ssl=self._tls if one.tls else None,
            compression=Deflate(threshold=0) if one.compressed else None,
            callbacks="loop" if one.mode == "loop" else "thread",
            write_limit=one.write_limit,
            **TIMEOUTS,
        )
        self._done = time.monotonic() + (1e9 if one.reconnecting else self._dice.expovariate(1 / self._life))
        if one.mode != "recv":
            ws.onmessage = self._heard
        if one.reconnecting:
            ws.onclose = self._ended
        return ws

    def _next_url(self) -> str:
        self._attempt += 1
        if not self.profile.reconnecting:
            self._sent = 0
        return self._url + path_of(self.profile.key, self._attempt)

    # ---- using it

    def _talk(self, ws: WebSocket) -> None:
        numbers = itertools.count(1)
        while not self.stop.is_set() and time.monotonic() < self._done:
            with contextlib.suppress(OutboxFull):
                for _ in range(self._dice.choice((1, 1, 1, 1, 16))):
                    self._send(ws)
                if self.profile.mode == "query":
                    self._query(ws, next(numbers))
            self._pause(ws, self._dice.expovariate(self._rate / 4))

    def _send(self, ws: WebSocket) -> None:
        data = message(self._sent)
        if self._sent % 20 == 3 and data:
            ws.send([data[:7], data[7:]])
        else:
            ws.send(data)
        reporter.note(SENT, self.profile.key, self._attempt * (not self.profile.reconnecting), self._sent)
        self._sent += 1

    def _pause(self, ws: WebSocket, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        if self.profile.mode != "recv":
            self.stop.wait(seconds)
            return
        with contextlib.suppress(WaitTimeout):
            while not self.stop.is_set():
                self._heard(ws.recv(max(0.0, deadline - time.monotonic())))

    def _query(self, ws: Any, number: int) -> None:
        query = ws.query({"n": number}, timeout=60, retry=self.profile.reconnecting)
        query.add_done_callback(lambda future: self._answered(future, number))

    def _answered(self, future: Future[Any], number: int) -> None:
        if future.exception() is not None:
            reporter.note(UNANSWERED, self.profile.key)
        elif future.result()["double"] == 2 * number:
            reporter.note(ANSWERED, self.profile.key)
        else:
            reporter.note(DAMAGED, self.profile.key)

    # ---- what comes

    def _heard(self, data: str | bytes) -> None:
        try:
            number, attempt = read_message(data)
        except ValueError as error:
            print("the client:", error, file=sys.stderr)
            reporter.note(DAMAGED, self.profile.key, self._attempt)
        else:
            reporter.note(HEARD, self.profile.key, attempt or self._attempt, number)

    def _ended(self, event: CloseEvent) -> None:
        if event.wasClean:
            reporter.note(ALL_PUSHED, self.profile.key, self._attempt)
            if event.code == CLIENT_CLOSES:  # the server's answer to ours
                reporter.note(ALL_SENT, self.profile.key, self._attempt)

    # ---- ending it

    def _flush(self, ws: ReconnectingWebSocket) -> None:
        """Have all that was sent reach the server."""
        deadline = time.monotonic() + 60
        while ws.readyState is not WebSocket.CLOSED:
            with contextlib.suppress(WebSocketError):
                ws.wait_open(5)
                ws.ping(5)
                if ws.bufferedAmount == 0 and not ws.outbox:
                    return
            if time.monotonic() > deadline:
                report_error(f"not flushed: {ws!r}, {ws.bufferedAmount} bytes buffered")
                return

    def _drain(self, ws: WebSocket) -> None:
        """Take what comes until the end."""
        if self.profile.mode == "recv":
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self._heard(ws.recv(PATIENCE))


class Querying(QueryMixin, WebSocket):
    """A WebSocket that queries."""


class ReconnectingQuerying(QueryMixin, ReconnectingWebSocket):
    """The same that comes back."""


CLASSES: dict[tuple[bool, str], type] = {
    (reconnecting, mode): (Querying, ReconnectingQuerying)[reconnecting]
    if mode == "query"
    else (WebSocket, ReconnectingWebSocket)[reconnecting]
    for reconnecting in (False, True)
    for mode in ("thread", "loop", "recv", "query")
}


def report_error(text: str) -> None:
    """Something that must not happen has."""
    print(text, file=sys.stderr, flush=True)
    reporter.note(ERROR)


class ErrorLog(logging.Handler):
    """Reports the errors in the library's log."""

    def emit(self, record: logging.LogRecord) -> None:
        report_error(logging.Formatter().format(record))


def watch_errors() -> None:
    logger = logging.getLogger("nwebsocket")
    logger.propagate = False
    logger.addHandler(ErrorLog(logging.ERROR))
    threading.excepthook = lambda arguments: report_error("".join(traceback.format_exception(*arguments[:3])))
    sys.unraisablehook = lambda unraisable: report_error(f"unraisable: {unraisable}")
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def report_for_ever() -> None:
    while True:
        reporter.flush()
        time.sleep(0.1)


def warm_up(url: str) -> None:
    """Have all that lasts: the descriptors of the loop, and what NumPy brings along, which masks large messages."""
    for cls in (WebSocket, Querying, ReconnectingQuerying):
        for compression in (None, "deflate"):
            with cls(url + path_of(0, 0), compression=compression) as ws:
                ws.send(bytes(LARGEST))
                for _ in range(4):
                    ws.recv(10)
    wait_for_threads()


def wait_for_threads() -> None:
    """Wait until there are only those that last; report it if others stay."""
    deadline = time.monotonic() + 5
    while others := [thread for thread in threading.enumerate() if thread.name not in LASTING]:
        if time.monotonic() > deadline:
            report_error(f"left behind: {others}")
            return
        time.sleep(0.02)


def main(connections: int, rate: float, life: float, ca: str, ports: list[int]) -> None:
    watch_errors()
    # Random delays like the real ones, compared with how long connections live.
    backoff.FIRST_DELAY = min(backoff.FIRST_DELAY, life / 20)
    backoff.MAX_DELAY = min(backoff.MAX_DELAY, life)
    threading.Thread(target=report_for_ever, name="reporter", daemon=True).start()
    tls = ssl.create_default_context(cafile=ca)
    warm_up(f"ws://127.0.0.1:{ports[0]}")
    reporter.note(READY)
    sys.stdin.readline()
    users = [User(one, url_of(one, ports), rate, life, tls) for one in map(profile, range(connections))]
    run(users, sys.stdin.readline)
    if left := open_sockets():
        report_error(f"still open: {left}")
    users.clear()
    wait_for_threads()
    reporter.note(AT_REST)
    sys.stdin.readline()
    reporter.flush()


def url_of(one: Profile, ports: list[int]) -> str:
    """Where that connection leads to."""
    port = ports[4 * one.server + 2 * one.tls + one.relayed]
    return f"{'wss' if one.tls else 'ws'}://127.0.0.1:{port}"


def run(users: list[User], until: Callable[[], object]) -> None:
    """Have them all work `until` that returns, and end."""
    for user in users:
        user.start()
    until()
    for user in users:
        user.stop.set()
    for user in users:
        user.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], list(map(int, sys.argv[5:])))
