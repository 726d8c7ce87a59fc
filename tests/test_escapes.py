"""What comes from outside is escaped before anybody sees it: in errors, in the log, on the terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from peers import LIMIT, Peer, RawServer, close_frame, text

from nwebsocket import ConnectionClosed, InvalidArgument, InvalidURL, WebSocket, WebSocketError
from nwebsocket._escape import escaped
from nwebsocket._log import log as library_log
from nwebsocket._tls import TLS

EVIL = "a\n2025-01-01 CRITICAL forged\x1b]0;owned\x07\u202eabc\u2028\x85"
UNFIT = "\n\x1b\x07\u202e\u2028\x85"


def check_fit(shown: str) -> None:
    assert not set(shown) & set(UNFIT), ascii(shown)


def test_only_what_is_unfit_is_escaped() -> None:
    assert escaped("Grüße, 世界 😀\\") == "Grüße, 世界 😀\\"
    assert escaped(EVIL) == r"a\n2025-01-01 CRITICAL forged\x1b]0;owned\x07\u202eabc\u2028\x85"
    assert escaped("\ud800") == r"\ud800"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Any:
    """The library's log at DEBUG, as lines."""
    caplog.set_level(logging.DEBUG, "nwebsocket")
    return lambda: [record.getMessage() for record in caplog.records]


ANSWERS = {
    "the name of a header": "HTTP/1.1 403 Forbidden\r\nX-\r\x1b\x07\x85: x\r\nContent-Length: 0\r\n\r\n",
    "the name of a header, LF": "HTTP/1.1 403 Forbidden\r\nX\x1b\x07: x\r\n\r\n",
    "a reason phrase": "HTTP/1.1 403 Forb\x85\x1bidden\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": "HTTP/1.1 \x1b\x07\x85\r\n\r\n",
    "a Location": "HTTP/1.1 302 Found\r\nLocation: ws://h\x1b\x07\x85:99999/\r\nContent-Length: 0\r\n\r\n",
    "a Server header": "HTTP/1.1 403 Forbidden\r\nServer: \x1b\x07\x85\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_to_the_handshake(answer: str, logged: Any) -> None:
    def script(peer: Peer) -> None:
        _ = peer.request
        peer.send(answer.encode("latin-1"))

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        with pytest.raises(WebSocketError) as caught:
            ws.wait_open(LIMIT)
        ws.wait_closed(LIMIT)
    for shown in (str(caught.value), repr(caught.value), *logged()):
        check_fit(shown)


def test_a_close_reason(logged: Any) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("hello") + close_frame(4000, EVIL))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        assert ws.recv(LIMIT) == "hello"
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(LIMIT)
        assert ws.wait_closed(LIMIT).reason == EVIL
    for shown in (str(caught.value), repr(ws), *logged()):
        check_fit(shown)


def test_names_in_a_certificate(ca: Any, monkeypatch: pytest.MonkeyPatch, logged: Any) -> None:
    def script(peer: Peer) -> None:
        raise AssertionError

    monkeypatch.setattr(TLS, "peer_names", lambda self: [EVIL])
    with RawServer(script, ssl=ca.server("other.example")) as server:
        ws = WebSocket(server.url, ssl=ca.client())
        with pytest.raises(WebSocketError) as caught:
            ws.wait_open(LIMIT)
    check_fit(str(caught.value))
    for shown in logged():
        check_fit(shown)


def test_what_is_logged(logged: Any) -> None:
    library_log.warning("%s and %s", EVIL, ValueError(EVIL))
    (shown,) = logged()
    check_fit(shown)


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "make",
    [
        lambda: WebSocket(f"ws://host:99999/?token={SECRET}"),
        lambda: WebSocket(f"wss://host/?token={SECRET}#x"),
        lambda: WebSocket(f"host/?token={SECRET}"),
        lambda: WebSocket(f"//host/#{SECRET}"),
        lambda: WebSocket("ws://host/", f"bearer={SECRET}"),
        lambda: WebSocket("ws://host/", [f"bearer.{SECRET}", f"Bearer.{SECRET}"]),
        lambda: WebSocket("ws://host/", headers=f"Authorization: Bearer {SECRET}"),
        lambda: WebSocket("ws://host/", headers={f"Authorization: Bearer {SECRET}": ""}),
        lambda: WebSocket("ws://host/", headers=[(f"Cookie={SECRET}", "")]),
        lambda: WebSocket("ws://host/", proxy=f"http://proxy:1/?token={SECRET}"),
        lambda: WebSocket("ws://host/", proxy=f"http://user:{SECRET}@proxy:99999"),
    ],
)
def test_no_secret_is_in_an_error_of_the_arguments(make: Any) -> None:
    with pytest.raises((InvalidURL, InvalidArgument, TypeError)) as caught:
        make()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("location", [f"ws://h:99999/?s={SECRET}", f"ftp://h/?s={SECRET}", f"ws://h/#{SECRET}\x7f?"])
def test_no_secret_of_a_location_is_in_an_error(location: str, logged: Any) -> None:
    def script(peer: Peer) -> None:
        _ = peer.request
        peer.send(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

    with RawServer(script) as server:
        ws = WebSocket(server.url, open_timeout=5)
        with pytest.raises(WebSocketError) as caught:
            ws.wait_open(LIMIT)
        ws.wait_closed(LIMIT)
    for shown in (str(caught.value), *logged()):
        assert SECRET not in shown


def test_the_chat_client_prints_nothing_that_a_terminal_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "chat"))
    from client import plain  # type: ignore[import-not-found]

    sys.modules.pop("client")
    assert plain("Grüße 世界") == "Grüße 世界"
    check_fit(plain(EVIL))
