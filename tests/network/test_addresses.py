"""Where a connection goes without a name or a proxy: Unix sockets, given sockets, IPv6 literals, IDNA names."""

from __future__ import annotations

import os
import pathlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import websockets.sync.server
from peers import LIMIT, Authority, Peer, RawServer, dead_address, echo, echo_server, refusing_address

from nwebsocket import ConnectionFailed, HandshakeError, InvalidArgument, OpenTimeout, ProxyError, WebSocket, connect

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this Python has no Unix sockets")


def exchange(ws: WebSocket) -> None:
    """Send and receive something of each kind, and close."""
    with ws:
        for message in ("text", b"binary", "x" * 300_000):
            ws.send(message)
            assert ws.recv(LIMIT) == message
    assert ws.wait_closed(LIMIT).wasClean


# --- Unix sockets


@pytest.fixture
def unix_echo(tmp_path: pathlib.Path) -> Iterator[str]:
    """The path of a Unix socket with an echo server."""
    path = str(tmp_path / "echo.sock")
    with websockets.sync.server.unix_serve(echo, path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield path
        server.shutdown()
        thread.join(LIMIT)


@needs_unix
@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path])
def test_a_unix_socket(unix_echo: str, kind: Any) -> None:
    ws = connect("ws://localhost/", unix=kind(unix_echo))
    assert ws.url == "ws://localhost/"
    exchange(ws)


@needs_unix
def test_tls_over_a_unix_socket_checks_the_name_in_the_url(tmp_path: pathlib.Path, ca: Authority) -> None:
    path = str(tmp_path / "echo.sock")
    with websockets.sync.server.unix_serve(echo, path, ssl=ca.server("inside.example")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        exchange(WebSocket("wss://inside.example/", unix=path, ssl=ca.client()))
        with pytest.raises(ConnectionFailed, match=r"certificate of other\.example.*inside\.example"):
            connect("wss://other.example/", unix=path, ssl=ca.client())
        server.shutdown()
        thread.join(LIMIT)


@needs_unix
def test_a_unix_socket_that_is_not_there(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "nobody.sock")
    with pytest.raises(ConnectionFailed, match="No such file") as caught:
        connect("ws://localhost/", unix=path)
    assert repr(path) in str(caught.value)


@needs_unix
def test_a_unix_socket_whose_queue_is_full_is_waited_for(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(path)
        listener.listen(0)
        filler.connect(path)
        with pytest.raises(OpenTimeout, match=r"while connecting to the Unix socket .*full\.sock"):
            connect("ws://localhost/", unix=path, open_timeout=0.1)
        ws = WebSocket("ws://localhost/", unix=path)
        listener.accept()[0].close()
        accepted, _ = listener.accept()  # ours, once there was room
        accepted.settimeout(LIMIT)
        assert accepted.recv(100).startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        accepted.close()
        with pytest.raises(ConnectionFailed):
            ws.wait_open(LIMIT)


@needs_unix
def test_redirects_stay_on_the_unix_socket(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "redirect.sock")
    locations = iter(["/there", "ws://elsewhere.example/"])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ws = WebSocket("ws://localhost/", unix=path)
        for target in (b"GET / ", b"GET /there "):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(10_000).startswith(target)
                accepted.sendall(f"HTTP/1.1 302 F\r\nLocation: {next(locations)}\r\nContent-Length: 0\r\n\r\n".encode())
        with pytest.raises(HandshakeError, match=r"elsewhere\.example/: a Unix socket leads to one server only"):
            ws.wait_open(LIMIT)


@pytest.mark.parametrize(
    ("unix", "error", "problem"),
    [(7, TypeError, "unix must be a path or None, not int"), ("", InvalidArgument, "not an empty one")],
)
@needs_unix
def test_what_is_no_path(unix: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        WebSocket("ws://localhost/", unix=unix)


# --- A socket that is connected already


def dial(url: str) -> socket.socket:
    host, port = url.removesuffix("/").rsplit("/", 1)[1].rsplit(":", 1)
    return socket.create_connection((host, int(port)), LIMIT)


def test_a_given_socket_is_taken_over(echo: str) -> None:
    with dial(echo) as sock:
        ws = connect("ws://nowhere.example/path", sock=sock)
        assert sock.fileno() == -1
        exchange(ws)


def test_tls_over_a_given_socket(ca: Authority) -> None:
    with echo_server(ssl=ca.server("inside.example")) as server, dial(server.url) as sock:
        exchange(connect("wss://inside.example/", sock=sock, ssl=ca.client()))


@needs_unix
def test_one_end_of_a_socket_pair() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ws = WebSocket("ws://pair.example/", sock=ours)
        theirs.settimeout(LIMIT)
        assert theirs.recv(10_000).startswith(b"GET / HTTP/1.1\r\nHost: pair.example\r\n")
        ws.close()
        assert theirs.recv(1) == b""
    ws.wait_closed(LIMIT)


def test_a_given_socket_is_closed_if_close_comes_first(echo: str) -> None:
    with dial(echo) as sock:
        copy = sock.dup()
        ws = WebSocket("ws://nowhere.example/", sock=sock)
        ws.close()
        assert ws.wait_closed(LIMIT).code == 1006
    with copy:
        copy.settimeout(LIMIT)
        copy.shutdown(socket.SHUT_WR)
        while copy.recv(1000):
            pass


def test_a_redirect_has_no_second_socket() -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server, dial(server.url) as sock, pytest.raises(HandshakeError, match="no second socket"):
        connect("ws://nowhere.example/", sock=sock)


def test_what_is_no_connected_socket(ca: Authority) -> None:
    with socket.socket() as unconnected, pytest.raises(InvalidArgument, match="sock must be connected; it is not"):
        WebSocket("ws://localhost/", sock=unconnected)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(InvalidArgument, match="SOCK_DGRAM"):
        WebSocket("ws://localhost/", sock=datagrams)
    with pytest.raises(TypeError, match=r"sock must be a socket\.socket or None, not str"):
        WebSocket("ws://localhost/", sock="sock")  # type: ignore[arg-type]
    with ca.client().wrap_socket(socket.socket(), server_hostname="h") as encrypted:
        assert isinstance(encrypted, ssl.SSLSocket)
        with pytest.raises(TypeError, match="not an SSLSocket: TLS is done by the WebSocket"):
            WebSocket("ws://localhost/", sock=encrypted)


@needs_unix
def test_ways_that_contradict_each_other(echo: str) -> None:
    with dial(echo) as sock:
        ways: list[dict[str, Any]] = [
            {"unix": "/x", "sock": sock},
            {"sock": sock, "proxy": "h"},
            {"unix": "/x", "proxy": "h"},
        ]
        for options in ways:
            with pytest.raises(InvalidArgument, match=f"{' and '.join(options)} contradict each other"):
                WebSocket("ws://localhost/", **options)
        assert sock.fileno() >= 0


@needs_unix
def test_the_environments_proxy_is_not_for_given_ways(unix_echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_address() as (host, port):
        monkeypatch.setenv("ws_proxy", f"http://{host}:{port}")
        exchange(connect("ws://localhost/", unix=unix_echo))
        with pytest.raises(ProxyError, match=rf"the proxy http://{host}:{port} cannot be reached"):
            connect("ws://server.example/")


# --- Literals and names


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_literal_ipv6_address(scheme: str, ca: Authority) -> None:
    tls = scheme == "wss"
    with echo_server(host="::1", ssl=ca.server("::1") if tls else None) as server:
        assert server.url.startswith(f"{scheme}://[::1]:")
        exchange(connect(server.url, ssl=ca.client() if tls else None))
        assert server.requests[0].headers["Host"] == f"[::1]:{server.port}"


def test_an_idna_name_is_checked_against_the_certificate(ca: Authority) -> None:
    with echo_server(ssl=ca.server("bücher.example")) as server, dial(server.url) as sock:
        exchange(connect("wss://BÜCHER.example/", sock=sock, ssl=ca.client()))
        assert server.requests[0].headers["Host"] == "xn--bcher-kva.example"
    with (
        echo_server(ssl=ca.server("bücher.example")) as server,
        dial(server.url) as sock,
        pytest.raises(ConnectionFailed, match=r"certificate of xn--bchr-\S+ is refused"),
    ):
        connect("wss://büchér.example/", sock=sock, ssl=ca.client())


# --- What an OpenTimeout was waiting for


def test_open_timeout_says_what_it_was_waiting_for(ca: Authority) -> None:
    with dead_address() as (host, port), pytest.raises(OpenTimeout, match=f"while connecting to {host} port {port}$"):
        connect(f"ws://{host}:{port}/", open_timeout=0.05)
    with RawServer(Peer.stall) as server:
        for url, stage in (
            (server.url, "waiting for the server's answer to the opening handshake"),
            (server.url.replace("ws:", "wss:"), f"waiting for the TLS handshake with 127.0.0.1 port {server.port}"),
        ):
            with pytest.raises(OpenTimeout) as caught:
                connect(f"{url}?token=s3s4me", open_timeout=0.05)
            assert str(caught.value) == f"{url}?...: open_timeout=0.05 s has passed while {stage}"
