"""Who waits for a message reads the socket: in recv(), for the answer to a query, and the thread of the handlers."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import CLOSE, LIMIT, PING, PONG, Authority, Peer, RawServer, close_frame, echo_server, frame, ping, text
from until import until

from nwebsocket import Deflate, QueryMixin, ReconnectingWebSocket, WebSocket
from nwebsocket._connection.lent_sockets import AVAILABLE
from nwebsocket._protocol.fast_lane import ENABLED

pytestmark = pytest.mark.skipif(
    not (ENABLED and AVAILABLE), reason="threads read the socket only with the fast lane, and where there is epoll"
)


class Queries(QueryMixin, WebSocket):
    pass


class ReturningQueries(QueryMixin, ReconnectingWebSocket):
    pass


@pytest.fixture(params=["plain", "compressed", "tls", "traced"])
def way(request: pytest.FixtureRequest, ca: Authority) -> Iterator[tuple[str, dict[str, Any]]]:
    """The URL of an echo server, and the options to go there."""
    logger = logging.getLogger("nwebsocket")
    level = logger.level
    logger.setLevel(logging.DEBUG if request.param == "traced" else level)
    context = ca.server() if request.param == "tls" else None
    with echo_server(ssl=context) as server:
        compression = None if request.param == "plain" else Deflate(threshold=0)
        yield server.url, {"compression": compression, "ssl": ca.client() if context else None}
    logger.setLevel(level)


def reads_of(ws: WebSocket) -> int:
    """How often threads have read its socket."""
    reader = ws._nwebsocket.bridge.reader
    return 0 if reader is None else int(reader.reads)


def until_read_by_a_thread(ws: WebSocket, exchange: Callable[[int], None]) -> None:
    """Exchange until some have been read by who waited for them; a busy machine makes pauses, which end that."""
    count = iter(range(100_000))
    until(lambda: (exchange(next(count)), reads_of(ws) >= 20)[1], "no thread has read its own messages")


@pytest.mark.parametrize("kind", [WebSocket, ReconnectingWebSocket, Queries])
def test_recv_reads(way: tuple[str, dict[str, Any]], kind: type[WebSocket]) -> None:
    def exchange(number: int) -> None:
        ws.send(f"message {number}")
        assert ws.recv(LIMIT) == f"message {number}"

    with kind(way[0], **way[1]) as ws:
        until_read_by_a_thread(ws, exchange)


@pytest.mark.parametrize("kind", [Queries, ReturningQueries])
def test_who_waits_for_an_answer_reads(way: tuple[str, dict[str, Any]], kind: type[Queries]) -> None:
    def exchange(number: int) -> None:
        assert ws.query({"number": number}).result(LIMIT)["number"] == number

    with kind(way[0], **way[1]) as ws:
        until_read_by_a_thread(ws, exchange)
        assert ws.stats.answered == ws.stats.messages_sent


@pytest.mark.parametrize("kind", [WebSocket, ReconnectingWebSocket])
def test_the_thread_of_the_handlers_reads(way: tuple[str, dict[str, Any]], kind: type[WebSocket]) -> None:
    heard: list[str] = []

    def onmessage(message: str) -> None:
        heard.append(message)
        if reads_of(ws) < 20:
            ws.send(str(len(heard)))

    with kind(way[0], **way[1]) as ws:
        ws.onmessage = onmessage
        ws.send("0")
        until(lambda: reads_of(ws) >= 20, "the thread of the handlers has not read")
    assert heard == [str(number) for number in range(len(heard))]


class Sayer:
    """A server's script: "burst 5" is answered with so many messages, "ping" with a Ping, most else with itself."""

    def __init__(self) -> None:
        self.ponged = threading.Event()

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        while (got := peer.read_frame()).opcode != CLOSE:
            word, _, rest = got.payload.decode(errors="replace").partition(" ")
            if got.opcode == PONG:
                self.ponged.set()
            elif got.opcode == PING:
                peer.send(frame(PONG, got.payload))
            elif word == "burst":
                peer.send(b"".join(text(str(number)) for number in range(int(rest))))
            elif word == "ping":
                peer.send(ping(b"?"))
            elif word == '{"never":':
                pass
            elif word == "close":
                peer.send(text("the last") + close_frame(1000))
                break
            else:
                peer.send(text(got.payload.decode()))
        peer.read_until_close() if word == "close" else peer.send(close_frame(1000))


@pytest.fixture
def sayer() -> Sayer:
    return Sayer()


@pytest.fixture
def url(sayer: Sayer) -> Iterator[str]:
    with RawServer(sayer) as server:
        yield server.url


def test_a_handler_that_runs_long_gives_the_socket_back(url: str, sayer: Sayer) -> None:
    """Pings are answered while it runs, and what comes meanwhile is read."""
    heard: list[str] = []

    def onmessage(message: str) -> None:
        heard.append(message)
        if message == "block":
            ws.send("ping")
            assert sayer.ponged.wait(LIMIT)
            ws.send("burst 100")
            until(lambda: len(ws._nwebsocket.bridge.inbox.messages) == 100, "it is not read")
        elif reads_of(ws) < 20:
            ws.send("more")
        elif "block" not in heard:
            ws.send("block")

    with WebSocket(url) as ws:
        ws.onmessage = onmessage
        ws.send("more")
        until(lambda: heard[-100:] == [str(number) for number in range(100)])


@pytest.mark.parametrize("count", [1, 1000])
def test_the_close_frame_behind_messages_is_heard_after_them(url: str, count: int) -> None:
    heard: list[Any] = []

    def onmessage(message: str) -> None:
        heard.append(message)
        if reads_of(ws) < 20:
            ws.send("more")
        elif message == "more":
            ws.send(f"burst {count}")
            ws.send("close")

    ws = WebSocket(url)
    ws.onmessage = onmessage
    ws.onclose = lambda event: heard.append(event.code)
    ws.wait_open(LIMIT).send("more")
    ws.wait_closed(LIMIT)
    assert heard[-count - 2 :] == [*map(str, range(count)), "the last", 1000]


def test_an_idle_socket_keeps_no_thread_polling(url: str) -> None:
    def onmessage(message: str) -> None:
        if reads_of(ws) < 20:
            ws.send("more")

    with WebSocket(url) as ws:
        ws.onmessage = onmessage
        ws.send("more")
        until(lambda: reads_of(ws) >= 20)
        thread, reader = ws._nwebsocket.callbacks.thread, ws._nwebsocket.bridge.reader
        until(lambda: thread.idle and not reader.lent, "it is not given back")


def test_what_another_thread_waits_for_comes_while_handlers_read(url: str) -> None:
    def onmessage(message: str) -> None:
        if not done.is_set():
            ws.send(message)

    done = threading.Event()
    with WebSocket(url) as ws:
        ws.onmessage = onmessage
        ws.send("round and round")
        until(lambda: reads_of(ws) >= 20)
        for _ in range(20):
            assert ws.ping(LIMIT) > 0
        done.set()


def test_messages_and_answers_come_to_whom_they_are_for(url: str) -> None:
    """A main thread that queries beside handlers for everything else."""
    heard: list[str] = []

    def onmessage(message: str) -> None:
        heard.append(message)
        if len(heard) < 300:
            ws.send(str(len(heard)))

    with Queries(url) as ws:
        ws.onmessage = onmessage
        ws.send("0")
        for number in range(300):
            assert ws.query({"number": number}).result(LIMIT)["number"] == number
        until(lambda: len(heard) == 300)
    assert heard == [str(number) for number in range(300)]


def test_a_slow_read_reply_holds_nobody_up_but_what_came_behind(url: str) -> None:
    """The loop has taken the socket back meanwhile: order is kept, and Pings are answered."""
    entered, release = threading.Event(), threading.Event()

    class Slow(Queries):
        def read_reply(self, message: str | bytes) -> tuple[Any, Any] | None:
            if message == "slow":
                entered.set()
                assert release.wait(LIMIT)
            return super().read_reply(message)

    with Slow(url) as ws:
        until_read_by_a_thread(ws, lambda number: ws.query({"number": number}).result(LIMIT))
        got: list[Any] = []
        reader = threading.Thread(target=lambda: got.extend(ws.recv(LIMIT) for _ in range(102)))
        unanswered = ws.query({"never": True}, timeout=LIMIT)
        unanswered.cancel()
        reader.start()
        ws.send("slow")
        assert entered.wait(LIMIT)
        ws.send("burst 100")
        ws.send("end")
        release.set()
        reader.join(LIMIT)
    assert got == ["slow", *map(str, range(100)), "end"]


def test_a_done_callback_that_waits_for_its_own_socket_is_told(url: str) -> None:
    """On whatever thread it runs: that is the one which would have to read the answer."""
    outcomes: list[Any] = []

    def wait(query: Any) -> None:
        try:
            ws.query({"another": 1}).result(LIMIT)
        except RuntimeError as error:
            outcomes.append(type(error).__name__)

    with Queries(url) as ws:
        until_read_by_a_thread(ws, lambda number: ws.query({"number": number}).result(LIMIT))
        for number in range(20):
            query = ws.query({"number": number})
            query.add_done_callback(wait)
            query.result(LIMIT)
        until(lambda: len(outcomes) == 20)
    assert set(outcomes) <= {"RuntimeError", "WaitsForItself"}


def test_answers_and_messages_in_one_packet_on_the_thread_that_waits() -> None:
    def serve(peer: Peer) -> None:
        peer.accept()
        while (got := peer.read_frame()).opcode != CLOSE:
            tag = json.loads(got.payload)["id"]
            peer.send(text("before") + text(json.dumps({"id": tag})) + text("after"))
        peer.send(close_frame(1000))

    with RawServer(serve) as server, Queries(server.url) as ws:
        for _ in range(300):
            assert ws.query({}).result(LIMIT)
            assert [ws.recv(LIMIT), ws.recv(LIMIT)] == ["before", "after"]
        assert reads_of(ws) > 0
