"""What docs/security.md promises and no other test shows: what is given gets nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peers import Peer, RawServer

from nwebsocket import InvalidArgument, InvalidURL, WebSocket

LIMIT = 10.0  # seconds: more than anything here takes

#: What is dangerous in a request, and what is not.
NASTY = st.text(st.sampled_from("a\r\n\0\t :;,/?#@%\"'\\[]é€\ud800\x7f\x85\u2028"), max_size=12)

FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\r\n\0]*")
TARGET = re.compile(rb"GET /[!-~]* HTTP/1\.1")


@pytest.fixture(scope="module")
def door() -> Iterator[tuple[RawServer, list[list[bytes]]]]:
    """A server that refuses, and the lines of the requests that it got."""
    seen: list[list[bytes]] = []

    def script(peer: Peer) -> None:
        seen.append(peer.request.split(b"\r\n"))
        peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        assert peer.read_eof() == b""

    with RawServer(script) as server:
        yield server, seen


def names_of(lines: list[bytes]) -> list[bytes]:
    return sorted(line.partition(b":")[0].lower() for line in lines[1:-2])


PLAIN = [
    b"connection",
    b"host",
    b"sec-websocket-extensions",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"upgrade",
]


@given(
    place=st.sampled_from(["path", "query", "user", "password", "header", "origin", "auth", "cookie", "protocol"]),
    text=NASTY,
)
@example("path", " HTTP/1.1\r\nX: y\r\n\r\n")
@example("header", "\r\nX: y")
@example("user", "\r\nX: y")
def test_nothing_that_is_given_adds_a_line(
    door: tuple[RawServer, list[list[bytes]]], place: str, text: str
) -> None:
    server, seen = door
    seen.clear()
    where, options, more = f"127.0.0.1:{server.port}", dict[str, Any](), list[bytes]()
    url = f"ws://{where}/"
    if place in ("path", "query"):
        url += text if place == "path" else f"?{text}"
    elif place in ("user", "password"):
        text = re.sub(r"[/?#\\]", "", text)  # would make it the host
        url = f"ws://{text}@{where}/" if place == "user" else f"ws://u:{text}@{where}/"
    elif place == "header":
        options, more = {"headers": {"X-Y": text}}, [b"x-y"]
    elif place == "origin":
        options, more = {"origin": text}, [b"origin"]
    elif place == "auth":
        options, more = {"auth": (text, text)}, [b"authorization"]
    elif place == "cookie":
        options, more = {"cookies": {"a": text}}, [b"cookie"]
    else:
        options, more = {"protocols": [text]}, [b"sec-websocket-protocol"]
    try:
        ws = WebSocket(url, **options)
    except (InvalidArgument, InvalidURL):
        return  # refused at the call
    ws.onerror = lambda error: None
    ws.wait_closed(LIMIT)
    (lines,) = seen
    assert TARGET.fullmatch(lines[0])
    assert all(FIELD.fullmatch(line) for line in lines[1:-2])
    assert set(PLAIN) <= set(names_of(lines)) <= {*PLAIN, *more, b"authorization"}
    assert len(lines) == len(names_of(lines)) + 3

