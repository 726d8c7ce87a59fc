"""What comes from outside is escaped before anybody sees it: in errors, in the log, on the terminal."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from peers import LIMIT, Peer, RawServer, close_frame, text

from nwebsocket import ConnectionClosed, InvalidArgument, InvalidURL, Response, WebSocket, WebSocketError
from nwebsocket._base.escape import escaped
from nwebsocket._base.log import log as library_log
from nwebsocket._network.tls import TLS

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


def test_the_traceback_of_what_a_handler_raises(log: Any) -> None:
    """It may say what the server has sent."""

    def script(peer: Peer) -> None:
        peer.accept(after=text(EVIL))
        peer.read_until_close()
        peer.send(close_frame(1000))

    failed = threading.Event()

    def onmessage(message: str) -> None:
        failed.set()
        try:
            raise KeyError(message)
        except KeyError as error:
            raise ValueError(f"unknown command {message}\nforged: {message}") from error

    with RawServer(script) as server:
        ws = WebSocket(server.url, compression=None)
        ws.onmessage = onmessage
        assert failed.wait(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)
    (record,) = log.errors()
    lines = logging.Formatter().format(record).split("\n")
    for line in lines:
        check_fit(line)
    assert [line for line in lines if "forged" in line and line.startswith(("2025", "forged"))] == []
    assert sum("Traceback (most recent call last):" in line for line in lines) == 2
    assert any(line.startswith("ValueError: unknown command a") for line in lines)


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
        lambda: WebSocket("ws://host/", headers={f"Authorization Bearer {SECRET}": ""}),
        lambda: WebSocket("ws://host/", headers={f"X-Key\t{SECRET}": 7}),  # type: ignore[dict-item]
        lambda: WebSocket("ws://host/", headers=[((SECRET,), "")]),  # type: ignore[list-item]
        lambda: WebSocket("ws://host/", cookies={f"id={SECRET}": ""}),
        lambda: WebSocket("ws://host/", cookies={f"id={SECRET}": 7}),  # type: ignore[dict-item]
        lambda: WebSocket("ws://host/", cookies={(SECRET,): ""}),  # type: ignore[dict-item]
        lambda: WebSocket("ws://host/", ssl=SECRET),  # type: ignore[arg-type]
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


def test_the_answer_shows_no_value_that_may_be_a_secret() -> None:
    response = Response(101, [("Server", "x"), ("Set-Cookie", SECRET), ("X-Key", SECRET)])
    assert repr(response) == (
        "Response(status=101, headers=[('Server', 'x'), ('Set-Cookie', '(6 characters)'), ('X-Key', '(6 characters)')])"
    )
    assert response == Response(101, [("Server", "x"), ("Set-Cookie", SECRET), ("X-Key", SECRET)])


# --- Lengths

LONG = 60_000
ENDLESS = {
    "a phrase": f"HTTP/1.1 403 {'x' * LONG}\r\nContent-Length: 0\r\n\r\n",
    "a header's name": f"HTTP/1.1 403 No\r\n{'x' * LONG}: y\r\nContent-Length: 0\r\n\r\n",
    "a header's value": f"HTTP/1.1 403 No\r\nServer: {'x' * LONG}\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": "x" * LONG,
    "no header": f"HTTP/1.1 403 No\r\n{'x' * LONG}\r\n\r\n",
    "a Location": f"HTTP/1.1 302 No\r\nLocation: ftp://h/{'x' * LONG}\r\nContent-Length: 0\r\n\r\n",
}
PARAMETERS = [
    "x" * LONG,
    f"client_max_window_bits={'1' * LONG}",
    f"server_no_context_takeover={'x' * LONG}",
]


def failure(url: str, **options: Any) -> str:
    with pytest.raises(WebSocketError) as caught:
        WebSocket(url, **options).wait_open(LIMIT)
    return str(caught.value)


def check_lengths(*told: str) -> None:
    assert max(map(len, told)) < 5000


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS)
def test_no_answer_makes_a_long_error_or_record(answer: str, logged: Any) -> None:
    def script(peer: Peer) -> None:
        _ = peer.request
        peer.send(answer.encode())

    with RawServer(script) as server:
        told = failure(server.url)
        through_proxy = failure("ws://host.example/", proxy=server.url.replace("ws:", "http:"))
    check_lengths(told, through_proxy, *logged())


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter[:30])
def test_no_parameter_makes_a_long_error_or_record(parameter: str, logged: Any) -> None:
    def script(peer: Peer) -> None:
        peer.accept(extensions=f"permessage-deflate; {parameter}")

    with RawServer(script) as server:
        told = failure(server.url)
    assert "permessage-deflate" in told
    check_lengths(told, *logged())


def test_redirects_to_endless_paths_make_no_long_error_or_record(logged: Any) -> None:
    hops = itertools.count(1)

    def script(peer: Peer) -> None:
        _ = peer.request
        hop = next(hops)
        path = f"/{hop}{'x' * LONG}"
        where = f"HTTP/1.1 302 Found\r\nLocation: {path}" if hop <= 7 else "HTTP/1.1 404 No"
        peer.send(f"{where}\r\nContent-Length: 0\r\n\r\n".encode())

    with RawServer(script) as server:
        told = failure(server.url)
    assert next(hops) == 9
    assert told.count(" -> ") == 7
    check_lengths(told, *logged())


@pytest.mark.parametrize(
    "make",
    [
        lambda name: WebSocket("ws://host/", headers={f"{name} ": ""}),
        lambda name: WebSocket("ws://host/", headers={name: "\n"}),
        lambda name: WebSocket("ws://host/", headers={name: 7}),
        lambda name: WebSocket("ws://host/", cookies={f"{name} ": ""}),
        lambda name: WebSocket("ws://host/", cookies={name: ";"}),
        lambda name: WebSocket("ws://host/", cookies={name: 7}),
    ],
)
def test_no_name_makes_a_long_error(make: Any) -> None:
    with pytest.raises((InvalidArgument, TypeError)) as caught:
        make("x" * 100_000)
    assert len(str(caught.value)) < 300


def test_no_name_makes_a_long_record(echo: str, logged: Any) -> None:
    WebSocket(echo, headers={"x" * 100_000: "y"}).wait_closed(LIMIT)
    check_lengths(*logged())


def test_the_chat_client_prints_nothing_that_a_terminal_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "chat"))
    from client import plain  # type: ignore[import-not-found]

    sys.modules.pop("client")
    assert plain("Grüße 世界") == "Grüße 世界"
    check_fit(plain(EVIL))
