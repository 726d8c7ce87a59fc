"""What users see when something goes wrong: the table of docs/failures.md against real runs, and the memory
that hostile servers can have a client take.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Log
from failures import BOMB, CASES, DEFLATE, PAGE, ZEROS, Case, Script, deflated, fragments, rows_of, run_case, send
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import BINARY, LIMIT, PING, PONG, TEXT, Peer, RawServer, close_frame, frame, text

import nwebsocket
from nwebsocket import ConnectionClosed, WebSocket

SOURCE = str(Path(nwebsocket.__file__).parents[1])

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the page has the words of Linux's C library")


@needs_linux
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES]
)
def test_the_page_says_what_a_user_sees(case: Case, log: Log) -> None:
    row = str(run_case(case))
    assert row in rows_of(PAGE.read_text(encoding="utf-8"))
    assert log.warnings() == []


def test_the_page_has_these_cases_and_no_others() -> None:
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows_of(PAGE.read_text(encoding="utf-8"))]
    assert names == [case.name for case in CASES]


def test_interim_answers_are_no_failure() -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        peer.accept(after=text("hello") + close_frame(1000))
        peer.read_eof()

    with RawServer(script) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        assert ws.recv(LIMIT) == "hello"
        assert ws.wait_closed(LIMIT).wasClean


# --- Whatever a server sends

MESSAGES = st.lists(st.one_of(st.text(max_size=200), st.binary(max_size=200)), max_size=5)
MUTATIONS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2), st.binary(max_size=3)), min_size=1, max_size=3)


def mutated(stream: bytes, mutations: list[tuple[float, int, bytes]]) -> tuple[bytes, int]:
    """The stream with bytes put in the place of others at some of its points, and where the first of these is."""
    first = len(stream)
    for where, dropped, put in mutations:
        start = int(where * len(stream))
        stream = stream[:start] + put + stream[start + dropped :]
        first = min(first, start)
    return stream, first


def untouched(messages: list[str | bytes], frames: list[bytes], first: int) -> list[str | bytes]:
    """The messages whose frames end before the byte number `first`."""
    ends = itertools.accumulate(map(len, frames))
    return [message for message, end in zip(messages, ends, strict=True) if end <= first]


def received(ws: WebSocket) -> list[str | bytes]:
    """All messages up to the end, which is a ConnectionClosed."""
    messages: list[str | bytes] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(ws.recv(LIMIT))
    return messages


@pytest.mark.parametrize("extensions", [None, DEFLATE], ids=["plain", "deflate"])
def test_a_mutated_stream_gives_what_was_whole_before_it_and_then_ends(extensions: str | None) -> None:
    streams: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        peer.accept(extensions=extensions)
        with contextlib.suppress(OSError):  # the client hangs up as soon as it has seen enough
            for piece in streams.get(timeout=LIMIT):
                peer.send(piece)
            peer.end()
        peer.read_eof()

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MESSAGES, MUTATIONS, st.lists(st.floats(0, 1), max_size=4))
    def check(messages: list[str | bytes], mutations: list[tuple[float, int, bytes]], cuts: list[float]) -> None:
        frames = [server_frame(message, compressed=extensions is not None) for message in messages]
        stream, first = mutated(b"".join(frames) + close_frame(1000), mutations)
        bounds = [0, *sorted(int(cut * len(stream)) for cut in cuts), len(stream)]
        streams.put([stream[start:end] for start, end in itertools.pairwise(bounds)])
        ws = WebSocket(server.url, close_timeout=1).wait_open(LIMIT)
        whole = untouched(messages, frames, first)
        assert received(ws)[: len(whole)] == whole
        assert ws.wait_closed(LIMIT).code in (*range(1000, 1004), *range(1005, 1015), *range(3000, 5000))

    with RawServer(script) as server:
        check()


def server_frame(message: str | bytes, *, compressed: bool) -> bytes:
    """A message as a server sends it."""
    payload = message.encode() if isinstance(message, str) else message
    opcode = TEXT if isinstance(message, str) else BINARY
    return frame(opcode, deflated(payload), rsv=4) if compressed else frame(opcode, payload)


# --- Memory

CLIENT = """
import json, sys
from nwebsocket import WebSocket, WebSocketError

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

def connect(url):
    ws = WebSocket(url)
    try:
        ws.wait_open(20)
        while True:
            ws.recv(20)
    except WebSocketError as error:
        ws.wait_closed(20)
        return type(error).__name__

harmless, hostile = json.load(sys.stdin)
connect(harmless)
before = memory("VmRSS")
seen = connect(hostile)
json.dump([seen, memory("VmHWM") - before], sys.stdout)
"""


def until_gone(send: Callable[[], object]) -> None:
    """Call `send` until the client has hung up."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while True:
            send()


def after_opening(beginning: bytes, endless: bytes, extensions: str | None = None) -> Script:
    """Open the connection, send this, and then that without an end; read nothing."""

    def script(peer: Peer) -> None:
        peer.accept(after=beginning, extensions=extensions)
        until_gone(lambda: peer.send(endless))

    return script


def instead_of_opening(beginning: bytes, endless: bytes) -> Script:
    """Answer the request with this, and then that without an end; read nothing more."""

    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(beginning)
        until_gone(lambda: peer.send(endless))

    return script


def flood(count: int, message: bytes) -> Script:
    """Send so many of these, read nothing meanwhile, and close."""

    def script(peer: Peer) -> None:
        peer.accept()
        for _ in range(count // 1000):
            peer.send(1000 * message)
        peer.send(close_frame(1000))
        peer.read_eof()

    return script


def redirect_without_end(peer: Peer) -> None:
    """Redirect to another path each time, with an endless body."""
    assert peer.request
    instead_of_opening(b"HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n" % peer.number, CHUNK)(peer)


def unfinished(opcode: int) -> Script:
    """Send a message as large as may be, but for its last byte."""
    return lambda peer: peer.accept(after=frame(opcode, (16 * 2**20 - 1) * b"x", length=16 * 2**20))


def part(opcode: int, payload: bytes, rsv: int = 0) -> bytes:
    """A fragment that is not the last one."""
    return frame(opcode, payload, fin=False, rsv=rsv)


MAX_KIB = 64 * 1024
CHUNK = 65536 * b"x"
CHUNKED = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"

HOSTILE: dict[str, tuple[Script, str]] = {
    "a bomb": (send(BOMB, extensions=DEFLATE), "MessageTooBig"),
    "a bomb in fragments": (after_opening(part(BINARY, ZEROS, rsv=4), part(0, ZEROS), DEFLATE), "MessageTooBig"),
    "a frame of 2**62 bytes": (after_opening(frame(BINARY, length=2**62), CHUNK), "MessageTooBig"),
    "a fragment of 2**62 bytes": (after_opening(part(TEXT, b"x") + frame(0, length=2**62), CHUNK), "MessageTooBig"),
    "small fragments": (send(fragments(b"x", 131_072)), "MessageTooBig"),
    "empty fragments": (send(fragments(b"", 131_072)), "MessageTooBig"),
    "endless large fragments": (after_opening(part(TEXT, b"x"), part(0, CHUNK)), "MessageTooBig"),
    "text that stops before its end": (unfinished(TEXT), "ConnectionLost"),
    "binary that stops before its end": (unfinished(BINARY), "ConnectionLost"),
    "pings": (flood(20_000, frame(PING, bytes(125))), "ConnectionClosed"),
    "pongs": (flood(20_000, frame(PONG, bytes(125))), "ConnectionClosed"),
    "endless data after Close": (after_opening(close_frame(1000), CHUNK), "ConnectionClosed"),
    "endless data after a fault": (after_opening(frame(3), CHUNK), "ProtocolError"),
    "an endless status line": (instead_of_opening(b"HTTP/1.1 101 ", CHUNK), "HandshakeError"),
    "endless headers": (instead_of_opening(b"HTTP/1.1 101 OK\r\n", b"X: y\r\n"), "HandshakeError"),
    "endless interim answers": (instead_of_opening(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "HandshakeError"),
    "an endless refusal": (instead_of_opening(b"HTTP/1.1 403 Forbidden\r\n\r\n", CHUNK), "HandshakeError"),
    "an endless chunked refusal": (instead_of_opening(CHUNKED, b"1\r\nx\r\n"), "HandshakeError"),
    "endless redirects": (redirect_without_end, "HandshakeError"),
}


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_hostile_server_makes_the_client_take_in_memory(name: str) -> None:
    script, expected = HOSTILE[name]
    with RawServer(send(close_frame(1000))) as harmless, RawServer(script) as hostile:
        ran = subprocess.run(
            [sys.executable, "-c", CLIENT],
            input=json.dumps([harmless.url, hostile.url]),
            env={**os.environ, "PYTHONPATH": SOURCE},
            capture_output=True,
            text=True,
            timeout=4 * LIMIT,
        )
    assert ran.stderr == ""
    seen, kib = json.loads(ran.stdout)
    assert seen == expected
    assert kib < MAX_KIB
