"""Through proxies: real ones, and ones that lie, stall or leave.

Every connection here is opened with credentials for the server, and nearly all with some for the proxy: none of them
may be in an exception, a repr or the log, which is at DEBUG level for all tests of this file (see `told`).
"""

from __future__ import annotations

import base64
import contextlib
import logging
import random
import socket
import ssl
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
import programs
import pytest
from peers import LIMIT, Authority, Peer, RawServer

from nwebsocket import (
    ConnectionFailed,
    ConnectionLost,
    HandshakeError,
    InvalidArgument,
    OpenTimeout,
    ProxyError,
    TLSError,
    WebSocket,
    connect,
)
from nwebsocket._network import proxies

BURST = 1_000
USER, PASSWORD = "proxy-user-7", "proxy-secret-9"
URL_USER, URL_PASSWORD = "url-user-3", "url-secret-5"
CREDENTIALS = f"{USER}:{PASSWORD}@"
WRONG = f"{USER}:{PASSWORD}wrong@"
WAYS = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"]
VARIABLES = ("ws_proxy", "wss_proxy", "http_proxy", "https_proxy", "all_proxy", "no_proxy")


# --- Nothing is told


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


SECRETS = (USER, PASSWORD, URL_USER, URL_PASSWORD, basic(USER, PASSWORD), basic(URL_USER, URL_PASSWORD))


def assert_no_secrets(*things: object) -> None:
    """No credentials in the texts of all things, nor in those of whatever has led to an exception."""
    for text in map(everything_about, things):
        for secret in SECRETS:
            assert secret not in text


def everything_about(thing: object) -> str:
    if not isinstance(thing, BaseException):
        return f"{thing}\n{thing!r}"
    led_to_it = [error for error in (thing.__cause__, thing.__context__) if error is not None]
    formatted = "".join(traceback.format_exception_only(type(thing), thing))
    return "\n".join([formatted, str(thing), repr(thing), repr(vars(thing)), *map(everything_about, led_to_it)])


class Told(logging.Handler):
    """All that is logged, by whomever."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{self.format(record)} {record.args!r}")


@pytest.fixture(autouse=True)
def told() -> Iterator[Told]:
    """The log of all, at DEBUG level; it holds no secrets."""
    handler, root, ours = Told(), logging.getLogger(), logging.getLogger("nwebsocket")
    levels = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    ours.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    assert_no_secrets(*handler.texts)


def with_credentials(url: str, credentials: str = f"{URL_USER}:{URL_PASSWORD}@") -> str:
    return url.replace("://", f"://{credentials}")


def failure(url: str, proxy: Any = True, **options: Any) -> ConnectionFailed:
    """Fail to connect to the URL; return the error, which says nothing that it should not."""
    ws = WebSocket(with_credentials(url), proxy=proxy, **options)
    with pytest.raises(ConnectionFailed) as caught:
        ws.wait_open(LIMIT)
    assert_no_secrets(ws, caught.value)
    return caught.value


def proxy_failure(url: str, proxy: str, *, status: int | None = None, **options: Any) -> str:
    """Fail because of the proxy; return the message, which names it."""
    error = failure(url, proxy, **options)
    assert isinstance(error, ProxyError)
    assert error.status == status
    assert "proxy" in str(error)
    assert proxy.rpartition("@")[2].rpartition("/")[2] in str(error)
    return str(error)


# --- The servers behind

# A proxy may try only the first address of a name: a name is of use if that is where the servers listen.
_FIRST = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)[0][4][0]
NAME = "localhost" if _FIRST == "127.0.0.1" else "127.0.0.1"


def handle(connection: peers.Connection) -> None:
    assert connection.request is not None
    assert connection.request.headers["Authorization"] == f"Basic {basic(URL_USER, URL_PASSWORD)}"
    assert "Proxy-Authorization" not in connection.request.headers
    if connection.request.path == "/close":
        connection.close(4001, "enough")
    else:
        peers.echo(connection)


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    with peers.echo_server(handler=handle) as server:
        yield server.url


@pytest.fixture(scope="module")
def secure(ca: Authority) -> Iterator[str]:
    with peers.echo_server(handler=handle, ssl=ca.server()) as server:
        yield server.url


@pytest.fixture(scope="module")
def trusting(ca: Authority) -> ssl.SSLContext:
    """One for all: to make it takes longer than most of the tests."""
    return ca.client()


@pytest.fixture(scope="module", params=["ws", "wss"])
def target(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue({"ws": "plain", "wss": "secure"}[request.param])
    return url


# --- The proxies


@pytest.fixture(scope="module")
def http_proxy() -> Iterator[str]:
    with programs.tinyproxy((USER, PASSWORD)) as program:
        yield f"http://{CREDENTIALS}127.0.0.1:{program.port}"


def tls_in_front(ca: Authority, port: int, target: str, name: str, directory: Path) -> str:
    """A server for nginx's stream: TLS with a certificate for `name`, and the proxy `target` behind."""
    pem = directory / f"{port}.pem"
    ca.root.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(pem)
    certificate = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
    return f"server {{ listen 127.0.0.1:{port} ssl; {certificate} proxy_pass {target.rpartition('@')[2]}; }}"


@pytest.fixture(scope="module")
def https_proxies(http_proxy: str, ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """One whose certificate is in order, and one with that of another host."""
    directory = tmp_path_factory.mktemp("https")
    with programs.free_ports(2) as ports:
        good = tls_in_front(ca, ports[0], http_proxy, "127.0.0.1", directory)
        with programs.nginx(ports, stream=good + tls_in_front(ca, ports[1], http_proxy, "other.example", directory)):
            yield [f"https://{CREDENTIALS}127.0.0.1:{port}" for port in ports]


@pytest.fixture(scope="module")
def https_proxy(https_proxies: list[str]) -> str:
    return https_proxies[0]


@pytest.fixture(scope="module")
def socks4_proxy() -> Iterator[str]:
    with programs.danted() as program:
        yield f"socks4://{USER}@127.0.0.1:{program.port}"


@pytest.fixture(scope="module")
def socks4a_proxy() -> Iterator[str]:
    with programs.socks4a(USER) as program:
        yield f"socks4a://{USER}@127.0.0.1:{program.port}"


@pytest.fixture(scope="module")
def socks5_proxy() -> Iterator[str]:
    with programs.microsocks((USER, PASSWORD)) as program:
        yield f"socks5://{CREDENTIALS}127.0.0.1:{program.port}"


@pytest.fixture(scope="module")
def socks5h_proxy(socks5_proxy: str) -> str:
    return socks5_proxy.replace("socks5:", "socks5h:")


@pytest.fixture(scope="module", params=WAYS)
def proxy(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_proxy")
    return url


class Open(NamedTuple):
    """What it takes to open a connection through one of the proxies to one of the servers."""

    proxy: str
    target: str
    ssl: ssl.SSLContext

    def __call__(self, path: str = "") -> WebSocket:
        ws = connect(with_credentials(self.target + path), proxy=self.proxy, ssl=self.ssl)
        assert_no_secrets(ws, ws.url, ws.response, ws.stats)
        return ws


@pytest.fixture
def through(proxy: str, target: str, trusting: ssl.SSLContext) -> Open:
    return Open(proxy, target.replace("127.0.0.1", NAME), trusting)


# --- Conversations


@pytest.mark.slow
def test_messages_of_all_sizes(through: Open, told: Told) -> None:
    messages: list[str | bytes] = ["häß", "", b"", "ä" * 2**19, bytes(range(256)) * 2**12]
    with through() as ws:
        for message in messages:
            ws.send(message)
        assert [ws.recv(LIMIT) for _ in messages] == messages
        assert ws.ping(LIMIT) > 0
    assert any(through.proxy.rpartition("@")[2] in text for text in told.texts)


@pytest.mark.slow
def test_a_burst_in_order(through: Open) -> None:
    with through() as ws:
        for number in range(BURST):
            ws.send(str(number))
        assert [ws.recv(LIMIT) for _ in range(BURST)] == [str(number) for number in range(BURST)]


def test_the_client_closes(through: Open) -> None:
    with through() as ws:
        ws.close(4002, "bye")
        event = ws.wait_closed(LIMIT)
    assert (event.code, event.reason, event.wasClean) == (4002, "bye", True)


def test_the_server_closes(through: Open) -> None:
    with through("close") as ws:
        event = ws.wait_closed(LIMIT)
    assert (event.code, event.reason, event.wasClean) == (4001, "enough", True)


@pytest.fixture(scope="module")
def plain6() -> Iterator[str]:
    try:
        server = peers.echo_server(handler=handle, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    with server:
        yield server.url


@pytest.mark.parametrize("proxy", ["http", "https", "socks5", "socks5h"], indirect=True)
def test_a_server_with_an_ipv6_address(proxy: str, plain6: str, trusting: ssl.SSLContext) -> None:
    with connect(with_credentials(plain6), proxy=proxy, ssl=trusting) as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


@pytest.mark.parametrize("proxy", ["socks4", "socks4a"], indirect=True)
def test_socks4_has_no_ipv6_addresses(proxy: str) -> None:
    assert "IPv6" in proxy_failure("ws://[::1]:9/", proxy)


@contextlib.contextmanager
def mortal_proxy(scheme: str, ca: Authority, http_proxy: str, directory: Path) -> Iterator[programs.Program]:
    """A proxy of the test's own, which may be killed."""
    with contextlib.ExitStack() as stack:
        if scheme == "http":
            program = stack.enter_context(programs.tinyproxy((USER, PASSWORD)))
        elif scheme == "socks5h":
            program = stack.enter_context(programs.microsocks((USER, PASSWORD)))
        else:
            port = stack.enter_context(programs.free_ports())[0]
            front = tls_in_front(ca, port, http_proxy, "127.0.0.1", directory)
            program = stack.enter_context(programs.nginx([port], stream=front))
        yield program


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_the_proxy_is_killed(
    scheme: str, target: str, ca: Authority, trusting: ssl.SSLContext, http_proxy: str, tmp_path: Path
) -> None:
    with mortal_proxy(scheme, ca, http_proxy, tmp_path) as program:
        proxy = f"{scheme}://{CREDENTIALS}127.0.0.1:{program.port}"
        ws = connect(with_credentials(target), proxy=proxy, ssl=trusting)
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
        program.kill()
        assert ws.wait_closed(LIMIT).code == 1006
        with pytest.raises(ConnectionLost) as caught:
            ws.recv(LIMIT)
    assert_no_secrets(ws, caught.value)


def test_a_redirect_goes_through_the_proxy_again(http_proxy: str, plain: str, told: Told) -> None:
    def script(peer: Peer) -> None:
        assert peer.headers["authorization"] == f"Basic {basic(URL_USER, URL_PASSWORD)}"
        peer.send(f"HTTP/1.1 307 There\r\nLocation: {with_credentials(plain)}\r\nContent-Length: 0\r\n\r\n".encode())
        peer.read_eof()

    with (
        RawServer(script) as server,
        connect(with_credentials(server.url), proxy=http_proxy) as ws,
    ):
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
    shown = http_proxy.rpartition("@")[2]
    assert sum(f"waiting for the proxy http://{shown}" in text for text in told.texts) == 2


# --- The proxy refuses


def says(*turns: bytes, wait_for: int = 1) -> Callable[[Peer], None]:
    """A script: after each thing that the client says, say the next; then leave."""

    def script(peer: Peer) -> None:
        for turn in turns:
            peer.read(wait_for)
            peer.send(turn)

    return script


def test_an_http_proxy_without_credentials(http_proxy: str, plain: str) -> None:
    proxy = http_proxy.replace(CREDENTIALS, "")
    assert "//user:password@" in proxy_failure(plain, proxy, status=407)
    error = failure(plain, proxy)
    assert isinstance(error, ProxyError)
    assert ("Proxy-Authenticate", 'Basic realm="Tinyproxy"') in error.headers


def test_an_http_proxy_with_wrong_credentials(http_proxy: str, plain: str) -> None:
    message = proxy_failure(plain, http_proxy.replace(CREDENTIALS, WRONG), status=401)  # it should say 407
    assert "refuses this user name and password" in message


def test_a_port_that_the_proxy_forbids(plain: str) -> None:
    with programs.tinyproxy(connect_ports=[1]) as program:
        assert "403" in proxy_failure(plain, f"http://127.0.0.1:{program.port}", status=403)


def test_a_server_that_refuses_the_http_proxy(http_proxy: str) -> None:
    with peers.refusing_address() as (host, port):
        message = proxy_failure(f"ws://{host}:{port}/", http_proxy, status=500)
    assert f"{host} port {port}" in message


@pytest.mark.parametrize("proxy", ["socks4", "socks4a", "socks5", "socks5h"], indirect=True)
def test_a_server_that_refuses_the_socks_proxy(proxy: str) -> None:
    with peers.refusing_address() as (host, port):
        assert f"did not connect to {host} port {port}: " in proxy_failure(f"ws://{host}:{port}/", proxy)


def test_socks4a_refuses_the_user(socks4a_proxy: str, plain: str) -> None:
    proxy_failure(plain, socks4a_proxy.replace(USER, "somebody"))


@pytest.mark.parametrize("credentials", ["", WRONG])
def test_socks5_wants_the_right_password(socks5_proxy: str, plain: str, credentials: str) -> None:
    assert "password" in proxy_failure(plain, socks5_proxy.replace(CREDENTIALS, credentials))


@pytest.mark.parametrize("way", WAYS)
def test_the_proxy_cannot_be_reached(way: str, plain: str) -> None:
    with peers.refusing_address() as (host, port):
        assert "reached" in proxy_failure(plain, f"{way}://{host}:{port}")


def test_the_name_of_the_proxy_is_unknown(plain: str) -> None:
    assert "reached" in proxy_failure(plain, f"http://{CREDENTIALS}no..such.proxy:3128")


# --- TLS, to the proxy and to the server


def test_the_certificate_of_the_proxy_is_of_an_unknown_authority(https_proxy: str, target: str) -> None:
    error = failure(target, https_proxy)
    assert isinstance(error, TLSError)
    assert f"the proxy https://{https_proxy.rpartition('@')[2]}" in str(error)
    assert "cafile='ca.pem'" in str(error)


def test_the_certificate_of_the_proxy_is_anothers(
    https_proxies: list[str], target: str, trusting: ssl.SSLContext
) -> None:
    error = failure(target, https_proxies[1], ssl=trusting)
    assert isinstance(error, TLSError)
    assert f"the proxy https://{https_proxies[1].rpartition('@')[2]}" in str(error)
    assert "other.example" in str(error)


def test_a_proxy_without_tls_is_said_to_have_some(plain: str) -> None:
    with RawServer(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        error = failure(plain, f"https://{CREDENTIALS}127.0.0.1:{server.port}")
    assert isinstance(error, TLSError)
    assert f"the proxy https://127.0.0.1:{server.port}" in str(error)
    assert "does not speak TLS" in str(error)


def test_the_certificate_of_the_server_is_anothers(proxy: str, ca: Authority, trusting: ssl.SSLContext) -> None:
    with RawServer(Peer.read_eof, ssl=ca.server("other.example")) as server:
        error = failure(server.url, proxy, ssl=trusting)
    assert isinstance(error, TLSError)
    assert "the proxy" not in str(error)
    assert "other.example" in str(error)


def test_a_refusal_of_the_server_is_the_servers(proxy: str, trusting: ssl.SSLContext) -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(b"HTTP/1.1 407 Odd\r\nContent-Length: 4\r\n\r\nbody")

    with RawServer(script) as server:
        error = failure(server.url, proxy, ssl=trusting)
    assert isinstance(error, HandshakeError)
    assert (error.status, error.body) == (407, b"body")


# --- What is said on the wire


def tunnelled(answer: bytes, heads: list[bytes], chunk: int = 2**20) -> Callable[[Peer], None]:
    """A script: answer CONNECT, whose head is noted, and be the server from then on."""

    def script(peer: Peer) -> None:
        heads.append(peer.request)
        del peer.request  # the next one is the server's
        peer.send_slowly(answer, chunk)
        peer.accept()
        assert peer.headers["authorization"] == f"Basic {basic(URL_USER, URL_PASSWORD)}"
        peer.read_until_close()
        peer.send(peers.close_frame())

    return script


def converse_with_nobody(url: str, proxy: str) -> None:
    with connect(with_credentials(url), proxy=proxy) as ws:
        assert_no_secrets(ws)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("ws://server.example/path?query", "server.example:80"),
        ("ws://server.example:9000/", "server.example:9000"),
        ("ws://[2001:db8::1]:9000/", "[2001:db8::1]:9000"),
        ("ws://bücher.example/", "xn--bcher-kva.example:80"),
    ],
)
@pytest.mark.parametrize("credentials", ["", CREDENTIALS, "proxy%2Duser-7:proxy-secret%2d9@"])
def test_connect_request(url: str, authority: str, credentials: str) -> None:
    heads: list[bytes] = []
    with RawServer(tunnelled(b"HTTP/1.1 200 OK\r\n\r\n", heads)) as server:
        converse_with_nobody(url, f"http://{credentials}127.0.0.1:{server.port}")
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == f"CONNECT {authority} HTTP/1.1"
    assert f"Host: {authority}" in lines
    assert (f"Proxy-Authorization: Basic {basic(USER, PASSWORD)}" in lines) == bool(credentials)
    assert not [line for line in lines if line.startswith(("Authorization", "Sec-", "Upgrade"))]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n",  # RFC 9110 section 9.3.6
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\n\r\n",
    ],
)
@pytest.mark.parametrize("chunk", [1, 1_000])
def test_answers_to_connect_that_are_in_order(answer: bytes, chunk: int) -> None:
    with RawServer(tunnelled(answer, [], chunk)) as server:
        converse_with_nobody("ws://server.example/", f"http://127.0.0.1:{server.port}")


class Socks(NamedTuple):
    """What a SOCKS proxy must hear, and what it answers, in turns; ``port`` is the server's."""

    scheme: str
    host: str
    turns: list[tuple[bytes, bytes]]


PORT = struct.pack("!H", 9000)
GRANTED4 = b"\0\x5a" + bytes(6)
GRANTED5 = b"\5\0\0\1" + bytes(6)
HELLO5 = (b"\5\1\0", b"\5\0")
LOGIN5 = (b"\1%c%s%c%s" % (len(USER), USER.encode(), len(PASSWORD), PASSWORD.encode()), b"\1\0")
ADDRESS = socket.inet_aton("127.0.0.1")
ADDRESS6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
USER4 = USER.encode() + b"\0"

SOCKS = {
    "4": Socks("socks4", "127.0.0.1", [(b"\4\1" + PORT + ADDRESS + b"\0", GRANTED4)]),
    "4 with user": Socks("socks4", "127.0.0.1", [(b"\4\1" + PORT + ADDRESS + USER4, GRANTED4)]),
    "4 with name": Socks("socks4", "localhost", [(b"\4\1" + PORT + ADDRESS + b"\0", GRANTED4)]),
    "4a": Socks("socks4a", "127.0.0.1", [(b"\4\1" + PORT + ADDRESS + b"\0", GRANTED4)]),
    "4a with user and name": Socks(
        "socks4a", "server.example", [(b"\4\1" + PORT + b"\0\0\0\xff" + USER4 + b"server.example\0", GRANTED4)]
    ),
    "5": Socks("socks5", "127.0.0.1", [HELLO5, (b"\5\1\0\1" + ADDRESS + PORT, GRANTED5)]),
    "5 with name": Socks("socks5", NAME, [HELLO5, (b"\5\1\0\1" + ADDRESS + PORT, GRANTED5)]),
    "5 with IPv6": Socks("socks5", "[2001:db8::1]", [HELLO5, (b"\5\1\0\4" + ADDRESS6 + PORT, GRANTED5)]),
    "5h": Socks("socks5h", "127.0.0.1", [HELLO5, (b"\5\1\0\1" + ADDRESS + PORT, GRANTED5)]),
    "5h with IPv6": Socks("socks5h", "[2001:db8::1]", [HELLO5, (b"\5\1\0\4" + ADDRESS6 + PORT, GRANTED5)]),
    "5h with name": Socks("socks5h", "server.example", [HELLO5, (b"\5\1\0\3\x0eserver.example" + PORT, GRANTED5)]),
    "5 bound to a name": Socks(
        "socks5", "127.0.0.1", [HELLO5, (b"\5\1\0\1" + ADDRESS + PORT, b"\5\0\0\3\1x\0\0")]
    ),
    "5 bound to IPv6": Socks(
        "socks5", "127.0.0.1", [HELLO5, (b"\5\1\0\1" + ADDRESS + PORT, b"\5\0\0\4" + bytes(18))]
    ),
    "5 with password": Socks(
        "socks5", "127.0.0.1", [(b"\5\2\0\2", b"\5\2"), LOGIN5, (b"\5\1\0\1" + ADDRESS + PORT, GRANTED5)]
    ),
    "5 with password not asked for": Socks(
        "socks5", "127.0.0.1", [(b"\5\2\0\2", b"\5\0"), (b"\5\1\0\1" + ADDRESS + PORT, GRANTED5)]
    ),
}


@pytest.mark.parametrize("chunk", [1, 1_000])
@pytest.mark.parametrize("case", SOCKS)
def test_socks_requests(case: str, chunk: int) -> None:
    scheme, host, turns = SOCKS[case]

    def script(peer: Peer) -> None:
        for expected, answer in turns:
            assert peer.read(len(expected)) == expected
            peer.send_slowly(answer, chunk)
        peer.accept()
        peer.read_until_close()
        peer.send(peers.close_frame())

    credentials = CREDENTIALS if "password" in case else f"{USER}@" if "user" in case else ""
    with RawServer(script) as server:
        converse_with_nobody(f"ws://{host}:9000/", f"{scheme}://{credentials}127.0.0.1:{server.port}")


# --- The proxy lies, stalls or leaves


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
def test_whatever_a_socks_proxy_says_is_an_error_of_the_proxy(scheme: str, log: Any) -> None:
    chance = random.Random(scheme)

    def script(peer: Peer) -> None:
        with contextlib.suppress(OSError):  # the client may have hung up
            beginning = bytes((5 if "5" in scheme else 0, chance.choice((0, 0, 2, 90, 255))))
            peer.send(beginning + chance.randbytes(chance.choice((0, 1, 6, 30))))
            peer.end()

    with RawServer(script) as server:
        for host in ("127.0.0.1", "server.example" if scheme[-1] in "ah" else "127.0.0.2", ".".join(["x" * 62] * 4)):
            for _ in range(15 if len(host) < 100 or scheme[-1] in "ah" else 0):
                ws = WebSocket(f"ws://{host}:9000/", proxy=f"{scheme}://127.0.0.1:{server.port}", open_timeout=5)
                with pytest.raises(ConnectionFailed) as caught:
                    ws.wait_open(LIMIT)
                assert "internal" not in str(caught.value)
                ws.wait_closed(LIMIT)
    assert log.errors() == []


def sends_a_header_of_1_mib(peer: Peer) -> None:
    assert peer.request
    with contextlib.suppress(ConnectionError):  # the client hangs up in the middle of it
        peer.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20 + b"\r\n\r\n")


def leaves(peer: Peer) -> None:
    assert peer.request


HTTP_LIARS = {
    "junk": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "no status": says(b"HTTP/1.1 OK\r\n\r\n"),
    "half a head": says(b"HTTP/1.1 200 OK\r\nX: y\r\n"),
    "a header of 1 MiB": sends_a_header_of_1_mib,
    "more than the head": says(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "no header": says(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"),
    "leaves": leaves,
    "resets": Peer.reset,
}
SOCKS4_LIARS = {
    "HTTP": says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "half an answer": says(b"\0\x5a\0"),
    "unknown code": says(b"\0\1" + bytes(6)),
    "more than the answer": says(GRANTED4 + b"x"),
    "leaves": says(b""),
    "resets": Peer.reset,
}
SOCKS5_LIARS = {
    "HTTP": says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a method not offered": says(b"\5\7"),
    "a password wanted": says(b"\5\2"),
    "half an answer": says(b"\5\0", b"\5\0\0\1\0", wait_for=3),
    "unknown kind of address": says(b"\5\0", b"\5\0\0\x09" + bytes(30), wait_for=3),
    "unknown code": says(b"\5\0", b"\5\x77\0\1" + bytes(6), wait_for=3),
    "another version": says(b"\5\0", b"\4\0\0\1" + bytes(6), wait_for=3),
    "more than the answer": says(b"\5\0", GRANTED5 + b"x", wait_for=3),
    "leaves": says(b"\5\0", wait_for=3),
    "resets": Peer.reset,
}
LIARS = {
    **{f"http {name}": script for name, script in HTTP_LIARS.items()},
    **{f"socks4a {name}": script for name, script in SOCKS4_LIARS.items()},
    **{f"socks5h {name}": script for name, script in SOCKS5_LIARS.items()},
}


@pytest.mark.parametrize("case", LIARS)
def test_a_proxy_that_lies(case: str) -> None:
    with RawServer(LIARS[case]) as server:
        message = proxy_failure("ws://server.example/", f"{case.split()[0]}://127.0.0.1:{server.port}")
    assert len(message) < 300


@pytest.mark.parametrize("way", WAYS)
def test_a_proxy_that_stalls(way: str) -> None:
    with RawServer(Peer.stall) as server:
        start = time.monotonic()
        error = failure("ws://127.0.0.1:9/", f"{way}://127.0.0.1:{server.port}", open_timeout=0.05)
    assert time.monotonic() - start < 3
    assert isinstance(error, OpenTimeout)
    assert f"the proxy {way}://127.0.0.1:{server.port}" in str(error)


def test_a_proxy_that_cannot_be_reached_in_time(plain: str) -> None:
    with peers.dead_address() as (host, port):
        error = failure(plain, f"http://{CREDENTIALS}{host}:{port}", open_timeout=0.05)
    assert isinstance(error, OpenTimeout)
    assert f"connecting to {host} port {port}, the proxy http://{host}:{port}" in str(error)


def test_a_proxy_that_stalls_in_the_middle_of_its_answer() -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(b"HTTP/1.1 200 OK\r\nX: ")
        peer.stall()

    with RawServer(script) as server:
        error = failure("ws://server.example/", f"http://{CREDENTIALS}127.0.0.1:{server.port}", open_timeout=0.05)
    assert isinstance(error, OpenTimeout)
    assert f"the proxy http://127.0.0.1:{server.port}" in str(error)


# --- The environment


@pytest.fixture(scope="module")
def naming() -> Iterator[int]:
    """The port of a proxy that refuses everybody, and tells by what user name it was asked."""

    def script(peer: Peer) -> None:
        user = base64.b64decode(peer.headers["proxy-authorization"].split()[1]).partition(b":")[0]
        peer.send(b"HTTP/1.1 403 No\r\nX-User: " + user + b"\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server:
        yield server.port


class Environment:
    """Sets variables so that each names another user of the `naming` proxy: its own name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int, context: ssl.SSLContext) -> None:
        self._monkeypatch = monkeypatch
        self._context = context
        self.port = port

    def set(self, *names: str, **values: str) -> None:
        for name in names:
            self._monkeypatch.setenv(name, f"http://{name}:{PASSWORD}@127.0.0.1:{self.port}")
        for name, value in values.items():
            self._monkeypatch.setenv(name, value)

    def taken(self, url: str, **options: Any) -> str:
        """The variable that was used for a connection to the URL, "" if none was."""
        try:
            with connect(with_credentials(url), ssl=self._context, **options):
                return ""
        except ProxyError as error:
            assert_no_secrets(error)
            return dict(error.headers)["X-User"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, naming: int, trusting: ssl.SSLContext) -> Environment:
    """It is used for this machine, too, where the servers of the tests are."""
    monkeypatch.setattr(proxies, "_is_loopback", lambda host: False)
    return Environment(monkeypatch, naming, trusting)


@pytest.mark.parametrize("change_case", [str.lower, str.upper])
@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("ws", ["ws_proxy", "https_proxy", "http_proxy", "all_proxy", ""]),
        ("wss", ["wss_proxy", "https_proxy", "all_proxy", ""]),
    ],
)
def test_order_of_the_variables(
    scheme: str,
    names: list[str],
    change_case: Callable[[str], str],
    environment: Environment,
    plain: str,
    secure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = {"ws": plain, "wss": secure}[scheme]
    environment.set(*(change_case(name) for name in VARIABLES if name != "no_proxy"))
    for name in map(change_case, names):
        assert environment.taken(url) == name
        monkeypatch.delenv(name, raising=False)


def test_lower_case_goes_first(environment: Environment, plain: str) -> None:
    environment.set("ws_proxy", "WS_PROXY")
    assert environment.taken(plain) == "ws_proxy"


def test_true_is_the_environment_and_none_is_not(environment: Environment, plain: str) -> None:
    environment.set("all_proxy")
    assert environment.taken(plain, proxy=True) == "all_proxy"
    assert environment.taken(plain, proxy=None) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_environment_is_not_for_this_machine(
    host: str, naming: int, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "" if name == "no_proxy" else f"http://{name}:{PASSWORD}@127.0.0.1:{naming}")
    url = with_credentials(plain.replace("127.0.0.1", host))
    with connect(url) as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
    assert "HTTP 403 No" in proxy_failure(plain, f"http://option:{PASSWORD}@127.0.0.1:{naming}", status=403)


def test_an_option_goes_before_the_environment(environment: Environment, plain: str) -> None:
    environment.set("all_proxy", no_proxy="*")
    proxy = f"http://option:{PASSWORD}@127.0.0.1:{environment.port}"
    assert environment.taken(plain, proxy=proxy) == "option"


@pytest.mark.parametrize(
    ("no_proxy", "host", "without"),
    [
        ("*", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("other.example, 127.0.0.1 ,x", "127.0.0.1", True),
        ("127.0.0.0/8", "127.0.0.1", True),
        ("128.0.0.0/8", "127.0.0.1", False),
        ("127.0.0.1:{port}", "127.0.0.1", True),
        ("127.0.0.1:1", "127.0.0.1", False),
        ("localhost", "localhost", True),
        ("LocalHost", "localhost", True),
        ("localhost:{port}", "localhost", True),
        ("localhost:1", "localhost", False),
        ("host", "localhost", False),
        ("", "127.0.0.1", False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, without: bool, environment: Environment, plain: str) -> None:
    port = plain.rpartition(":")[2].strip("/")
    environment.set("http_proxy", no_proxy=no_proxy.format(port=port))
    url = plain.replace("127.0.0.1", host)
    assert environment.taken(url) == ("" if without else "http_proxy")


# --- What is no proxy's URL

BAD = [
    "ftp://{}host:1",
    "socks6://{}host:1",
    "://{}host",
    "http://",
    "http://{}",
    "http://{}:8080",
    "http://{}host:0",
    "http://{}host:65536",
    "http://{}host:port",
    "http://{}host:8080/path",
    "http://{}host?query",
    "http://{}ho st",
    "http://{}[::1",
    "http://{}host\r\nX: y",
    "socks5://{}" + "x" * 300 + "\0",
    "",
]


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url_of_a_proxy(url: str, plain: str) -> None:
    with pytest.raises(InvalidArgument, match="proxy") as caught:
        WebSocket(with_credentials(plain), proxy=url.format(CREDENTIALS))
    assert_no_secrets(caught.value)


@pytest.mark.parametrize("url", [bad for bad in BAD if bad and "\0" not in bad])
def test_a_bad_url_of_a_proxy_in_the_environment(url: str, plain: str, environment: Environment) -> None:
    environment.set(all_proxy=url.format(CREDENTIALS))
    with pytest.raises(InvalidArgument, match="all_proxy") as caught:
        WebSocket(with_credentials(plain))
    assert_no_secrets(caught.value)


