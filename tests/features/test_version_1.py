"""What nwebsocket 1.0.0 documented still works; what it got wrong is right.

The two examples are those of its README, word for word: nothing but the URL is changed when they are run.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import socket
import subprocess
import sys
import threading

import peers
import pytest

import nwebsocket

EXAMPLE_URL = "wss://ws.postman-echo.com/raw"

RAW_API = '''\
# example_minimal.py
import time

from nwebsocket import WebSocket

wscn = WebSocket("wss://ws.postman-echo.com/raw")

wscn.onmessage = lambda m: print(m)
wscn.onopen = lambda: print("Opened connection")
wscn.onclose = lambda: print("Closed connection")
wscn.onerror = lambda e: print("Connection error", e)

while(not wscn.readyState):
    time.sleep(1e-4)

wscn.send('text')
time.sleep(1.)

wscn.close()
'''

CLASS_PROTOCOL = '''\
# example_class.py
import time

from nwebsocket import WebSocket


class WSProtocolLogic(WebSocket):
    def __init__(self, url):
        super().__init__(url)

        self.messages = []

        # wait for connection, close or error
        while(not self.readyState):
            time.sleep(1e-4)

    def onopen(self):
        print("Opened connection")

    def onclose(self):
        print("Closed connection")

    def onerror(self, e):
        print("Connection error", e)

    def onmessage(self, m):
        self.messages.append(m)


wscn = WSProtocolLogic("wss://ws.postman-echo.com/raw")

wscn.send('text')
time.sleep(1.)

print(wscn.messages)

wscn.close()
'''


# --- Its examples


@pytest.mark.parametrize(
    ("example", "printed"),
    [
        pytest.param(RAW_API, ["Opened connection", "text", "Closed connection"], id="raw_api"),
        pytest.param(CLASS_PROTOCOL, ["Opened connection", "['text']", "Closed connection"], id="class_protocol"),
    ],
)
def test_documented_example(echo, example, printed):
    assert run(example.replace(EXAMPLE_URL, echo)) == (0, printed, "")


@pytest.mark.parametrize("example", [RAW_API, CLASS_PROTOCOL], ids=["raw_api", "class_protocol"])
def test_documented_example_with_nobody_there_hears_the_error_and_the_close(example):
    with peers.refusing_address() as (host, port):
        code, printed, errors = run(example.replace(EXAMPLE_URL, f"ws://{host}:{port}/"))
    assert [line.split(" ")[:2] for line in printed] == [["Connection", "error"], ["Closed", "connection"]]
    assert code == 1
    assert "nwebsocket.exceptions.ConnectionClosed" in errors.splitlines()[-1], "send() to a closed connection"


def test_send_before_the_connection_is_open_raises_a_connection_error():
    with peers.RawServer(peers.Peer.stall) as server:
        ws = nwebsocket.WebSocket(server.url)
        with pytest.raises(ConnectionError):
            ws.send("too early")
        ws.close()
        ws.wait_closed(5)


def run(script: str) -> tuple[int, list[str], str]:
    """Run `script` as a program of its own: exit code, lines printed, standard error."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


# --- What it got wrong


def test_the_query_string_is_not_dropped():
    with peers.echo_server() as server, nwebsocket.connect(f"{server.url}chat?room=1&name=a%20b"):
        assert [request.path for request in server.requests] == ["/chat?room=1&name=a%20b"]


def test_tls_is_chosen_by_the_scheme_wss_speaks_tls_on_any_port(ca):
    with (
        peers.echo_server(ssl=ca.server()) as server,
        nwebsocket.connect(f"wss://127.0.0.1:{server.port}/", ssl=ca.client()) as ws,
    ):
        ws.send("in secret")
        assert ws.recv(timeout=5) == "in secret"


def test_tls_is_chosen_by_the_scheme_wss_never_goes_out_in_plain_text():
    heard: list[bytes] = []

    def listen(peer: peers.Peer) -> None:
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # no TLS: the client gives up
        heard.append(peer.read_eof())

    with peers.RawServer(listen) as server, pytest.raises(nwebsocket.TLSError):
        nwebsocket.connect(f"wss://127.0.0.1:{server.port}/?token=secret")
    assert [data[:2] for data in heard] == [b"\x16\x03"], "a TLS handshake record (RFC 8446 section 5.1)"
    assert b"secret" not in heard[0]


def test_tls_is_chosen_by_the_scheme_ws_is_plain_text_on_port_443():
    with listener(443) as listening, contextlib.closing(nwebsocket.WebSocket("ws://127.0.0.1:443/")) as ws:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(5)
            assert connection.recv(5, socket.MSG_WAITALL) == b"GET /"
        assert closed(ws).code == 1006


def listener(port: int) -> socket.socket:
    """Listen on `port` of 127.0.0.1; the test is skipped where that needs a privilege, or the port is taken."""
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        pytest.skip(f"cannot listen on port {port}: {error}")
    listening.settimeout(5)
    return listening


def closed(ws: nwebsocket.WebSocket) -> nwebsocket.CloseEvent:
    """Wait for the end of `ws`; its failure is what the test is about, and is heard."""
    ws.onerror = lambda error: None
    return ws.wait_closed(5)


def test_certificates_are_verified(ca):
    with peers.echo_server(ssl=ca.server()) as server, pytest.raises(nwebsocket.TLSError):
        nwebsocket.connect(f"wss://127.0.0.1:{server.port}/")  # the authority is not among the system's


def test_certificates_are_verified_against_the_host_name(ca):
    with peers.echo_server(ssl=ca.server("other.example")) as server, pytest.raises(nwebsocket.TLSError):
        nwebsocket.connect(f"wss://127.0.0.1:{server.port}/", ssl=ca.client())


def test_an_exception_in_onmessage_is_logged_and_the_connection_lives(echo, log):
    heard: list[str] = []
    enough = threading.Event()

    class Clumsy(nwebsocket.WebSocket):
        def onmessage(self, message):
            if message == "bad":
                raise ValueError("cannot digest this")
            heard.append(message)
            enough.set()

    with Clumsy(echo) as ws:
        ws.send("bad")
        ws.send("good")
        assert enough.wait(5)
        assert ws.readyState == ws.OPEN
    assert heard == ["good"]
    assert [str(record.exc_info[1]) for record in log.errors()] == ["cannot digest this"]


@pytest.mark.parametrize("handler", ["onopen", "onmessage", "onclose"])
def test_close_in_a_callback_does_not_hang(handler):
    returned = threading.Event()

    def close_here(*_: object) -> None:
        ws.close()
        returned.set()

    with peers.echo_server(handler=lambda connection: connection.send("hello")) as server:
        ws = nwebsocket.WebSocket(server.url)
        setattr(ws, handler, close_here)
        assert returned.wait(5)
        assert ws.wait_closed(5).wasClean


def test_a_401_does_not_leave_it_connecting_for_ever():
    def refuse(peer: peers.Peer) -> None:
        assert peer.request
        peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nwho's he?")
        peer.read_eof()

    errors: list[Exception] = []
    with peers.RawServer(refuse) as server:
        ws = nwebsocket.WebSocket(server.url)
        ws.onerror = errors.append
        with pytest.raises(nwebsocket.HandshakeError) as raised:
            ws.wait_open(5)
        assert ws.wait_closed(5).code == 1006
    assert ws.readyState == ws.CLOSED
    assert (raised.value.status, raised.value.body) == (401, b"who's he?")
    assert errors == [raised.value]


def test_no_threads_leak_when_the_server_closes():
    messages: list[str] = []
    sockets = []
    with peers.echo_server(handler=lambda connection: connection.send("hello")) as server:
        for _ in range(10):
            sockets.append(ws := nwebsocket.WebSocket(server.url))
            ws.onmessage = messages.append
            ws.wait_closed(5)
    assert messages == ["hello"] * 10
    assert [thread.name for thread in threads_that_stay()] == ["nwebsocket-loop"], "which all connections share"


def threads_that_stay() -> list[threading.Thread]:
    """Return the library's threads but for those that are on their way out."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("nwebsocket")]
    for thread in threads:
        if thread.name == "nwebsocket-callbacks":
            thread.join(5)
    return [thread for thread in threads if thread.is_alive()]


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python knows no IPv6")
def test_a_url_with_an_ipv6_address_is_understood():
    try:
        server = peers.echo_server(host="::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with server, nwebsocket.connect(f"ws://[::1]:{server.port}/") as ws:
        ws.send("hello")
        assert ws.recv(timeout=5) == "hello"
        assert server.requests[0].headers["Host"] == f"[::1]:{server.port}"


def test_a_url_with_user_and_password_is_understood():
    with peers.echo_server() as server, nwebsocket.connect(f"ws://user:p%40w@127.0.0.1:{server.port}/a"):
        (request,) = server.requests
        assert request.path == "/a"
        assert request.headers["Host"] == f"127.0.0.1:{server.port}"
        assert request.headers["Authorization"] == f"Basic {base64.b64encode(b'user:p@w').decode()}"


# --- And it says nothing in the log where nothing is wrong


def test_an_ordinary_life_logs_nothing(echo, caplog):
    with caplog.at_level(logging.INFO, "nwebsocket"), nwebsocket.connect(echo) as ws:
        ws.send("hello")
        assert ws.recv(timeout=5) == "hello"
    assert caplog.records == []
