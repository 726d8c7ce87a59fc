"""The browser's behaviour, point by point, from outside: the public class against real peers.

The numbers in the names count the points in the order in which a connection lives: 1-9 constructor and URL, 10-16
opening handshake, 17-23 send, 24-30 close, 31-37 events. They follow the WHATWG WebSockets standard
(websockets.spec.whatwg.org) and RFC 6455, but for the departures that docs/porting.md lists.
"""

from __future__ import annotations

import array
import base64
import contextlib
import logging
import queue
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import garbage
import peers
import pytest
from peers import BINARY, CLOSE, LIMIT, TEXT, Authority, Frame, Peer, RawServer, close_frame, echo_server, frame, text

from nwebsocket import (
    Cancelled,
    CloseEvent,
    ConnectionClosed,
    ConnectionFailed,
    ErrorEvent,
    HandshakeError,
    InvalidClose,
    InvalidStateError,
    InvalidURL,
    MessageEvent,
    MessageTooBig,
    ProtocolError,
    WaitTimeout,
    WebSocket,
)

CONNECTING, OPEN, CLOSING, CLOSED = 0, 1, 2, 3
TYPES = ("open", "message", "error", "close")


class Heard:
    """What listeners for all types of event hear of a socket."""

    def __init__(self, ws: WebSocket) -> None:
        self.events: list[Any] = []
        self.states: list[tuple[str, int]] = []
        self.opened = threading.Event()
        for event_type in TYPES:
            ws.addEventListener(event_type, self._hear)

    def _hear(self, event: Any) -> None:
        self.events.append(event)
        self.states.append((event.type, event.target.readyState))
        if event.type == "open":
            self.opened.set()

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    @property
    def messages(self) -> list[str | bytes]:
        return [event.data for event in self.events if isinstance(event, MessageEvent)]


class Hearing(WebSocket):
    """A socket with listeners that miss nothing beside its handlers: no callback runs before __init__ has returned."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.heard = Heard(self)


def answer_close(peer: Peer) -> list[Frame]:
    """Read up to the client's Close frame, answer it with its own payload, and return all frames."""
    frames = peer.read_until_close()
    peer.send(frame(CLOSE, frames[-1].payload))
    return frames


def obedient(peer: Peer) -> None:
    """Accept, and answer the client's Close frame."""
    peer.accept()
    answer_close(peer)


def wait(event: threading.Event) -> None:
    assert event.wait(LIMIT)


def close_code(closing: Frame) -> int:
    assert closing.opcode == CLOSE
    return int.from_bytes(closing.payload[:2], "big")


@pytest.fixture(params=["thread", "loop"])
def callbacks(request: pytest.FixtureRequest) -> str:
    """Both places where handlers can run."""
    return str(request.param)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a server's script waits for; opened at the end, so that no failed test leaves a script waiting."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def seen() -> queue.Queue[Any]:
    """What a server's script has seen."""
    return queue.Queue()


# --- Constructor and URL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "socket",
        "/path",
        "//127.0.0.1/path",
        "?query",
        "ws:",
        "ws://",
        "ws://:80/",
        "ws://127.0.0.1:65536/",
        "ws://127.0.0.1:port/",
        "ws://[::1/",
        "ws://a b/",
        "ws://1.2.3.256/",
        "ftp://127.0.0.1/",
        "file:///etc/hosts",
        "mailto:someone@example.org",
        "about:blank",
    ],
)
def test_row_01_bad_url_raises_at_once(url: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        WebSocket(url)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:{port}", "ws://127.0.0.1:{port}/"),
        ("https://127.0.0.1:{port}", "wss://127.0.0.1:{port}/"),
        ("HTTP://LocalHost:{port}/Path?Query", "ws://localhost:{port}/Path?Query"),
        ("wss://LOCALHOST:{port}", "wss://localhost:{port}/"),
    ],
)
def test_row_02_http_is_mapped_and_url_serialized(url: str, shown: str) -> None:
    with peers.refusing_address() as (_, port):
        ws = WebSocket(url.format(port=port))
        assert ws.url == shown.format(port=port)
        ws.wait_closed(LIMIT)
        assert ws.url == shown.format(port=port)


@pytest.mark.parametrize("port", [80, 443])
def test_row_02_only_the_default_port_of_the_scheme_is_left_out(port: int) -> None:
    kept = {80: "wss", 443: "ws"}[port]
    left_out = {80: "ws", 443: "wss"}[port]
    for scheme, shown in ((kept, f"{kept}://127.0.0.1:{port}/"), (left_out, f"{left_out}://127.0.0.1/")):
        ws = WebSocket(f"{scheme}://127.0.0.1:{port}/")
        ws.close()
        assert ws.url == shown
        ws.wait_closed(LIMIT)


@pytest.mark.parametrize("fragment", ["#", "#fragment"])
@pytest.mark.parametrize("url", ["ws://127.0.0.1", "ws://127.0.0.1/path", "wss://127.0.0.1/?query", "http://127.0.0.1/"])
def test_row_03_any_fragment_raises(url: str, fragment: str) -> None:
    with pytest.raises(InvalidURL):
        WebSocket(url + fragment)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("ws:127.0.0.1:{port}/path", "/path"),
        ("ws:/127.0.0.1:{port}/path", "/path"),
        ("ws://127.0.0.1:{port}?a b", "/?a%20b"),
        ("ws://127.0.0.1:{port}/?a%20b", "/?a%20b"),
        ("ws://127.0.0.1:{port}/?key=café\U0001f600", "/?key=caf%C3%A9%F0%9F%98%80"),
        ("ws://127.0.0.1:{port}/?a\0b", "/?a%00b"),
        ("ws://127.0.0.1:{port}/path?query\0\x1f\n ", "/path?query"),
    ],
)
def test_row_04_unusual_urls_reach_the_server(seen: queue.Queue[str], url: str, target: str) -> None:
    def script(peer: Peer) -> None:
        seen.put(peer.path)
        obedient(peer)

    with RawServer(script) as server, WebSocket(url.format(port=server.port)) as ws:
        assert seen.get(timeout=LIMIT) == target
        assert ws.url == f"ws://127.0.0.1:{server.port}{target}"


def listener_at(*ports: int) -> socket.socket:
    """A listener at the first of these ports that can be had; skips the test if there is none."""
    for port in ports:
        with contextlib.suppress(OSError):  # in use, or not for ordinary users
            return socket.create_server(("127.0.0.1", port))
    pytest.skip(f"cannot listen at {ports}")


def first_byte_sent(url: str, listener: socket.socket) -> bytes:
    """What the client of `url` says first to the listener."""
    listener.settimeout(LIMIT)
    ws = WebSocket(url)
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(LIMIT)
        first = connection.recv(1)
    ws.wait_closed(LIMIT)
    return first


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize(("scheme", "first"), [("ws", b"G"), ("wss", b"\x16")])  # of "GET", and of a TLS handshake
def test_row_05_scheme_decides_about_tls_at_ports_80_and_443(scheme: str, first: bytes, port: int) -> None:
    with listener_at(port) as listener:
        assert first_byte_sent(f"{scheme}://127.0.0.1:{port}/", listener) == first


def test_row_05_tls_at_any_port(ca: Authority) -> None:
    with echo_server(ssl=ca.server()) as server, WebSocket(server.url, ssl=ca.client()) as ws:
        ws.send("secret")
        assert ws.recv(LIMIT) == "secret"


def test_row_06_ports_are_not_blocked() -> None:
    with listener_at(6667, 6697, 10080, 4190) as listener:  # all of them on the browser's list
        port = listener.getsockname()[1]
        assert first_byte_sent(f"ws://127.0.0.1:{port}/", listener) == b"G"


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_row_06_port_zero_is_an_error(scheme: str) -> None:
    with pytest.raises(InvalidURL):
        WebSocket(f"{scheme}://127.0.0.1:0/")


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        ("user:sesame", "user:sesame"),
        ("user%40home:sesame%3a%C3%A9", "user@home:sesame:é"),
        ("user", "user:"),
    ],
)
def test_row_07_user_and_password_go_into_the_first_request(userinfo: str, credentials: str) -> None:
    with echo_server() as server:
        url = server.url.replace("ws://", f"ws://{userinfo}@")
        with WebSocket(url) as ws:
            assert "user" not in ws.url + repr(ws)
    (request,) = server.requests
    assert request.headers["Authorization"] == "Basic " + base64.b64encode(credentials.encode()).decode()


def test_row_07_no_authorization_without_user() -> None:
    with echo_server() as server, WebSocket(server.url):
        assert "Authorization" not in server.requests[0].headers


def test_row_07_credentials_are_in_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with peers.refusing_address() as (host, port):
        ws = WebSocket(f"ws://user:sesame@{host}:{port}/")
        assert ws.wait_closed(LIMIT).code == 1006
        with pytest.raises(ConnectionFailed) as caught:
            ws.wait_open(LIMIT)
    told = "".join(traceback.format_exception_only(caught.type, caught.value)) + repr(ws) + ws.url + caplog.text
    assert host in told
    assert "sesame" not in told


@pytest.mark.parametrize("rest", ["/#fragment", ":65536/", ":0/"])
def test_row_07_credentials_are_in_no_url_error(rest: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        WebSocket(f"ws://user:sesame@127.0.0.1{rest}")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "protocols",
    ["", "a b", "a/b", "a,b", "a\t", "\x07", "\x7f", "é", [""], ["chat", ""], ["chat", "chat"], ["chat", "CHAT"]],
)
def test_row_08_bad_protocols_raise_at_once(protocols: str | list[str]) -> None:
    with pytest.raises(ValueError, match="protocol"):
        WebSocket("ws://127.0.0.1/", protocols)


@pytest.mark.parametrize(
    ("protocols", "offered"), [("chat", "chat"), (["super.chat", "chat"], "super.chat, chat"), (("chat",), "chat")]
)
def test_row_08_protocols_are_a_string_or_several(protocols: str | list[str], offered: str) -> None:
    with echo_server(subprotocols=["chat"]) as server, WebSocket(server.url, protocols) as ws:
        assert ws.protocol == "chat"
        assert server.requests[0].headers["Sec-WebSocket-Protocol"] == offered


def test_row_08_no_protocols_no_header() -> None:
    with echo_server() as server, WebSocket(server.url, []) as ws:
        assert ws.protocol == ""
        assert "Sec-WebSocket-Protocol" not in server.requests[0].headers


def test_row_09_returns_at_once_in_connecting() -> None:
    with peers.dead_address() as (host, port):
        ws = WebSocket(f"ws://{host}:{port}/", "chat")
        assert (ws.readyState, ws.bufferedAmount, ws.protocol, ws.extensions) == (CONNECTING, 0, "", "")
        ws.close()
        ws.wait_closed(LIMIT)


# --- Opening handshake


def answering(answer: str) -> Callable[[Peer], None]:
    """A script that answers the request with `answer`; {accept} stands for the right Sec-WebSocket-Accept."""

    def script(peer: Peer) -> None:
        token = peers.accept_token(peer.headers["sec-websocket-key"])
        peer.send(answer.replace("{accept}", token).encode())

    return script


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("SSH-2.0-OpenSSH_9.6\r\n", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404),
        (
            "HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
            "Content-Length: 0\r\n\r\n",
            200,
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
            101,
        ),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 101),
    ],
)
def test_row_10_what_is_no_handshake_fails(answer: str, status: int | None) -> None:
    with RawServer(answering(answer)) as server:
        ws = WebSocket(server.url)
        heard = Heard(ws)
        with pytest.raises(HandshakeError) as caught:
            ws.wait_open(LIMIT)
        ws.wait_closed(LIMIT)
    assert caught.value.status == status
    assert heard.types == ["error", "close"]


def test_row_10_reason_phrase_and_case_do_not_matter() -> None:
    answer = (
        "HTTP/1.1 101 Sure Why Not\r\nupgrade: WEBSOCKET\r\nCONNECTION: uPGRADE\r\n"
        "sec-websocket-accept: {accept}\r\n\r\n"
    )

    def script(peer: Peer) -> None:
        answering(answer)(peer)
        answer_close(peer)

    with RawServer(script) as server, WebSocket(server.url) as ws:
        assert ws.readyState == OPEN


def redirect(peer: Peer, location: str) -> None:
    """Answer the request with a redirect."""
    assert peer.request
    peer.send(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())


def test_row_11_redirects_are_followed(seen: queue.Queue[str]) -> None:
    def script(peer: Peer) -> None:
        seen.put(peer.path)
        redirect(peer, "/there?x=1") if peer.path == "/" else obedient(peer)

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        heard = Heard(ws)
        with ws:
            assert [seen.get(timeout=LIMIT), seen.get(timeout=LIMIT)] == ["/", "/there?x=1"]
    assert heard.types == ["open", "close"]


def test_row_11_at_most_ten_redirects(seen: queue.Queue[str]) -> None:
    def script(peer: Peer) -> None:
        seen.put(peer.path)
        redirect(peer, f"/{peer.number + 1}")

    with RawServer(script) as server, pytest.raises(HandshakeError) as caught:
        WebSocket(server.url).wait_open(LIMIT)
    assert caught.value.status == 302
    assert seen.qsize() == 11


def test_row_11_never_from_wss_to_ws(ca: Authority, echo: str) -> None:
    with (
        RawServer(lambda peer: redirect(peer, echo), ssl=ca.server()) as server,
        pytest.raises(HandshakeError, match="wss") as caught,
    ):
        WebSocket(server.url, ssl=ca.client()).wait_open(LIMIT)
    assert caught.value.status == 302


def test_row_11_credentials_stay_with_their_origin() -> None:
    headers = {"Authorization": "Bearer sesame", "Cookie": "id=sesame", "X-Other": "shared"}
    with (
        echo_server() as target,
        RawServer(lambda peer: redirect(peer, target.url)) as server,
        WebSocket(server.url, headers=headers),
    ):
        pass
    (request,) = target.requests
    assert request.headers["X-Other"] == "shared"
    assert "sesame" not in str(request.headers)


def refuse(peer: Peer) -> None:
    """Answer the request with 403."""
    assert peer.request
    peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def check_failure(url: str, callbacks: str) -> Exception:
    """Open what cannot be opened, check what is heard, and return the error."""
    ws = WebSocket(url, callbacks=callbacks)
    heard = Heard(ws)
    returned = ws.wait_closed(LIMIT)
    error, close = heard.events
    assert heard.states == [("error", CLOSED), ("close", CLOSED)]
    assert isinstance(error, ErrorEvent)
    assert isinstance(close, CloseEvent)
    assert (close.code, close.reason, close.wasClean) == (1006, "", False)
    assert returned == close
    return error.error


def test_row_12_refused_handshake_gives_error_then_close(callbacks: str) -> None:
    with RawServer(refuse) as server:
        error = check_failure(server.url, callbacks)
    assert isinstance(error, HandshakeError)
    assert error.status == 403


def test_row_12_refused_connection_gives_error_then_close(callbacks: str) -> None:
    with peers.refusing_address() as (host, port):
        error = check_failure(f"ws://{host}:{port}/", callbacks)
    assert isinstance(error, ConnectionFailed)
    assert str(port) in str(error)


def test_row_12_connection_lost_in_the_handshake_gives_error_then_close(callbacks: str) -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.reset()

    with RawServer(script) as server:
        assert isinstance(check_failure(server.url, callbacks), ConnectionFailed)


def test_row_12_onerror_is_told_what_went_wrong_and_wait_open_raises_it() -> None:
    errors: list[Exception] = []
    states: list[int] = []
    with RawServer(refuse) as server:
        ws = WebSocket(server.url)
        ws.onerror = errors.append
        ws.onclose = lambda: states.append(ws.readyState)
        with pytest.raises(HandshakeError) as caught:
            ws.wait_open(LIMIT)
        ws.wait_closed(LIMIT)
    assert errors == [caught.value]
    assert states == [CLOSED]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("chat", "other"),
        ("chat", "Chat"),
        ("chat", None),
        ("chat", ""),
        (["chat", "super"], "chat, super"),
        ([], "chat"),
    ],
)
def test_row_13_wrong_protocol_in_the_reply_fails(asked: str | list[str], given: str | None) -> None:
    def script(peer: Peer) -> None:
        peer.accept(protocol=given)
        peer.read_eof()

    with RawServer(script) as server:
        ws = WebSocket(server.url, asked)
        heard = Heard(ws)
        with pytest.raises(HandshakeError):
            ws.wait_open(LIMIT)
        ws.wait_closed(LIMIT)
    assert heard.types == ["error", "close"]
    assert ws.protocol == ""


def test_row_13_one_of_those_asked_for_is_taken() -> None:
    def script(peer: Peer) -> None:
        peer.accept(protocol="super")
        answer_close(peer)

    with RawServer(script) as server, WebSocket(server.url, ["chat", "super"]) as ws:
        assert ws.protocol == "super"


@pytest.mark.parametrize("close_in_onopen", [False, True])
def test_row_14_frames_in_the_segment_of_the_101_come_after_open(callbacks: str, close_in_onopen: bool) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("one") + frame(BINARY, b"two") + text("three"))
        answer_close(peer)

    class Closing(Hearing):
        def onopen(self) -> None:
            if close_in_onopen:
                self.close()

        def onmessage(self, message: str | bytes) -> None:
            if message == "three":
                self.close()

    with RawServer(script) as server:
        ws = Closing(server.url, callbacks=callbacks)
        event = ws.wait_closed(LIMIT)
    assert ws.heard.types == ["open", "message", "message", "message", "close"]
    assert ws.heard.messages == ["one", b"two", "three"]
    assert (event.code, event.wasClean) == (1005, True)


def test_row_14_messages_and_close_in_the_segment_of_the_101(callbacks: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("one") + close_frame(4001, "done"))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        heard = Heard(ws)
        event = ws.wait_closed(LIMIT)
    assert heard.types == ["open", "message", "close"]
    assert (event.code, event.reason, event.wasClean) == (4001, "done", True)


def test_row_15_handshakes_with_one_host_run_side_by_side() -> None:
    count = 5
    all_asked = threading.Barrier(count)

    def script(peer: Peer) -> None:
        assert peer.request
        all_asked.wait(LIMIT)
        obedient(peer)

    with RawServer(script) as server:
        sockets = [WebSocket(server.url) for _ in range(count)]
        for ws in sockets:
            assert ws.wait_open(LIMIT).readyState == OPEN
            ws.close()
        for ws in sockets:
            assert ws.wait_closed(LIMIT).wasClean


def test_row_16_deflate_is_offered_and_no_referer_sent() -> None:
    with echo_server() as server, WebSocket(server.url) as ws:
        headers = server.requests[0].headers
        assert headers["Sec-WebSocket-Extensions"].startswith("permessage-deflate")
        assert "Referer" not in headers
        assert ws.extensions.startswith("permessage-deflate")


def test_row_16_a_server_need_not_take_the_offer() -> None:
    with echo_server(compression=None) as server, WebSocket(server.url) as ws:
        assert ws.extensions == ""
        ws.send("plain")
        assert ws.recv(LIMIT) == "plain"


# --- send


def test_row_17_send_while_connecting_raises(gate: threading.Event, seen: queue.Queue[list[Frame]]) -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        wait(gate)
        peer.accept()
        seen.put(answer_close(peer))

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        with pytest.raises(InvalidStateError) as caught:
            ws.send("too early")
        assert isinstance(caught.value, ConnectionError)
        assert (ws.readyState, ws.bufferedAmount) == (CONNECTING, 0)
        gate.set()
        with ws:
            ws.send("in time")
    assert [sent.payload for sent in seen.get(timeout=LIMIT)] == [b"in time", b""]


def test_row_18_send_in_closing_and_closed_raises(gate: threading.Event, seen: queue.Queue[list[Frame]]) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(peer.read_until_close())
        wait(gate)
        peer.send(close_frame(1000))
        assert peer.read_eof() == b""

    with RawServer(script) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        ws.close(1000)
        for data in ("late", b"late"):
            with pytest.raises(ConnectionClosed):
                ws.send(data)
        assert (ws.readyState, ws.bufferedAmount) == (CLOSING, 0)
        gate.set()
        ws.wait_closed(LIMIT)
        with pytest.raises(ConnectionClosed) as caught:
            ws.send("later")
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.code == 1000
    assert [sent.opcode for sent in seen.get(timeout=LIMIT)] == [CLOSE]


def test_row_18_send_after_a_cancelled_or_failed_opening_raises() -> None:
    with peers.dead_address() as (host, port):
        ws = WebSocket(f"ws://{host}:{port}/")
        ws.close()
        with pytest.raises(ConnectionClosed):
            ws.send("closing")
        ws.wait_closed(LIMIT)
        with pytest.raises(ConnectionClosed):
            ws.send("closed")


BLOB = bytes(32 * 2**20)  # more than the operating system holds for a peer that does not read


def test_row_19_buffered_amount_grows_at_once_and_falls(gate: threading.Event) -> None:
    steps: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        wait(gate)
        assert len(peer.read_frame().payload) == len(BLOB)
        assert [len(peer.read_frame().payload) for _ in range(3)] == [2000, 3, 0]
        peer.send(text("got all"))
        answer_close(peer)

    def onopen() -> None:  # on the loop thread, so that nothing is written between two lines
        for data in (BLOB, "é" * 1000, b"abc", ""):
            ws.send(data)
            steps.append(ws.bufferedAmount)
        gate.set()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", write_limit=2 * len(BLOB))
        ws.onopen = onopen
        assert ws.recv(LIMIT) == "got all"
        assert ws.bufferedAmount == 0
        ws.close()
        ws.wait_closed(LIMIT)
    assert 0 < steps[0] <= len(BLOB)
    assert [step - steps[0] for step in steps[1:]] == [2000, 2003, 2003]


def test_row_19_what_could_not_be_sent_stays_in_the_count() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        sent.wait(LIMIT)
        peer.reset()

    sent = threading.Event()
    with RawServer(script) as server:
        ws = WebSocket(server.url, write_limit=2 * len(BLOB)).wait_open(LIMIT)
        ws.send(BLOB)
        sent.set()
        assert ws.wait_closed(LIMIT).code == 1006
    assert 0 < ws.bufferedAmount <= len(BLOB)


@pytest.mark.parametrize("message", ["\ud800", "abc\udfff", "\udc00\ud800"])
def test_row_20_lone_surrogate_raises_and_nothing_is_sent(echo: str, message: str) -> None:
    with WebSocket(echo) as ws:
        with pytest.raises(UnicodeEncodeError) as caught:
            ws.send(message)
        assert isinstance(caught.value, ValueError)
        assert ws.bufferedAmount == 0
        ws.send("\U0001f600")  # a pair of surrogates in the browser
        assert ws.recv(LIMIT) == "\U0001f600"


def test_row_21_empty_messages_are_messages(echo: str) -> None:
    with WebSocket(echo) as ws:
        ws.send("")
        ws.send(b"")
        ws.send("end")
        assert [ws.recv(LIMIT) for _ in range(3)] == ["", b"", "end"]


def test_row_21_empty_messages_on_the_wire(seen: queue.Queue[list[Frame]]) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(answer_close(peer))

    with RawServer(script) as server, WebSocket(server.url) as ws:
        ws.send("")
        ws.send(b"")
    frames = seen.get(timeout=LIMIT)
    assert [(sent.fin, sent.opcode, sent.payload) for sent in frames[:2]] == [(True, TEXT, b""), (True, BINARY, b"")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (memoryview(b"0123456789")[3:7], b"3456"),
        (memoryview(bytearray(b"0123456789"))[::3], b"0369"),
        (memoryview(array.array("H", [1, 2, 3, 4]))[1:3], array.array("H", [2, 3]).tobytes()),
        (array.array("d", [1.5, -2.0]), array.array("d", [1.5, -2.0]).tobytes()),
        (bytearray(b"changeable"), b"changeable"),
    ],
)
def test_row_22_a_view_sends_its_window_only(echo: str, data: Any, message: bytes) -> None:
    with WebSocket(echo) as ws:
        ws.send(data)
        assert ws.recv(LIMIT) == message


def test_row_22_what_is_changed_after_send_was_sent_as_it_was(gate: threading.Event) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        wait(gate)
        peer.send(frame(BINARY, peer.read_frame().payload))
        answer_close(peer)

    with RawServer(script) as server, WebSocket(server.url) as ws:
        data = bytearray(b"before")
        ws.send(data)
        data[:] = b"after!"
        gate.set()
        assert ws.recv(LIMIT) == b"before"


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 2**20])
def test_row_23_payloads_around_the_lengths_of_the_header(echo: str, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    with WebSocket(echo, compression=None) as ws:
        ws.send(payload[:size])
        ws.send("x" * size)
        assert ws.recv(LIMIT) == payload[:size]
        assert ws.recv(LIMIT) == "x" * size


@pytest.mark.parametrize("count", [50, 400])  # 400: more than the operating system holds
def test_row_23_close_arrives_after_all_at_a_slow_reader(
    gate: threading.Event, seen: queue.Queue[Any], count: int
) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        wait(gate)
        seen.put([(sent.opcode, sent.payload[:2], len(sent.payload)) for sent in answer_close(peer)])

    with RawServer(script) as server:
        ws = WebSocket(server.url, write_limit=2 * count * 65536).wait_open(LIMIT)
        for number in range(count):
            ws.send(number.to_bytes(2, "big") + bytes(65534))
        ws.close(1000, "all")
        assert ws.readyState == CLOSING
        gate.set()
        event = ws.wait_closed(LIMIT)
    expected = [(BINARY, number.to_bytes(2, "big"), 65536) for number in range(count)]
    assert seen.get(timeout=LIMIT) == [*expected, (CLOSE, b"\x03\xe8", 5)]
    assert (event.code, event.reason, event.wasClean, ws.bufferedAmount) == (1000, "all", True, 0)


# --- close

BAD_CLOSES = [
    *[(code, "") for code in (-1, 0, 999, 1001, 1002, 1004, 1005, 1006, 1011, 1015, 2999, 5000, 65536)],
    *[(code, reason) for code in (None, 1000, 3000) for reason in ("x" * 124, "é" * 62)],
]


def check_bad_closes_change_nothing(ws: WebSocket, state: int) -> None:
    for code, reason in BAD_CLOSES:
        with pytest.raises(InvalidClose) as caught:
            ws.close(code, reason)
        assert isinstance(caught.value, ValueError)
        assert ws.readyState == state


def test_row_24_bad_close_in_any_state_changes_nothing(gate: threading.Event, seen: queue.Queue[list[Frame]]) -> None:
    finish = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.request
        wait(gate)
        peer.accept()
        peer.send(frame(TEXT, peer.read_frame().payload))
        seen.put(peer.read_until_close())
        wait(finish)
        peer.send(close_frame(4001, "done"))

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        heard = Heard(ws)
        check_bad_closes_change_nothing(ws, CONNECTING)
        gate.set()
        ws.wait_open(LIMIT)
        check_bad_closes_change_nothing(ws, OPEN)
        ws.send("still open")
        ws.close(4001, "done")
        check_bad_closes_change_nothing(ws, CLOSING)
        (closing,) = seen.get(timeout=LIMIT)
        finish.set()
        ws.wait_closed(LIMIT)
        check_bad_closes_change_nothing(ws, CLOSED)
    assert closing.payload == close_frame(4001, "done")[2:]
    assert heard.types == ["open", "message", "close"]
    assert (heard.messages, heard.events[-1].wasClean) == (["still open"], True)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3000, "x" * 123), (4999, "é" * 61), (None, "only a reason")])
def test_row_24_good_codes_and_reasons_are_sent(
    seen: queue.Queue[list[Frame]], code: int | None, reason: str
) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(answer_close(peer))

    with RawServer(script) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        ws.close(code, reason)
        event = ws.wait_closed(LIMIT)
    (closing,) = seen.get(timeout=LIMIT)
    assert (close_code(closing), closing.payload[2:].decode()) == (code or 1000, reason)
    assert (event.code, event.reason, event.wasClean) == (code or 1000, reason, True)


def test_row_25_close_without_arguments_sends_an_empty_close_frame(seen: queue.Queue[list[Frame]]) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(answer_close(peer))

    with RawServer(script) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        ws.close()
        event = ws.wait_closed(LIMIT)
    (closing,) = seen.get(timeout=LIMIT)
    assert (closing.opcode, closing.payload) == (CLOSE, b"")
    assert (event.code, event.reason, event.wasClean) == (1005, "", True)


def test_row_26_closing_on_return_and_a_second_close_does_nothing(
    gate: threading.Event, seen: queue.Queue[Any]
) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(peer.read_until_close())
        wait(gate)
        peer.send(close_frame(4001, "first"))
        seen.put(peer.read_eof())

    with RawServer(script) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        heard = Heard(ws)
        ws.close(4001, "first")
        assert ws.readyState == CLOSING
        ws.close(4002, "second")
        gate.set()
        event = ws.wait_closed(LIMIT)
        ws.close(4003, "third")
        assert ws.readyState == CLOSED
        (closing,) = seen.get(timeout=LIMIT)
        assert seen.get(timeout=LIMIT) == b""
    assert close_code(closing) == 4001
    assert (event.code, event.reason) == (4001, "first")
    assert heard.types == ["open", "close"]


def test_row_26_closing_on_return_inside_a_handler(callbacks: str) -> None:
    states: list[int] = []

    def onopen() -> None:
        states.append(ws.readyState)
        ws.close()
        states.append(ws.readyState)

    with RawServer(obedient) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        ws.onopen = onopen
        ws.wait_closed(LIMIT)
    assert states == [OPEN, CLOSING]


def test_row_26_close_inside_onclose_does_nothing(callbacks: str) -> None:
    states: list[int] = []

    def onclose() -> None:
        ws.close(4002, "again")
        states.append(ws.readyState)

    with RawServer(obedient) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.onclose = onclose
        ws.close(4001)
        event = ws.wait_closed(LIMIT)
        assert ws.wait_closed(LIMIT) == event
    assert (states, event.code) == ([CLOSED], 4001)


def check_cancelled(ws: WebSocket) -> None:
    """close() while CONNECTING; nothing but close() can end this attempt."""
    heard = Heard(ws)
    ws.close()
    assert ws.readyState in (CLOSING, CLOSED)  # the loop thread may have been at it already
    event = ws.wait_closed(LIMIT)
    assert heard.states == [("error", CLOSED), ("close", CLOSED)]
    assert (event.code, event.reason, event.wasClean) == (1006, "", False)
    assert isinstance(heard.events[0].error, Cancelled)
    with pytest.raises(Cancelled):
        ws.wait_open(LIMIT)


def test_row_27_close_during_the_handshake_abandons_it(callbacks: str, seen: queue.Queue[bytes]) -> None:
    asked = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.request
        asked.set()
        seen.put(peer.read_eof())

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks, open_timeout=None)
        wait(asked)
        assert ws.readyState == CONNECTING
        check_cancelled(ws)
        assert seen.get(timeout=LIMIT) == b""


def test_row_27_close_during_the_tcp_connect_abandons_it(callbacks: str) -> None:
    with peers.dead_address() as (host, port):
        check_cancelled(WebSocket(f"ws://{host}:{port}/", callbacks=callbacks, open_timeout=None))


def test_row_27_close_right_after_the_constructor_never_opens(callbacks: str) -> None:
    with RawServer(Peer.stall) as server:  # one that answers may be faster than the next line
        check_cancelled(WebSocket(server.url, callbacks=callbacks, open_timeout=None))


def test_row_27_closing_on_return() -> None:
    states: list[int] = []
    with peers.dead_address() as (host, port), RawServer(obedient) as server:
        ws = WebSocket(f"ws://{host}:{port}/")

        def onopen() -> None:  # on the loop thread, so that nothing happens between two lines
            states.append(ws.readyState)
            ws.close()
            states.append(ws.readyState)
            other.close()

        other = WebSocket(server.url, callbacks="loop")
        other.onopen = onopen
        other.wait_closed(LIMIT)
        ws.wait_closed(LIMIT)
    assert states == [CONNECTING, CLOSING]


def test_row_28_accepted_messages_go_first_and_close_waits_for_the_server(
    gate: threading.Event, seen: queue.Queue[list[Frame]]
) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(peer.read_until_close())
        wait(gate)
        peer.send(close_frame(1000))

    with RawServer(script) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        for number in range(100):
            ws.send(str(number))
        ws.close(1000)
        *messages, closing = seen.get(timeout=LIMIT)
        with pytest.raises(WaitTimeout):
            ws.wait_closed(0)
        assert ws.readyState == CLOSING
        gate.set()
        assert ws.wait_closed(LIMIT).wasClean
    assert [message.payload for message in messages] == [str(number).encode() for number in range(100)]
    assert close_code(closing) == 1000


def test_row_28_the_server_has_until_close_timeout(callbacks: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_until_close()
        peer.read_eof()

    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.2, callbacks=callbacks).wait_open(LIMIT)
        heard = Heard(ws)
        ws.close(1000)
        event = ws.wait_closed(LIMIT / 2)
    assert (event.code, event.wasClean) == (1006, False)
    assert heard.types == ["open", "error", "close"]


@pytest.mark.parametrize(
    ("closing", "code", "reason"),
    [
        (close_frame(1000, "bye"), 1000, "bye"),
        (close_frame(1001), 1001, ""),
        (close_frame(1011, "é" * 61), 1011, "é" * 61),
        (close_frame(4999, "own"), 4999, "own"),
        (close_frame(), 1005, ""),
    ],
)
def test_row_29_close_by_the_server(
    callbacks: str, seen: queue.Queue[Frame], closing: bytes, code: int, reason: str
) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=closing)
        seen.put(peer.read_frame())
        assert peer.read_eof() == b""

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        heard = Heard(ws)
        event = ws.wait_closed(LIMIT)
    answer = seen.get(timeout=LIMIT)
    assert answer.opcode == CLOSE
    assert answer.payload[:2] == closing[2:4]
    assert heard.types == ["open", "close"]
    assert heard.events[-1] == event
    assert (event.code, event.reason, event.wasClean) == (code, reason, True)


LATE = text("late") + frame(BINARY, b"later") + text("latest")


def send_late(peer: Peer) -> None:
    """Send messages after the client's Close frame, and more after our own, which do not count."""
    peer.accept()
    peer.read_until_close()
    peer.send(LATE + close_frame(1000) + text("after the Close frame"))


def test_row_30_messages_after_close_are_delivered_to_handlers(callbacks: str) -> None:
    with RawServer(send_late) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        heard = Heard(ws)
        wait(heard.opened)
        ws.close(1000)
        assert ws.wait_closed(LIMIT).wasClean
    assert heard.states == [("open", OPEN), *[("message", CLOSING)] * 3, ("close", CLOSED)]
    assert heard.messages == ["late", b"later", "latest"]


def test_row_30_messages_after_close_are_delivered_to_recv() -> None:
    with RawServer(send_late) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        ws.close(1000)
        assert list(ws) == ["late", b"later", "latest"]
        with pytest.raises(ConnectionClosed):
            ws.recv(LIMIT)


# --- events


def test_row_31_a_handler_sees_the_state_of_its_event(callbacks: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("message") + close_frame(1000))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        ws.wait_closed(LIMIT)
        assert ws.readyState == CLOSED
        heard = Heard(ws)  # hears now what happened long ago
        ws.wait_closed(LIMIT)
    assert heard.states == [("open", OPEN), ("message", OPEN), ("close", CLOSED)]


def test_row_31_open_sees_open_although_close_has_been_called(callbacks: str) -> None:
    with RawServer(obedient) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)
        heard = Heard(ws)
        ws.wait_closed(LIMIT)
    assert heard.states == [("open", OPEN), ("close", CLOSED)]


def test_row_31_error_and_close_see_closed(callbacks: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.reset()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        heard = Heard(ws)
        ws.wait_closed(LIMIT)
    assert heard.states == [("open", OPEN), ("error", CLOSED), ("close", CLOSED)]


def send_two(peer: Peer) -> None:
    """Send two messages once the client has said that it is ready, and close."""
    peer.accept()
    peer.read_frame()
    peer.send(text("one") + text("two") + close_frame(1000))
    peer.read_until_close()


def test_row_32_listeners_run_in_order_of_registration_once_each(callbacks: str) -> None:
    calls: list[str] = []

    def first(event: MessageEvent) -> None:
        calls.append(f"first {event.data}")

    with RawServer(send_two) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.addEventListener("message", first)
        ws.onmessage = lambda message: calls.append(f"replaced {message}")
        ws.addEventListener("message", lambda event: calls.append(f"third {event.data}"))
        ws.addEventListener("message", first)
        ws.addEventListener("message", lambda event: calls.append(f"once {event.data}"), once=True)
        ws.onmessage = lambda message: calls.append(f"second {message}")  # keeps its place
        ws.send("ready")
        ws.wait_closed(LIMIT)
    assert calls == ["first one", "second one", "third one", "once one", "first two", "second two", "third two"]


def test_row_32_the_method_of_a_subclass_comes_first(callbacks: str) -> None:
    calls: list[str] = []

    class Subclass(WebSocket):
        def onmessage(self, message: str) -> None:
            calls.append(f"method {message}")

    with RawServer(send_two) as server:
        ws = Subclass(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.addEventListener("message", lambda event: calls.append(f"listener {event.data}"))
        ws.send("ready")
        ws.wait_closed(LIMIT)
    assert calls == ["method one", "listener one", "method two", "listener two"]


def test_row_32_target_and_current_target_are_the_socket(callbacks: str) -> None:
    with RawServer(send_two) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        heard = Heard(ws)
        ws.send("ready")
        ws.wait_closed(LIMIT)
    assert heard.types == ["open", "message", "message", "close"]
    assert all(event.target is ws and event.currentTarget is ws for event in heard.events)


def test_row_32_removing_a_listener_inside_another_takes_effect_at_once(callbacks: str) -> None:
    calls: list[str] = []

    def remover(event: MessageEvent) -> None:
        calls.append(f"remover {event.data}")
        ws.removeEventListener("message", removed)
        ws.onmessage = None

    def removed(event: MessageEvent) -> None:
        calls.append(f"removed {event.data}")

    with RawServer(send_two) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.addEventListener("message", remover)
        ws.addEventListener("message", removed)
        ws.onmessage = lambda message: calls.append(f"handler {message}")
        ws.removeEventListener("message", print)  # was never added, which is no error
        ws.send("ready")
        ws.wait_closed(LIMIT)
    assert calls == ["remover one", "remover two"]


def test_row_32_a_listener_added_inside_another_hears_the_next_event(callbacks: str) -> None:
    calls: list[str] = []

    def added(event: MessageEvent) -> None:
        calls.append(f"added {event.data}")

    with RawServer(send_two) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.addEventListener("message", lambda event: ws.addEventListener("message", added))
        ws.send("ready")
        ws.wait_closed(LIMIT)
    assert calls == ["added two"]


WRONG = {
    "RSV1 without an extension": (frame(TEXT, b"x", rsv=4), 1002),
    "RSV2": (frame(TEXT, b"x", rsv=2), 1002),
    "RSV3 in a ping": (frame(peers.PING, b"x", rsv=1), 1002),
    "reserved data op-code": (frame(0x3, b"x"), 1002),
    "reserved control op-code": (frame(0xB), 1002),
    "masked": (frame(TEXT, b"x", mask=b"mask"), 1002),
    "fragmented ping": (frame(peers.PING, fin=False), 1002),
    "ping of 126 bytes": (frame(peers.PING, bytes(126)), 1002),
    "continuation of nothing": (frame(peers.CONTINUATION, b"x"), 1002),
    "message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "Close frame of one byte": (frame(CLOSE, b"\x03"), 1002),
    "Close frame with 1005": (close_frame(1005), 1002),
    "bad UTF-8": (frame(TEXT, b"\xff"), 1007),
    "cut UTF-8": (frame(TEXT, b"\xc3"), 1007),
    "surrogate in UTF-8": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "bad UTF-8 in a Close frame": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "over max_size": (text("x" * 1001), 1009),
    "over max_size in fragments": (frame(TEXT, b"x" * 600, fin=False) + frame(0, b"x" * 600), 1009),
}


@pytest.mark.parametrize("name", WRONG)
def test_row_33_protocol_error(callbacks: str, seen: queue.Queue[int], name: str) -> None:
    wrong, code = WRONG[name]

    def script(peer: Peer) -> None:
        peer.accept(after=text("one") + frame(BINARY, b"two") + wrong + text("not a message any more"))
        seen.put(close_code(peer.read_frame()))
        peer.read_eof()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks, max_size=1000)
        heard = Heard(ws)
        event = ws.wait_closed(LIMIT)
        assert seen.get(timeout=LIMIT) == code
    assert heard.types == ["open", "message", "message", "error", "close"]
    assert heard.messages == ["one", b"two"]
    assert (event.code, event.reason, event.wasClean) == (1006, "", False)
    error = heard.events[3].error
    assert isinstance(error, MessageTooBig if code == 1009 else ProtocolError)
    assert error.sent_code == code


def test_row_33_control_frames_within_a_message_are_no_error() -> None:
    parts = frame(TEXT, b"\xc3", fin=False) + peers.ping(b"here?") + frame(peers.CONTINUATION, b"\xa9")

    def script(peer: Peer) -> None:
        peer.accept(after=parts)
        assert peer.read_frame()[2:4] == (peers.PONG, b"here?")
        answer_close(peer)

    with RawServer(script) as server, WebSocket(server.url) as ws:
        assert ws.recv(LIMIT) == "é"


def test_row_34_each_event_fires_once_however_much_goes_wrong(callbacks: str) -> None:
    calls: list[str] = []

    def script(peer: Peer) -> None:
        peer.accept(after=frame(0x3) + frame(0x4) + close_frame(1000))
        peer.read_until_close()
        peer.reset()

    class Counting(Hearing):
        def onopen(self) -> None:
            calls.append("onopen")

        def onerror(self, error: Exception) -> None:
            calls.append("onerror")

        def onclose(self) -> None:
            calls.append("onclose")

    with RawServer(script) as server:
        ws = Counting(server.url, callbacks=callbacks)
        ws.wait_closed(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)
    assert calls == ["onopen", "onerror", "onclose"]
    assert ws.heard.types == ["open", "error", "close"]


def test_row_34_no_event_fires_inside_a_method_call_of_a_handler(callbacks: str) -> None:
    in_onopen = False
    noted: list[tuple[str, bool]] = []

    def note(event: Any) -> None:
        noted.append((event.type, in_onopen))

    def onopen() -> None:
        nonlocal in_onopen
        in_onopen = True
        for event_type in ("message", "error", "close"):
            ws.addEventListener(event_type, note)  # for each of them an event waits
        ws.close()
        in_onopen = False

    def script(peer: Peer) -> None:
        peer.accept(after=text("message") + frame(0x3))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        ws.wait_closed(LIMIT)
        ws.onopen = onopen
        ws.wait_closed(LIMIT)
    assert noted == [("message", False), ("error", False), ("close", False)]


def test_row_34_no_event_fires_in_the_thread_that_calls_a_method(callbacks: str) -> None:
    threads: set[int] = set()

    def note(event: Any) -> None:
        threads.add(threading.get_ident())

    with RawServer(obedient) as server:
        ws = WebSocket(server.url, callbacks=callbacks).wait_open(LIMIT)
        ws.addEventListener("open", note)
        ws.close()
        ws.wait_closed(LIMIT)
        ws.addEventListener("close", note)
        ws.wait_closed(LIMIT)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("ws://127.0.0.1:{port}/path?query", "ws://127.0.0.1:{port}"),
        ("HTTP://user:sesame@LocalHost:{port}", "ws://localhost:{port}"),
    ],
)
def test_row_35_origin_of_a_message_is_that_of_the_url(url: str, origin: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("message"))
        answer_close(peer)

    class Closing(Hearing):
        def onmessage(self, message: str) -> None:
            self.close()

    with RawServer(script) as server:
        ws = Closing(url.format(port=server.port))
        ws.wait_closed(LIMIT)
    assert ws.heard.events[1].origin == origin.format(port=server.port)


def test_row_35_origin_with_tls(ca: Authority) -> None:
    origins: list[str] = []
    with echo_server(ssl=ca.server()) as server, WebSocket(server.url, ssl=ca.client()) as ws:
        ws.addEventListener("message", lambda event: (origins.append(event.origin), ws.close()))
        ws.send("message")
        ws.wait_closed(LIMIT)
    assert origins == [f"wss://127.0.0.1:{server.port}"]


def test_row_36_a_forgotten_socket_without_handlers_is_closed_with_a_warning(seen: queue.Queue[list[Frame]]) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        seen.put(answer_close(peer))

    def forget() -> list[Frame]:
        WebSocket(server.url).wait_open(LIMIT)
        garbage.collect()
        return seen.get(timeout=LIMIT)

    with RawServer(script) as server, pytest.warns(ResourceWarning, match="dropped without close"):
        (closing,) = forget()
    assert close_code(closing) == 1001


@pytest.mark.parametrize("how", ["attribute", "listener", "method"])
def test_row_36_a_socket_with_handlers_stays_alive(
    callbacks: str, gate: threading.Event, seen: queue.Queue[str], how: str
) -> None:
    class Subclass(WebSocket):
        def onmessage(self, message: str) -> None:
            seen.put(message)

    def script(peer: Peer) -> None:
        peer.accept()
        wait(gate)
        peer.send(text("still there?"))
        peer.send(close_frame(1000))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = (Subclass if how == "method" else WebSocket)(server.url, callbacks=callbacks).wait_open(LIMIT)
        if how == "attribute":
            ws.onmessage = seen.put
        elif how == "listener":
            ws.addEventListener("message", lambda event: seen.put(event.data))
        del ws
        garbage.collect()
        gate.set()
        assert seen.get(timeout=LIMIT) == "still there?"


def test_row_37_events_wait_for_the_first_handler_of_their_type(callbacks: str) -> None:
    heard: list[Any] = []

    def script(peer: Peer) -> None:
        peer.accept(after=text("one") + text("two") + frame(0x3))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        ws.wait_closed(LIMIT)
    for event_type in ("close", "message", "error", "open"):  # in whatever order the handlers come
        ws.addEventListener(event_type, heard.append)
        ws.wait_closed(LIMIT)
    assert [event.type for event in heard] == ["close", "message", "message", "error", "open"]
    assert [event.data for event in heard[1:3]] == ["one", "two"]
    second = Heard(ws)
    ws.wait_closed(LIMIT)
    assert second.types == []


def test_row_37_attributes_set_late_hear_what_has_happened(callbacks: str) -> None:
    calls: list[Any] = []

    with RawServer(refuse) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        ws.wait_closed(LIMIT)
    ws.onopen = lambda: calls.append("open")
    ws.onerror = calls.append
    ws.wait_closed(LIMIT)
    ws.onclose = calls.append
    ws.wait_closed(LIMIT)
    error, close = calls
    assert isinstance(error, HandshakeError)
    assert (close.type, close.code) == ("close", 1006)


def test_every_row_has_a_test() -> None:
    rows = {int(match[1]) for name in globals() if (match := re.match(r"test_row_(\d+)_", name))}
    assert rows == set(range(1, 38))
