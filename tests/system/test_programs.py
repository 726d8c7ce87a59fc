"""The client against servers that others have written: Node's ws, aiohttp, uvicorn, websockets, and nginx with TLS.

The first four do the same at the same paths, nginx passes on to the fourth: see `servers/aiohttp_server.py`.
"""

from __future__ import annotations

import asyncio
import datetime
import queue
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import peers
import programs
import pytest
from peers import LIMIT, Authority

from nwebsocket import ConnectionClosed, ConnectionLost, HandshakeError, TLSError, WebSocket, connect

BURST = 1_000
TLS_NAMES = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}
versions = pytest.mark.parametrize("version", TLS_NAMES, ids=TLS_NAMES.values())


class Site(NamedTuple):
    """Where a server is, and the context with which it can be reached."""

    origin: str
    ssl: ssl.SSLContext | None = None

    def connect(self, path: str = "/", *args: Any, **options: Any) -> WebSocket:
        return connect(self.origin + path, *args, **{"ssl": self.ssl, **options})


def port_of(site: Site) -> int:
    return int(site.origin.rpartition(":")[2])


# --- The same server twice more, in this process


def uvicorn_app() -> Callable[..., Any]:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/refused":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        if scope["path"] == "/closes":
            await send({"type": "websocket.send", "text": await heard.get()})
        while (event := await receive())["type"] == "websocket.receive":
            if scope["path"] == "/close":
                await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
            else:
                await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})
        if scope["path"] == "/" and event.get("reason"):
            heard.put_nowait(f"{event['code']} {event['reason']}")

    return app


def websockets_handler() -> Callable[[peers.Connection], None]:
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def echo(connection: peers.Connection) -> None:
        try:
            peers.echo(connection)
        finally:
            if connection.close_reason:
                heard.put(f"{connection.close_code} {connection.close_reason}")

    def close(connection: peers.Connection) -> None:
        connection.recv()
        connection.close(4001, "enough")

    def closes(connection: peers.Connection) -> None:
        connection.send(heard.get(timeout=LIMIT))

    def fragments(connection: peers.Connection) -> None:
        pongs = []

        def pieces() -> Iterator[str]:
            for number in range(3):
                pongs.extend([connection.ping(str(number))] if number else [])
                yield "fragment"

        connection.send(pieces())
        assert all(pong.wait(LIMIT) for pong in pongs)
        connection.send("pong 2")

    paths = {"/": echo, "/close": close, "/closes": closes, "/fragments": fragments}

    def handle(connection: peers.Connection) -> None:
        assert connection.request is not None
        paths[connection.request.path](connection)

    return handle


def first_subprotocol(connection: peers.Connection, offered: Any) -> Any:
    return next(iter(offered), None)


# --- nginx


class Nginx(NamedTuple):
    """The ports of the one nginx for all tests, by what is special about them; see `nginx`."""

    plain: int
    tls12: int
    tls13: int
    other_name: int
    expired: int
    client_certificate: int
    raw_client_certificate: int


PASS_ON = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"


def locations(passwords: Path, target_port: int) -> str:
    target = f"http://127.0.0.1:{target_port}"
    statuses = {
        "401": f"auth_basic realm; auth_basic_user_file {passwords}; {PASS_ON} proxy_pass {target}/;",
        "403": "deny all;",
        "404": "root /nowhere;",
        "503": "return 503;",
    }
    blocks = {f"= /status/{status}": does for status, does in statuses.items()}
    blocks |= {f"= /redirect/{status}": f"return {status} $arg_to;" for status in (301, 302, 303, 307, 308)}
    blocks |= {"= /circle": "return 302 /circle;", "/further": "return 302 $uri/further;"}
    blocks["/"] = f"{PASS_ON} proxy_pass {target};"
    return "\n".join(f"location {place} {{ {does} }}" for place, does in blocks.items())


def tls_directives(ca: Authority, directory: Path, name: str, *, expired: bool = False) -> str:
    day = datetime.timedelta(days=1)
    not_after = datetime.datetime.now(datetime.timezone.utc) + (-day if expired else day)
    certificate = ca.root.issue_cert(name, not_before=not_after - 2 * day, not_after=not_after)
    path = directory / f"{name}-{not_after:%F}.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    return f"ssl_certificate {path}; ssl_certificate_key {path};"


def verify_directives(ca: Authority, directory: Path) -> str:
    path = directory / "ca.pem"
    ca.root.cert_pem.write_to_path(path)
    return f"ssl_verify_client on; ssl_client_certificate {path};"


@pytest.fixture(scope="module")
def nginx(ca: Authority, websockets: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    directory = tmp_path_factory.mktemp("nginx")
    (directory / "passwords").write_text("user:{PLAIN}secret\n")
    places = locations(directory / "passwords", port_of(websockets))
    good, verify = tls_directives(ca, directory, "127.0.0.1"), verify_directives(ca, directory)
    directives = {
        "plain": "",
        "tls12": f"{good} ssl_protocols TLSv1.2;",
        "tls13": f"{good} ssl_protocols TLSv1.3;",
        "other_name": tls_directives(ca, directory, "other.example"),
        "expired": tls_directives(ca, directory, "127.0.0.1", expired=True),
        "client_certificate": f"{good} {verify} ssl_protocols TLSv1.2 TLSv1.3;",
    }
    headers = "add_header X-TLS $ssl_protocol always; add_header X-Client $ssl_client_verify always;"
    with programs.free_ports(len(Nginx._fields)) as ports:
        listen = Nginx(*ports)
        http = [
            f"server {{ listen 127.0.0.1:{getattr(listen, name)}{' ssl' if does else ''}; {does} {headers} {places} }}"
            for name, does in directives.items()
        ]
        raw = f"listen 127.0.0.1:{listen.raw_client_certificate} ssl; {directives['client_certificate']}"
        stream = f"server {{ {raw} proxy_pass 127.0.0.1:{port_of(websockets)}; }}"
        with programs.nginx(ports, http="\n".join(http), stream=stream):
            yield listen


# --- The servers, one of each for all tests


@pytest.fixture(scope="module")
def node_ws() -> Iterator[Site]:
    with programs.node_ws() as program:
        yield Site(f"ws://127.0.0.1:{program.port}")


@pytest.fixture(scope="module")
def aiohttp() -> Iterator[Site]:
    with programs.aiohttp_server() as program:
        yield Site(f"ws://127.0.0.1:{program.port}")


@pytest.fixture(scope="module")
def uvicorn() -> Iterator[Site]:
    with peers.uvicorn_server(uvicorn_app()) as server:
        yield Site(server.url[:-1])


@pytest.fixture(scope="module")
def websockets() -> Iterator[Site]:
    with peers.echo_server(handler=websockets_handler(), select_subprotocol=first_subprotocol) as server:
        yield Site(server.url[:-1])


@pytest.fixture(scope="module")
def nginx_tls(nginx: Nginx, ca: Authority) -> Site:
    return Site(f"wss://127.0.0.1:{nginx.tls13}", ca.client())


@pytest.fixture(scope="module")
def nginx_plain(nginx: Nginx) -> Site:
    return Site(f"ws://127.0.0.1:{nginx.plain}")


# Of the module's scope, too: what they ask for must be there before a test's own fixtures look for what is new.


@pytest.fixture(scope="module", params=["node_ws", "aiohttp", "uvicorn", "websockets", "nginx_tls"])
def site(request: pytest.FixtureRequest) -> Site:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["node_ws", "websockets"])
def fragmenting(request: pytest.FixtureRequest) -> Site:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["aiohttp", "nginx_plain"])
def web(request: pytest.FixtureRequest) -> Site:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


Compression = Literal["deflate"] | None
compressions = pytest.mark.parametrize("compression", ["deflate", None])


# --- The programs themselves

PROGRAM = "import socket, sys; print('its output', flush=True)\n"
LISTEN = "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
PAUSE = "import signal; signal.pause()"


def program(tmp_path: Path, port: int, code: str) -> programs.Program:
    return programs.Program([sys.executable, "-c", PROGRAM + code, str(port)], [port], tmp_path)


def test_a_program_that_ends_at_once(tmp_path: Path) -> None:
    with (
        programs.free_ports() as ports,
        pytest.raises(RuntimeError, match=r"ended at once, status 3: (?s:.*)its output"),
        program(tmp_path, ports[0], "sys.exit(3)"),
    ):
        pytest.fail("it was taken to run")


def test_a_program_that_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with programs.free_ports() as ports:
        silent = program(tmp_path, ports[0], PAUSE)
        monkeypatch.setattr(programs, "LIMIT", 0.5)
        with pytest.raises(TimeoutError, match="does not listen"), silent:
            pytest.fail("it was taken to listen")
    assert silent.wait() == -signal.SIGTERM


def test_a_program_that_ends_by_itself(tmp_path: Path) -> None:
    with (
        programs.free_ports() as ports,
        pytest.raises(RuntimeError, match=r"ended by itself, status 4: (?s:.*)its output"),
        program(tmp_path, ports[0], f"{LISTEN}listener.accept()\nsys.exit(4)") as running,
    ):
        running.wait()


# --- Conversations


@pytest.mark.slow
@compressions
def test_messages_come_back_as_they_were(site: Site, compression: Compression) -> None:
    messages: list[str | bytes] = ["häß", "", b"\0\xff", b"", "ä" * 2**19, bytes(range(256)) * 2**12]
    with site.connect(compression=compression) as ws:
        assert ws.extensions.startswith("permessage-deflate") == (compression is not None)
        for message in messages:
            ws.send(message)
        assert [ws.recv(LIMIT) for _ in messages] == messages


@pytest.mark.slow
@compressions
def test_a_burst_comes_back_in_order(site: Site, compression: Compression) -> None:
    messages: list[str | bytes] = [str(number) if number % 3 else str(number).encode() for number in range(BURST)]
    with site.connect(compression=compression) as ws:
        for message in messages:
            ws.send(message)
        assert [ws.recv(LIMIT) for _ in messages] == messages


@compressions
def test_fragments_sent_are_one_message(site: Site, compression: Compression) -> None:
    with site.connect(compression=compression) as ws:
        ws.send(["a", "", "ä" * 70_000])
        ws.send([b"\0", b"\xff" * 70_000])
        assert ws.recv(LIMIT) == "a" + "ä" * 70_000
        assert ws.recv(LIMIT) == b"\0" + b"\xff" * 70_000


@compressions
def test_fragments_received_with_pings_between(fragmenting: Site, compression: Compression) -> None:
    with fragmenting.connect("/fragments", compression=compression) as ws:
        assert ws.recv(LIMIT) == "fragment" * 3
        while ws.recv(LIMIT) != "pong 2":  # a pong may answer several pings (RFC 6455 section 5.5.3)
            pass


@pytest.mark.parametrize(("offered", "chosen"), [((), ""), (["chat", "other"], "chat")])
def test_subprotocol(site: Site, offered: list[str], chosen: str) -> None:
    with site.connect("/", offered) as ws:
        assert ws.protocol == chosen


def test_response(site: Site) -> None:
    with site.connect() as ws:
        assert ws.response is not None
        assert ws.response.status == 101
        assert str(ws.response.get("upgrade")).lower() == "websocket"
        assert len(ws.response.get_all("Sec-WebSocket-Accept")) == 1


def test_ping_and_latency(site: Site) -> None:
    with site.connect() as ws:
        assert ws.latency is None
        seconds = ws.ping(LIMIT)
        assert 0 < seconds < LIMIT
        assert ws.latency == seconds


def test_the_server_closes(site: Site) -> None:
    with site.connect("/close") as ws:
        ws.send("x")
        event = ws.wait_closed(LIMIT)
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(LIMIT)
    assert (event.code, event.reason, event.wasClean) == (4001, "enough", True)
    assert (caught.value.code, caught.value.reason, caught.value.closed_first) == (4001, "enough", "server")


def test_the_client_closes(site: Site) -> None:
    with site.connect() as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
        ws.close(4002, "grüezi")
        assert ws.wait_closed(LIMIT).wasClean
        with pytest.raises(ConnectionClosed) as caught:
            ws.send("y")
        assert caught.value.closed_first == "client"
    with site.connect("/closes") as ws:
        assert ws.recv(LIMIT) == "4002 grüezi"


def test_the_server_is_killed() -> None:
    with programs.node_ws() as program, connect(f"ws://127.0.0.1:{program.port}/") as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
        program.kill()
        assert ws.wait_closed(LIMIT).code == 1006
        with pytest.raises(ConnectionLost):
            ws.recv(LIMIT)


# --- Refusals and redirects


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_refusals(web: Site, status: int) -> None:
    with pytest.raises(HandshakeError, match=f"HTTP {status} ") as caught:
        web.connect(f"/status/{status}")
    headers = {name.lower(): value for name, value in caught.value.headers}
    assert caught.value.status == status
    if "nginx" in headers["server"]:
        assert f"<h1>{status} ".encode() in caught.value.body
        assert headers.get("www-authenticate") == ('Basic realm="realm"' if status == 401 else None)
    else:
        assert caught.value.body == b"refused with %d" % status
        assert headers["x-why"] == "test"


def test_a_refusal_of_uvicorn(uvicorn: Site) -> None:
    with pytest.raises(HandshakeError, match="HTTP 403") as caught:
        uvicorn.connect("/refused")
    assert caught.value.status == 403


def test_basic_authentication_opens_what_401_has_closed(nginx_plain: Site) -> None:
    with connect(f"{nginx_plain.origin.replace('ws://', 'ws://user:secret@')}/status/401") as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


@pytest.mark.parametrize(
    ("status", "target"), [(301, "path"), (302, "ws"), (303, "http"), (307, "ws"), (308, "http")]
)
def test_redirects_are_followed(web: Site, websockets: Site, status: int, target: str) -> None:
    to = {"path": "/", "ws": f"{websockets.origin}/", "http": f"{websockets.origin.replace('ws:', 'http:')}/"}[target]
    with web.connect(f"/redirect/{status}?to={to}") as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
        assert ws.response is not None
        assert ws.response.status == 101


def test_redirect_from_ws_to_wss(nginx_plain: Site, nginx_tls: Site) -> None:
    with connect(f"{nginx_plain.origin}/redirect/301?to={nginx_tls.origin}/", ssl=nginx_tls.ssl) as ws:
        assert ws.response is not None
        assert ws.response.get("X-TLS") == "TLSv1.3"


def test_redirect_from_wss_to_ws_is_refused(nginx_plain: Site, nginx_tls: Site) -> None:
    with pytest.raises(HandshakeError, match="not encrypted") as caught:
        nginx_tls.connect(f"/redirect/302?to={nginx_plain.origin}/")
    assert caught.value.status == 302


def test_redirects_in_a_circle_end(nginx_plain: Site) -> None:
    with pytest.raises(HandshakeError, match=r"/circle: the redirects go in a circle, back to .*/circle") as caught:
        nginx_plain.connect("/circle")
    assert caught.value.status == 302


def test_redirects_without_end_do(nginx_plain: Site) -> None:
    with pytest.raises(HandshakeError, match="more than 10 redirects") as caught:
        nginx_plain.connect("/further")
    assert caught.value.status == 302


# --- TLS


@pytest.fixture
def trusting(ca: Authority) -> ssl.SSLContext:
    return ca.client()


def wss(port: int, context: ssl.SSLContext | None) -> WebSocket:
    return connect(f"wss://127.0.0.1:{port}/", ssl=context)


def refusal_of(port: int, context: ssl.SSLContext | None) -> str:
    with pytest.raises(TLSError) as caught:
        wss(port, context)
    assert "CERT_NONE" not in str(caught.value)
    assert "check_hostname" not in str(caught.value)
    return str(caught.value)


@versions
def test_tls_versions(nginx: Nginx, trusting: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    port = nginx.tls12 if version is ssl.TLSVersion.TLSv1_2 else nginx.tls13
    with wss(port, trusting) as ws:
        assert ws.response is not None
        assert ws.response.get("X-TLS") == TLS_NAMES[version]


def test_no_tls_version_in_common(nginx: Nginx, trusting: ssl.SSLContext) -> None:
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "no TLS version in common" in refusal_of(nginx.tls13, trusting)


def test_unknown_authority(nginx: Nginx) -> None:
    assert "cafile='ca.pem'" in refusal_of(nginx.tls13, None)


def test_wrong_name(nginx: Nginx, trusting: ssl.SSLContext) -> None:
    message = refusal_of(nginx.other_name, trusting)
    assert "127.0.0.1" in message
    assert "other.example" in message


def test_expired(nginx: Nginx, trusting: ssl.SSLContext) -> None:
    assert "must be renewed" in refusal_of(nginx.expired, trusting)


def test_tls_where_there_is_none(nginx: Nginx, trusting: ssl.SSLContext) -> None:
    assert "does not speak TLS" in refusal_of(nginx.plain, trusting)


def test_no_tls_where_there_is(nginx: Nginx) -> None:
    with pytest.raises(HandshakeError, match="HTTP 400 ") as caught:
        connect(f"ws://127.0.0.1:{nginx.tls13}/")
    assert b"plain HTTP request was sent to HTTPS port" in caught.value.body


@pytest.mark.parametrize("kind", ["client_certificate", "raw_client_certificate"])
@versions
def test_a_client_certificate_is_given(
    nginx: Nginx, ca: Authority, trusting: ssl.SSLContext, kind: str, version: ssl.TLSVersion
) -> None:
    trusting.maximum_version = version
    ca.root.issue_cert("client.example").configure_cert(trusting)
    with wss(getattr(nginx, kind), trusting) as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
        assert ws.response is not None
        assert ws.response.get("X-Client") == ("SUCCESS" if kind == "client_certificate" else None)


@versions
def test_a_missing_client_certificate_is_refused_in_http(
    nginx: Nginx, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    trusting.maximum_version = version
    with pytest.raises(HandshakeError, match="HTTP 400 ") as caught:
        wss(nginx.client_certificate, trusting)
    assert b"No required SSL certificate was sent" in caught.value.body


# TLS 1.3 has an alert for it, which comes after the client's side of the handshake; TLS 1.2 has none of its own.
@pytest.mark.parametrize(
    ("version", "message"),
    [(ssl.TLSVersion.TLSv1_2, "handshake failure"), (ssl.TLSVersion.TLSv1_3, "client certificate")],
    ids=TLS_NAMES.values(),
)
def test_a_missing_client_certificate_is_refused_with_an_alert(
    ca: Authority, trusting: ssl.SSLContext, version: ssl.TLSVersion, message: str
) -> None:
    context = ca.server()
    context.verify_mode = ssl.CERT_REQUIRED
    ca.root.configure_trust(context)
    trusting.maximum_version = version
    with peers.echo_server(ssl=context) as server:
        assert message in refusal_of(server.port, trusting)


@versions
def test_a_missing_client_certificate_ends_the_connection_without_a_word(
    nginx: Nginx, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    trusting.maximum_version = version
    with pytest.raises(HandshakeError, match="closed the connection without answering"):
        wss(nginx.raw_client_certificate, trusting)


def test_tls_ends_without_close_notify(ca: Authority, websockets: Site, tmp_path: Path) -> None:
    with programs.free_ports() as ports:
        server = f"listen 127.0.0.1:{ports[0]} ssl; {tls_directives(ca, tmp_path, '127.0.0.1')}"
        stream = f"server {{ {server} proxy_pass 127.0.0.1:{port_of(websockets)}; }}"
        with programs.nginx(ports, stream=stream) as program, wss(ports[0], ca.client()) as ws:
            ws.send("x")
            assert ws.recv(LIMIT) == "x"
            program.kill()
            assert ws.wait_closed(LIMIT).code == 1006
            with pytest.raises(ConnectionLost):
                ws.recv(LIMIT)
