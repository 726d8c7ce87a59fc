"""Queries: each reply to its own, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import gc
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import garbage
import measure
import numpy
import pytest
from peers import LIMIT, Connection, Peer, RawServer, echo_server, text

import nwebsocket
from nwebsocket import (
    ConnectionClosed,
    InvalidArgument,
    InvalidStateError,
    Query,
    QueryMixin,
    QueryTimeout,
    WebSocket,
)


class Asking(QueryMixin, WebSocket):
    """A socket that can query."""


class Server:
    """Answers queries, those of some kinds in a way of their own."""

    def __init__(self) -> None:
        self.held: list[str] = []  # answers that wait for a request of type "now"

    def __call__(self, connection: Connection) -> None:
        for message in connection:
            try:
                request = json.loads(message)
                kind = request.get("type")
            except (ValueError, AttributeError, RecursionError):
                request, kind = {}, None
            answer = json.dumps({"answer": request.get("value"), "id": request.get("id")})
            if kind == "hold":
                self.held.append(answer)
            elif kind == "now":
                for held in [*reversed(self.held), answer]:
                    connection.send(held)
                self.held.clear()
            elif kind == "twice":
                connection.send(answer)
                connection.send(answer)
            elif kind == "close":
                connection.close(4000, "enough")
            elif kind == "value":
                connection.send(answer)
            elif kind != "never":
                connection.send(message)


@pytest.fixture
def server() -> Iterator[str]:
    with echo_server(handler=Server()) as running:
        yield running.url


@pytest.fixture
def ws(server: str) -> Iterator[Asking]:
    with Asking(server) as asking:
        yield asking


def adds_up(ws: Asking, queries: int, **counts: int) -> bool:
    """Whether there were so many queries, with these fates and no others."""
    stats = ws.stats
    found = {name: getattr(stats, name) for name in ("in_flight", "answered", "timed_out", "cancelled", "failed")}
    return sum(found.values()) == queries and {name: count for name, count in found.items() if count} == counts


def ask(ws: Asking, value: Any, **options: Any) -> Query:
    return ws.query({"type": "value", "value": value}, **options)


# --- The answer


def test_the_answer_of_a_query(ws: Asking) -> None:
    query = ask(ws, "é☃")
    assert isinstance(query, concurrent.futures.Future)
    assert query.result(LIMIT) == {"answer": "é☃", "id": query.tag}
    assert query.exception(0) is None
    assert query.done()
    assert not query.running()
    assert not query.cancelled()
    assert not query.cancel()
    assert adds_up(ws, 1, answered=1)


def test_answers_out_of_order_find_their_queries(ws: Asking) -> None:
    queries = [ws.query({"type": "hold", "value": number}) for number in range(100)]
    assert not any(query.done() for query in queries)
    queries.append(ws.query({"type": "now", "value": 100}))
    assert [query.result(LIMIT)["answer"] for query in queries] == list(range(101))
    assert adds_up(ws, 101, answered=101)


def test_other_messages_are_ordinary_ones(ws: Asking) -> None:
    query = ws.query({"type": "hold"})
    others = ["[1]", "text", '{"id": "x"}', '{"id": true}', '{"id": 1.5}', '{"id": 7}', '{"id": null}', "[" * 100_000]
    for other in others:
        ws.send(other)
    ws.send(b'{"id": %d}' % query.tag)
    for other in others:
        assert ws.recv(LIMIT) == other
    assert ws.recv(LIMIT) == b'{"id": %d}' % query.tag
    assert not query.done()
    ws.query({"type": "now"}).result(LIMIT)
    assert query.result(LIMIT)["answer"] is None
    assert ws.stats.messages_received == len(others) + 3  # replies are messages, too


def test_a_second_reply_is_an_ordinary_message(ws: Asking) -> None:
    query = ws.query({"type": "twice", "value": 1})
    assert json.loads(ws.recv(LIMIT)) == query.result(LIMIT)


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_ordinary_messages_go_to_the_handler(server: str, callbacks: Any) -> None:
    heard: list[Any] = []
    done = threading.Event()

    class Feed(Asking):
        def onmessage(self, message: Any) -> None:
            heard.append(message)
            if message == "last":
                done.set()

    with Feed(server, callbacks=callbacks) as feed:
        queries = []
        for number in range(50):
            feed.send(f"ordinary {number}")
            queries.append(ask(feed, number))
        feed.send("last")
        assert done.wait(LIMIT)
        assert [query.result(LIMIT)["answer"] for query in queries] == list(range(50))
    assert heard == [*(f"ordinary {number}" for number in range(50)), "last"]


def test_a_callback_may_wait_for_its_own_query(server: str) -> None:
    answers: list[Any] = []
    done = threading.Event()

    class Feed(Asking):
        def onopen(self) -> None:
            answers.append(ask(self, "in onopen").result(LIMIT)["answer"])
            self.send("go on")

        def onmessage(self, message: Any) -> None:
            answers.append(ask(self, "in onmessage").result(LIMIT)["answer"])
            done.set()

    with Feed(server):
        assert done.wait(LIMIT)
    assert answers == ["in onopen", "in onmessage"]


def test_on_the_loop_thread_waiting_is_refused(server: str) -> None:
    raised: list[Any] = []
    done = threading.Event()

    class Feed(Asking):
        def onmessage(self, message: Any) -> None:
            query = ask(self, "on the loop")
            query.add_done_callback(lambda query: (raised.append(query.result()["answer"]), done.set()))
            for wait in (query.result, query.exception):
                try:
                    wait()
                except RuntimeError as error:
                    raised.append(str(error))

    with Feed(server, callbacks="loop") as feed:
        feed.send("x")
        assert done.wait(LIMIT)
    assert raised == ["waiting for a query would block the loop thread, which has to bring its answer"] * 2 + [
        "on the loop"
    ]


def test_it_works_with_what_works_with_futures(ws: Asking) -> None:
    queries = [ask(ws, number) for number in range(20)]
    assert {query.result()["answer"] for query in concurrent.futures.as_completed(queries, LIMIT)} == set(range(20))
    held = ws.query({"type": "hold"})
    answered, waiting = concurrent.futures.wait([*queries, held], timeout=0.05)
    assert (len(answered), waiting) == (20, {held})
    first = concurrent.futures.wait([held, ask(ws, 1)], LIMIT, concurrent.futures.FIRST_COMPLETED)
    assert held in first.not_done
    assert held.cancel()
    assert concurrent.futures.wait([held], LIMIT).done == {held}
    assert list(concurrent.futures.as_completed([held], LIMIT)) == [held]

    async def main() -> Any:
        return await asyncio.wait_for(asyncio.gather(*(asyncio.wrap_future(ask(ws, n)) for n in range(5))), LIMIT)

    assert [answer["answer"] for answer in asyncio.run(main())] == list(range(5))


def test_waiters_of_every_kind_hear_of_a_cancelled_query(ws: Asking) -> None:
    query = ws.query({"type": "never"})
    heard: list[Any] = []
    query.add_done_callback(lambda query: heard.append(query.cancelled()))
    waits: list[Callable[[], Any]] = [
        lambda: query.result(LIMIT),
        lambda: concurrent.futures.wait([query], LIMIT).done,
        lambda: next(concurrent.futures.as_completed([query], LIMIT)),
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = [pool.submit(wait) for wait in waits]
        assert not concurrent.futures.wait(waiting, 0.05).done
        assert query.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting[0].result(LIMIT)
        assert waiting[1].result(LIMIT) == {query}
        assert waiting[2].result(LIMIT) is query
    assert query.cancel()
    assert heard == [True]
    assert adds_up(ws, 1, cancelled=1)


def test_a_callback_added_late_is_called_at_once(ws: Asking) -> None:
    query = ask(ws, 1)
    query.result(LIMIT)
    heard: list[Any] = []
    query.add_done_callback(heard.append)
    assert heard == [query]
    assert repr(query) == f"<Query at {id(query):#x} state=finished returned dict>"


# --- No answer


def test_a_query_times_out_and_its_late_reply_is_dropped(ws: Asking) -> None:
    start = time.monotonic()
    query = ws.query({"type": "hold"}, timeout=0.05)
    with pytest.raises(QueryTimeout, match="no answer came within the query's timeout") as caught:
        query.result(LIMIT)
    assert isinstance(caught.value, (TimeoutError, concurrent.futures.TimeoutError))
    assert isinstance(caught.value, concurrent.futures.TimeoutError)
    assert 0.05 <= time.monotonic() - start < 2
    ws.query({"type": "now"}).result(LIMIT)
    assert ws.stats.late_replies == 1
    assert adds_up(ws, 2, timed_out=1, answered=1)


def test_queries_time_out_each_at_its_own_time(ws: Asking) -> None:
    ended: list[int] = []
    timeouts = [0.25, 0.05, 0.15, 0.1, 0.2]
    for number, timeout in enumerate(timeouts):
        ws.query({"type": "never"}, timeout=timeout).add_done_callback(
            lambda query, number=number: ended.append(number)
        )
    last = ws.query({"type": "never"}, timeout=0.3)
    assert isinstance(last.exception(LIMIT), QueryTimeout)
    assert ended == [1, 3, 2, 4, 0]


def test_the_timeout_of_result_leaves_the_query_be(ws: Asking) -> None:
    query = ws.query({"type": "hold", "value": 1})
    for wait in (query.result, query.exception):
        with pytest.raises(QueryTimeout, match=r"no answer within 0\.01 s"):
            wait(0.01)
    with pytest.raises(QueryTimeout):
        query.result(0)
    ws.query({"type": "now"})
    assert query.result(LIMIT)["answer"] == 1


def test_a_cancelled_query_leaves_nothing_and_its_late_reply_is_dropped(ws: Asking) -> None:
    query = ws.query({"type": "hold"})
    assert query.cancel()
    ws.query({"type": "now"}).result(LIMIT)
    assert adds_up(ws, 2, cancelled=1, answered=1)
    assert ws.stats.late_replies == 1


def test_an_interrupted_cancel_is_carried_out(ws: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    query = ws.query({"type": "never"})
    queries = ws._nwebsocket.sifter
    original = queries.settle

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(queries, "settle", original)
        raise KeyboardInterrupt

    monkeypatch.setattr(queries, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        query.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        query.result(LIMIT)
    assert query.cancelled()
    assert ws.stats.cancelled == 1


def test_a_reply_that_comes_at_the_moment_of_cancel_is_dropped(ws: Asking) -> None:
    query = ws.query({"type": "never"})
    queries = ws._nwebsocket.sifter
    left: list[Any] = []

    class Open(dict[int, Any]):
        def pop(self, tag: int, *default: Any) -> Any:
            popped = super().pop(tag, *default)
            if not left:  # the loop thread, just then
                left.append(None)
                left.append(queries.takes(json.dumps({"id": tag}), []))
            return popped

    queries.open = Open(queries.open)
    assert query.cancel()
    assert left == [None, True]
    assert (ws.stats.cancelled, ws.stats.late_replies, ws.stats.answered) == (1, 1, 0)


def test_queries_fail_when_their_connection_ends(server: str) -> None:
    with Asking(server) as ws:
        queries = [ws.query({"type": "never"}), ws.query({"type": "never"}, timeout=60), ws.query({"type": "close"})]
        for query in queries:
            with pytest.raises(ConnectionClosed, match="4000") as caught:
                query.result(LIMIT)
            assert (caught.value.code, caught.value.reason) == (4000, "enough")
        assert adds_up(ws, 3, failed=3)
        with pytest.raises(ConnectionClosed):
            ask(ws, 1)
        assert adds_up(ws, 4, failed=4)


def test_queries_fail_when_the_connection_is_lost() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()
        peer.reset()

    with RawServer(script) as server:
        ws = Asking(server.url).wait_open(LIMIT)
        assert isinstance(ask(ws, 1).exception(LIMIT), ConnectionClosed)
        ws.wait_closed(LIMIT)


def test_before_the_connection_is_open_nothing_is_sent() -> None:
    with RawServer(Peer.stall) as server:
        ws = Asking(server.url)
        with pytest.raises(InvalidStateError):
            ask(ws, 1)
        assert adds_up(ws, 1, failed=1)
        ws.close()
        ws.wait_closed(LIMIT)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("request_", "error", "problem"),
    [
        ([1], TypeError, "mapping, to be sent as a JSON object, not list"),
        ("text", TypeError, "not str"),
        ({"id": 7}, InvalidArgument, "'id' is for the tag"),
        ({"x": float("nan")}, ValueError, "not JSON compliant"),
        ({"x": float("inf")}, InvalidArgument, "cannot be a JSON object: .*not JSON compliant"),
        ({"x": object()}, TypeError, "not JSON serializable"),
        ({"x": nested(200_000)}, InvalidArgument, "nested too deeply"),
        ({"x": circular()}, InvalidArgument, "cannot be a JSON object: Circular reference"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_request(ws: Asking, request_: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        ws.query(request_)
    assert adds_up(ws, 1, failed=1)


def test_what_is_no_timeout(ws: Asking) -> None:
    for timeout, error in (("1", TypeError), (-1, InvalidArgument)):
        with pytest.raises(error, match="timeout"):
            ask(ws, 1, timeout=timeout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads and fork(), from Python 3.12 on
def test_in_a_forked_child_queries_fail_at_once(ws: Asking) -> None:
    query = ws.query({"type": "hold", "value": 1})
    child = os.fork()
    if child == 0:
        os._exit(7 if isinstance(query.exception(5), ConnectionClosed) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ws.query({"type": "now"})
    assert query.result(LIMIT)["answer"] == 1


# --- The limit


def test_query_waits_while_there_are_too_many(server: str) -> None:
    class Few(Asking):
        max_queries = 4

    with Few(server) as ws:
        held = [ws.query({"type": "hold"}) for _ in range(4)]
        sent = threading.Event()

        def one_more() -> None:
            ask(ws, 5)
            sent.set()

        thread = threading.Thread(target=one_more)
        thread.start()
        assert not sent.wait(0.05)
        held[0].cancel()
        assert sent.wait(LIMIT)
        thread.join()
    assert ws.stats.in_flight == 0


def test_who_waits_for_room_hears_of_the_end(server: str) -> None:
    class Few(Asking):
        max_queries = 1

    with Few(server) as ws, concurrent.futures.ThreadPoolExecutor(3) as pool:
        ws.query({"type": "never"})
        waiting = [pool.submit(ask, ws, 1) for _ in range(3)]
        assert not concurrent.futures.wait(waiting, 0.05).done
        ws.close()
        for future in waiting:
            assert isinstance(future.exception(LIMIT), ConnectionClosed)


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        (0, InvalidArgument),
        (-1, InvalidArgument),
        (-(10**5000), InvalidArgument),
        (None, TypeError),
        ("5", TypeError),
        (True, TypeError),
        (1.5, TypeError),
    ],
    ids=lambda value: "huge" if isinstance(value, int) and value < -1 else str(value),
)
def test_what_is_no_limit(server: str, limit: Any, error: type[Exception]) -> None:
    class Few(Asking):
        max_queries = limit

    with Few(server) as ws:
        with pytest.raises(error, match="max_queries must be a whole number"):
            ask(ws, 1)
        assert adds_up(ws, 0)


def test_numpys_numbers_are_limits(server: str) -> None:
    class Few(Asking):
        max_queries = numpy.int8(2)

    with Few(server) as ws:
        assert [ask(ws, number).result(LIMIT)["answer"] for number in range(5)] == list(range(5))


# --- Other formats


class Binary(QueryMixin, WebSocket):
    """Two bytes of tag in front of the payload; an answer that begins with "!" is an error."""

    def tag_request(self, request: bytes, tag: int) -> bytes:
        return tag.to_bytes(8, "big") + request

    def read_reply(self, message: str | bytes) -> tuple[int, Any] | None:
        if isinstance(message, str):
            return None
        answer = message[8:]
        return int.from_bytes(message[:8], "big"), ValueError(answer) if answer[:1] == b"!" else answer


def test_another_format(echo: str) -> None:
    with Binary(echo) as ws:
        assert ws.query(b"payload").result(LIMIT) == b"payload"
        with pytest.raises(ValueError, match="!no"):
            ws.query(b"!no").result(LIMIT)
        ws.send("text")
        assert ws.recv(LIMIT) == "text"


def test_an_exception_in_read_reply_loses_no_message(log: Any) -> None:
    class Broken(Asking):
        def read_reply(self, message: str | bytes) -> Any:
            if message == "break":
                raise ZeroDivisionError
            return ([], 1) if message == "unhashable" else super().read_reply(message)

    with echo_server(handler=Server()) as server, Broken(server.url) as ws:
        last = ws.query({"type": "never"})
        for message in ("break", "unhashable"):
            ws.send(message)
            assert ws.recv(LIMIT) == message
        last.cancel()
    assert len(log.errors()) == 2


def test_another_field(echo: str) -> None:
    class Named(Asking):
        reflect = "request"

    with Named(echo) as ws:
        query = ws.query({"id": 7})
        assert query.result(LIMIT) == {"id": 7, "request": query.tag}


@pytest.mark.parametrize("field", [7, None, b"id"])
def test_what_is_no_field(server: str, field: Any) -> None:
    class Named(Asking):
        reflect = field

    with Named(server) as ws, pytest.raises(TypeError, match=f"reflect must be a str, .* not {type(field).__name__}"):
        ask(ws, 1)


@pytest.mark.parametrize("field", ["id", "gr\u00fc\u00dfe", 'a"b', "a\\b", "a\n", "\U0001f600"])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_field_is_found_however_it_is_written(field: str, ascii_only: bool) -> None:
    class Named(Asking):
        reflect = field

    def rewrite(connection: Connection) -> None:
        for message in connection:
            connection.send(json.dumps(json.loads(message), ensure_ascii=ascii_only))

    with echo_server(handler=rewrite) as server, Named(server.url) as ws:
        query = ws.query({"value": 1})
        assert query.result(LIMIT) == {"value": 1, field: query.tag}


def test_an_escape_may_hide_the_field() -> None:
    assert Asking.read_reply(Asking, '{"\\u0069d": 7}') == (7, {"id": 7})  # type: ignore[arg-type]


def test_what_cannot_be_a_reply_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(text: str) -> Any:
        raise AssertionError(text[:10])

    monkeypatch.setattr("nwebsocket.queries.decode", decode)
    for message in ("", "[" + "[]," * (2**20 // 3) + "[]]", '{"ident": 7}', "id"):
        assert Asking.read_reply(Asking, message) is None  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        Asking.read_reply(Asking, '{"id": 7}')  # type: ignore[arg-type]


# --- The class


def test_the_wrong_order_of_bases_is_refused() -> None:
    with pytest.raises(TypeError, match="QueryMixin must stand before WebSocket"):
        type("Wrong", (WebSocket, QueryMixin), {})


def test_the_names_are_the_packages() -> None:
    assert {"Query", "QueryMixin", "QueryStats", "QueryTimeout"} <= set(nwebsocket.__all__)
    assert nwebsocket.QueryMixin is QueryMixin
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        nwebsocket.Nothing  # noqa: B018


def test_a_socket_that_was_never_opened_cannot_query() -> None:
    class Forgetful(Asking):
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match=r"never opened: .* super\(\)\.__init__\(url\)"):
        Forgetful().query({})


# --- Many at once


def shuffle(connection: Connection) -> None:
    """Answer in random order, and one in a hundred never."""
    waiting: list[Any] = []
    for message in connection:
        if random.random() >= 0.01:
            waiting.insert(random.randrange(len(waiting) + 1), message)
        if len(waiting) > 20 or json.loads(message).get("flush"):
            for answer in waiting:
                connection.send(answer)
            waiting.clear()


@pytest.mark.slow
@pytest.mark.timeout(50 if not measure.FULL else 300)
def test_many_queries_of_many_threads_find_their_answers() -> None:
    threads, each, window, timeout = 8, measure.size(1_000, 25_000), 40, 0.3

    class Busy(Asking):
        max_queries = 256

    unanswered: list[int] = []

    def check(query: Query, thread: int, number: int) -> None:
        try:
            answer = query.result(LIMIT)
        except QueryTimeout:
            unanswered.append(query.tag)
        else:
            assert (answer["thread"], answer["n"], answer["id"]) == (thread, number, query.tag)

    def work(ws: Busy, thread: int) -> None:
        waiting: collections.deque[tuple[Query, int, int]] = collections.deque()
        for number in range(each):
            request = {"thread": thread, "n": number, "flush": number % 20 == 19 or number == each - 1}
            waiting.append((ws.query(request, timeout=timeout), thread, number))
            if len(waiting) > window:
                check(*waiting.popleft())
        for entry in waiting:
            check(*entry)

    with echo_server(handler=shuffle, compression=None) as server, Busy(server.url, compression=None) as ws:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(work, ws, thread) for thread in range(threads)]:
                future.result(measure.LIMIT)
        assert adds_up(ws, threads * each, answered=threads * each - len(unanswered), timed_out=len(unanswered))
        queries = ws._nwebsocket.sifter
        assert len(queries._deadlines) < 2 * 256 + 1024 + threads
        assert len(queries._given_up) + ws.stats.late_replies == len(unanswered)
        assert 0 < len(unanswered) < threads * each / 2  # a busy machine answers some too late
    del queries
    garbage.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, Query)] == []


def test_a_reply_that_nobody_can_send_is_not_taken(echo: str) -> None:
    """A small number in an ordinary message is no tag of ours."""

    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()
        for number in range(100):
            peer.send(text(json.dumps({"id": number})))
        peer.read_until_close()

    with RawServer(script) as server, Asking(server.url, compression=None) as ws:
        query = ask(ws, 1)
        assert [json.loads(ws.recv(LIMIT))["id"] for _ in range(100)] == list(range(100))
        assert not query.done()
        query.cancel()
