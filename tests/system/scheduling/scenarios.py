"""What threads do with sockets at once, and what must hold whichever of them is first."""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import garbage
from peers import Authority, RawServer, close_frame, ping

from nwebsocket import (
    CloseEvent,
    ConnectionClosed,
    Deflate,
    Event,
    InvalidStateError,
    OutboxFull,
    QueryMixin,
    QueryTimeout,
    ReconnectingWebSocket,
    WaitTimeout,
    WebSocket,
    WebSocketError,
    close_all,
    open_sockets,
)
from scheduling.talk import Talk, echo, scripted

PATIENCE = 50.0
"""Seconds after which a thread that has not finished never will."""


class Fault(AssertionError):
    """Something that must hold does not."""


class Run:
    """What a scenario has to work with.

    ``dice``    decides what is done
    ``faults``  what has been found wrong, by any thread
    ``counts``  what has been done
    """

    def __init__(self, seconds: float, seed: int, *, tls: bool, deflate: bool) -> None:
        self.dice = random.Random(seed)
        self.seed = seed
        self.faults: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.compression = Deflate(threshold=0) if deflate else None
        self._end = time.monotonic() + seconds
        self._server_tls: ssl.SSLContext | None = None
        self._options: dict[str, Any] = {}
        if tls:
            authority = Authority()
            self._server_tls = authority.server()
            self._options = {"ssl": authority.client()}

    def goes_on(self) -> bool:
        """Whether there is time, and nothing is wrong yet."""
        return time.monotonic() < self._end and not self.faults

    def server(self, say: Callable[[Talk], None]) -> RawServer:
        """A server that has this conversation with each client."""
        return RawServer(scripted(say, self.seed), ssl=self._server_tls)

    def make(self, kind: type[Any], server: RawServer, **options: Any) -> Any:
        """A new socket."""
        return kind(server.url, **{"compression": self.compression, **self._options, **options})

    def all_at_once(self, functions: Sequence[Callable[[], object]]) -> None:
        """Run each in a thread of its own, to the end."""
        threads = [threading.Thread(target=self._noting_faults, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise Fault(f"{thread.name} is stuck")

    def _noting_faults(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Fault as fault:
            self.faults.append(str(fault))

    @staticmethod
    def close(ws: WebSocket) -> None:
        """Close it, and wait for that."""
        ws.close()
        ws.wait_closed(PATIENCE)


def expect(condition: object, what: str) -> None:
    """Raise Fault unless it is so."""
    if not condition:
        raise Fault(what)


# --- Scenarios


def recv_send(run: Run) -> None:
    """Four threads send numbered messages, one or three receive: each comes back once; to one receiver, in order."""
    dice, senders = run.dice, 4
    with run.server(echo) as server:
        while run.goes_on():
            receivers, count = dice.choice((1, 1, 3)), dice.choice((20, 60, 200))
            bounds = {"max_queue": dice.choice((4, 65_536)), "write_limit": dice.choice((300, 2**20))}
            ws = run.make(WebSocket, server, **bounds).wait_open(PATIENCE)
            got: list[str] = []

            def send(sender: int, ws: WebSocket = ws, count: int = count) -> None:
                for number in range(count):
                    ws.send(f"{sender}:{number}{'x' * dice.choice((0, 5, 300))}")
                    if dice.random() < 0.02:
                        time.sleep(0.001)

            def receive(ws: WebSocket = ws, got: list[str] = got, total: int = senders * count) -> None:
                while len(got) < total:
                    with contextlib.suppress(WaitTimeout):
                        got.append(ws.recv(dice.choice((0, 0.0005, 0.002, 0.05))).rstrip("x"))

            run.all_at_once([*(functools.partial(send, sender) for sender in range(senders)), *[receive] * receivers])
            expect(len(got) == len(set(got)) == senders * count, f"{len(got)} came, {len(set(got))} of them different")
            for sender in range(senders if receivers == 1 else 0):
                of_sender = [text for text in got if text.startswith(f"{sender}:")]
                expect(of_sender == [f"{sender}:{number}" for number in range(count)], "out of order")
            run.counts["messages"] += len(got)
            run.close(ws)


def recv_timeouts(run: Run) -> None:
    """One thread in recv() with tiny time-outs; what the server sends is cut anywhere, with pings and fragments."""

    def stream(talk: Talk) -> None:
        dice, number, data = talk.dice, 0, b""
        for _ in range(400):
            for _ in range(dice.choice((1, 1, 1, 2, 5, 40))):
                data += talk.frames_of(f"{number},{'y' * dice.choice((0, 0, 10, 200, 5000))}")
                number += 1
            if dice.random() < 0.05:
                data += ping(b"?")
            if dice.random() < 0.03:
                data += talk.frames_of(f"{number},fragments", fragments=3)
                number += 1
            cut = len(data) if dice.random() < 0.6 else dice.randrange(len(data) + 1)
            talk.send(data[:cut])
            data = data[cut:]
            time.sleep(dice.choice((0, 0, 0, 0.0002, 0.001, 0.003)))
        talk.send(data + talk.frames_of(f"{number},end"))
        talk.until_closed()

    dice = run.dice
    with run.server(stream) as server:
        while run.goes_on():
            ws = run.make(WebSocket, server).wait_open(PATIENCE)
            number, message = 0, ""
            while not message.endswith("end"):
                try:
                    message = ws.recv(dice.choice((0, 0, 0.0003, 0.001, 0.004, 0.02)))
                except WaitTimeout:
                    continue
                expect(message.startswith(f"{number},"), f"number {number} was to come, not {message[:20]!r}")
                number += 1
                if dice.random() < 0.01:
                    ws.send("hello")
                if dice.random() < 0.01:
                    time.sleep(dice.choice((0.001, 0.015, 0.03)))
            run.counts["messages"] += number
            run.close(ws)


def handlers_flood(run: Run) -> None:
    """A handler comes and goes while messages do, and nobody is in recv(): it hears each once, in order."""
    dice, count = run.dice, 3000

    def flood(talk: Talk) -> None:
        for number in range(count):
            talk.say(str(number))
            if number % 20 == 0:
                time.sleep(0.001)
        talk.until_closed()

    with run.server(flood) as server:
        while run.goes_on():
            callbacks, max_queue = dice.choice(("thread", "loop")), dice.choice((8, 65_536))
            ws = run.make(WebSocket, server, callbacks=callbacks, max_queue=max_queue)
            heard: list[str] = []
            over = threading.Event()

            def onmessage(message: str, heard: list[str] = heard, over: threading.Event = over) -> None:
                heard.append(message)
                if message == str(count - 1):
                    over.set()

            deadline = time.monotonic() + PATIENCE
            while not over.is_set() and time.monotonic() < deadline:
                ws.onmessage = onmessage
                over.wait(dice.random() * 0.004)
                if dice.random() < 0.7:
                    ws.onmessage = None
                    time.sleep(dice.random() * 0.002)
            expect(heard == [*map(str, range(count))], f"{len(heard)} were heard of {count}; {ws!r}")
            run.counts["messages"] += len(heard)
            run.close(ws)


def reconnecting(run: Run) -> None:
    """The server leaves at any moment: no message comes twice or out of order, and `at_risk` bounds what is missing."""
    dice = run.dice
    seen: dict[str, list[int]] = collections.defaultdict(list)
    calm = threading.Event()

    def take(talk: Talk) -> None:
        left = talk.dice.choice((0, 1, 5, 50, 300))
        for message in talk.messages():
            name, number, _ = message.split(":")
            seen[name].append(int(number))
            left -= 1
            if left < 0 and not calm.is_set():
                talk.end(talk.dice.choice(("reset", "closing", "end")))
                return

    with run.server(take) as server:
        while run.goes_on():
            calm.clear()
            name, total = f"run {run.counts['runs']}", dice.choice((100, 500))
            ws = run.make(ReconnectingWebSocket, server, close_timeout=5)
            for number in range(total):
                message = f"{name}:{number}:{'z' * dice.choice((0, 100, 3000))}"
                while not _accepted(ws, message):
                    time.sleep(0.005)
                if dice.random() < 0.1:
                    time.sleep(dice.random() * 0.005)
            calm.set()
            _wait_until_all_is_known(ws)
            risk, buffered = ws.at_risk, ws.bufferedAmount
            run.close(ws)
            got = seen.pop(name, [])
            wrong = [index for index in range(1, len(got)) if got[index - 1] >= got[index]]
            around = [got[max(0, index - 12) : index + 12] for index in wrong]
            expect(not wrong, f"{name}: twice, or out of order: {around}; at_risk {risk}")
            missing = total - len(got)
            expect(missing <= risk, f"{name}: {missing} are missing, at_risk says {risk}, bufferedAmount {buffered}")
            run.counts.update(runs=1, messages=total, missing=missing)


def _wait_until_all_is_known(ws: ReconnectingWebSocket) -> None:
    """A ping behind everything is answered. A connection that is just closing answers none, and what it has had is not
    `at_risk` before it has ended.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(WebSocketError):
            ws.wait_open(PATIENCE).ping(PATIENCE)
            if not ws.bufferedAmount:
                return
        time.sleep(0.01)
    expect(False, f"{ws!r} has had no ping answered for {PATIENCE:g} s")


def _accepted(ws: ReconnectingWebSocket, message: str) -> bool:
    try:
        ws.send(message)
    except OutboxFull:
        return False
    return True


class Querying(QueryMixin, WebSocket):
    """Asks."""

    max_queries = 16


class ReconnectingQuerying(QueryMixin, ReconnectingWebSocket):
    """Asks again."""

    max_queries = 16


def queries(run: Run) -> None:
    """Four threads ask, with time-outs and cancellations: each query ends once, with its own answer or an error."""

    def answer(talk: Talk) -> None:
        left = talk.dice.choice((50, 300, 10**9))
        for message in talk.messages():
            left -= 1
            if left < 0:
                talk.end("end")
                return
            if talk.dice.random() < 0.85:
                talk.say(message)
            if talk.dice.random() < 0.05:
                time.sleep(0.01)

    def ask(ws: Any, asker: int) -> None:
        dice, again = random.Random(asker), isinstance(ws, ReconnectingWebSocket)
        for number in range(60):
            question = {"n": f"{asker}:{number}"}
            try:
                timeout = dice.choice((0.005, 0.03, 0.2))
                query = ws.query(question, timeout=timeout, retry=again and dice.random() < 0.3)
                called: list[Any] = []
                query.add_done_callback(called.append)
                if dice.random() < 0.2:
                    query.cancel()
                answered = query.result(PATIENCE)
                expect(answered["n"] == question["n"], f"the answer to {question} is {answered}")
                run.counts["answered"] += 1
            except QueryTimeout:
                expect(query.done(), f"{query!r} does not end")
                run.counts["timed out"] += 1
            except CancelledError:
                run.counts["cancelled"] += 1
            except OutboxFull:
                run.counts["refused"] += 1
            except (ConnectionClosed, InvalidStateError):
                return

    with run.server(answer) as server:
        while run.goes_on():
            kind, callbacks = run.dice.choice((Querying, ReconnectingQuerying)), run.dice.choice(("thread", "loop"))
            ws = run.make(kind, server, callbacks=callbacks).wait_open(PATIENCE)
            stray: list[str] = []
            ws.onmessage = stray.append
            run.all_at_once([functools.partial(ask, ws, asker) for asker in range(4)])
            expect(not ws.stats.in_flight, f"still in flight: {ws.stats}")
            expect(not stray, f"heard as messages: {stray}")
            run.counts["sockets"] += 1
            run.close(ws)


def closing(run: Run) -> None:
    """Six threads close, ping, send, receive and wait at one socket: all return; there is one close event, the last."""

    def leave(talk: Talk) -> None:
        dice = talk.dice
        if dice.random() < 0.3:
            talk.send(talk.frames_of("m") * 50)
        if dice.random() < 0.2:
            time.sleep(dice.random() * 0.02)
            talk.send(close_frame(1001))
        if dice.random() < 0.2:
            time.sleep(dice.random() * 0.02)
            talk.end("end")
            return
        echo(talk)

    def use(ws: WebSocket, dice: random.Random) -> None:
        for _ in range(6):
            with contextlib.suppress(WebSocketError):
                action = dice.choice(
                    (
                        lambda: ws.wait_open(0.05),
                        lambda: ws.send("x" * dice.choice((1, 1000))),
                        lambda: ws.recv(0.005),
                        lambda: ws.ping(0.05),
                        lambda: ws.wait_closed(0.005),
                        lambda: ws.close(1000) if dice.random() < 0.5 else None,
                        lambda: (ws.stats, repr(ws), ws.bufferedAmount),
                    )
                )
                action()

    dice = run.dice
    with run.server(leave) as server:
        while run.goes_on():
            kind: Any = dice.choice((WebSocket, WebSocket, ReconnectingWebSocket))
            limits = {"close_timeout": dice.choice((0.5, 6)), "ping_interval": dice.choice((0.01, None, 20))}
            ws = run.make(kind, server, callbacks=dice.choice(("thread", "loop")), **limits)
            heard: list[Event] = []
            for event_type in ("open", "error", "close"):
                ws.addEventListener(event_type, heard.append)
            run.all_at_once([functools.partial(use, ws, random.Random(dice.random())) for _ in range(6)])
            close_all()
            ws.wait_closed(PATIENCE)
            last = [event for event in heard if isinstance(event, CloseEvent) and event.retry_in is None]
            expect(len(last) == 1 and heard[-1] is last[0], f"events: {[event.type for event in heard]}")
            run.counts["sockets"] += 1


def many(run: Run) -> None:
    """Dozens of sockets at once from four threads; half of them are not closed but dropped. None is left."""

    def use(dice: random.Random) -> None:
        sockets = [run.make(WebSocket, server, compression=dice.choice((None, "deflate"))) for _ in range(10)]
        for ws in sockets:
            ws.wait_open(PATIENCE).send("1")
            expect(ws.recv(PATIENCE) == "1", "another message")
            run.counts["sockets"] += 1
        for ws in sockets:
            if dice.random() < 0.5:
                ws.close()
        del sockets, ws
        if dice.random() < 0.2:
            garbage.collect()

    with run.server(echo) as server:
        while run.goes_on():
            run.all_at_once([functools.partial(use, random.Random(run.dice.random())) for _ in range(4)])
        garbage.collect()
        close_all()
        deadline = time.monotonic() + PATIENCE
        while open_sockets() and time.monotonic() < deadline:
            time.sleep(0.01)
        expect(not open_sockets(), f"left: {open_sockets()}")


SCENARIOS: dict[str, Callable[[Run], None]] = {
    scenario.__name__: scenario
    for scenario in (recv_send, recv_timeouts, handlers_flood, reconnecting, queries, closing, many)
}
