"""The log at DEBUG level: the story of a connection, without anything that may be a secret."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from http.cookiejar import CookieJar
from typing import Any

import pytest
from peers import LIMIT, Authority, Peer, RawServer, close_frame, echo_server

from nwebsocket import ConnectionClosed, HandshakeError, WebSocket, connect

SECRET = "s3s4me"


class Lines(logging.Handler):
    """All that the library logs, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def has(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.lines)


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger, handler = logging.getLogger("nwebsocket"), Lines()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


def set_secret(connection: Any, request: Any, response: Any) -> None:
    response.headers["Set-Cookie"] = f"id={SECRET}"


def test_the_story_of_a_connection(lines: Lines, ca: Authority) -> None:
    with echo_server(ssl=ca.server(), process_response=set_secret, subprotocols=[SECRET]) as server:
        url = server.url.replace("//", f"//me:{SECRET}@") + f"path?token={SECRET}"
        options = {"headers": {"X-Api-Key": SECRET}, "cookies": CookieJar(), "ssl": ca.client()}
        for _ in range(2):  # the second time with the cookie
            with connect(url, SECRET, **options) as ws:
                ws.send(SECRET)
                assert ws.recv(LIMIT) == SECRET
                ws.send(SECRET.encode())
                assert ws.recv(LIMIT) == SECRET.encode()
                ws.ping()
                ws.close(3000, "enough")
                ws.wait_closed(LIMIT)
        shown = re.escape(server.url)
        for pattern in (
            rf"^#\d+ = {shown}path\?\.\.\.$",
            r"^#\d+ = nwebsocket 2\.\S+, curio 1\.\S+, wsproto 1\.\S+, .*Python.*OpenSSL",
            rf"^#\d+ = connecting to 127\.0\.0\.1 port {server.port}$",
            r"^#\d+ = connected: .*127\.0\.0\.1.* TLSv1\.3, TLS_",
            rf"^#\d+ > GET {shown}path\?\.\.\. HTTP/1\.1$",
            r"^#\d+ > Upgrade: websocket$",
            r"^#\d+ > X-Api-Key: \(6 characters\)$",
            r"^#\d+ > Authorization: \(\d+ characters\)$",
            r"^#\d+ > Cookie: \(9 characters\)$",
            r"^#\d+ > Sec-WebSocket-Protocol: \(6 characters\)$",
            r"^#\d+ < HTTP/1\.1 101$",
            r"^#\d+ < Set-Cookie: \(9 characters\)$",
            r"^#\d+ = open, extensions: permessage-deflate",
            r"^#\d+ > a message of 6 text bytes$",
            r"^#\d+ < a message of 6 characters of text$",
            r"^#\d+ > a message of 6 binary bytes$",
            r"^#\d+ < a message of 6 binary bytes$",
            r"^#\d+ > ping$",
            r"^#\d+ < pong",
            r"^#\d+ = close\(\) is called$",
            r"^#\d+ < Close frame, code 3000, reason 'enough'$",
            r"^#\d+ = ended: 3000 'enough', closed by the client$",
            r"^#\d+ = sent 2 messages, received 2$",
        ):
            assert lines.has(pattern), pattern
        assert SECRET not in "\n".join(lines.lines) + repr(ws)


def test_a_refusal_and_a_redirect_are_told(lines: Lines) -> None:
    def script(peer: Peer) -> None:
        if peer.path == "/":
            peer.send(f"HTTP/1.1 302 F\r\nLocation: /b?t={SECRET}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            peer.send(f"HTTP/1.1 403 No\r\nX-Why: {SECRET}\r\nContent-Length: 6\r\n\r\n{SECRET}".encode())

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        with pytest.raises(HandshakeError):
            ws.wait_open(LIMIT)
        ws.wait_closed(LIMIT)
    shown = re.escape(server.url)
    for pattern in (
        rf"^#\d+ = redirected to {shown}b\?\.\.\.$",
        r"^#\d+ < HTTP/1\.1 403$",
        r"^#\d+ ! ended: 1006, .*: the server answered the opening handshake with HTTP 403 No; 101 was expected$",
    ):
        assert lines.has(pattern), pattern
    assert SECRET not in "\n".join(lines.lines)


def test_a_line_break_of_the_servers_cannot_forge_a_line(lines: Lines) -> None:
    def script(peer: Peer) -> None:
        peer.accept([("Server", "x\x85y")])
        peer.send(close_frame(1000, "x\n#9 = forged!!!"))

    with RawServer(script) as server:
        ws = connect(server.url)
        with pytest.raises(ConnectionClosed):
            ws.recv(LIMIT)
    assert all(len(line.splitlines()) == 1 for line in lines.lines)
    assert lines.has(r"Close frame, code 1000, reason 'x\\n#9 = forged!!!'")


def test_without_debug_level_nothing_is_told(echo: str) -> None:
    handler = Lines()
    logger = logging.getLogger("nwebsocket")
    logger.addHandler(handler)
    try:
        with connect(echo) as ws:
            ws.send("x")
            assert ws.recv(LIMIT) == "x"
    finally:
        logger.removeHandler(handler)
    assert handler.lines == []
