"""The harness itself: the peers do what they say, and what goes wrong in a test is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import ssl
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import conftest
import garbage
import peers
import pytest
import websockets.exceptions
from peers import LIMIT, Frame, Peer, RawServer
from websockets.sync.client import connect

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

REQUEST = (
    b"GET /chat?room=1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Two: a\r\nx-two: b\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def dial(server: peers.Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# --- echo_server and uvicorn_server


@pytest.mark.parametrize("server", [peers.echo_server, peers.uvicorn_server])
@pytest.mark.parametrize("message", ["", "häß", b"", bytes(70_000)], ids=["empty", "text", "no bytes", "bytes"])
def test_real_servers_echo(server: Callable[[], peers.Server], message: str | bytes) -> None:
    with server() as running, connect(running.url, max_size=None) as client:
        client.send(message)
        assert client.recv(5) == message


def test_echo_server_records_requests_and_negotiates() -> None:
    with peers.echo_server(subprotocols=["chat"]) as server:
        with connect(server.url + "path?x=1", subprotocols=["other", "chat"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "chat"
        (request,) = server.requests
    assert request.path == "/path?x=1"
    assert request.headers["sec-websocket-protocol"] == "other, chat"


@pytest.mark.parametrize("compression", ["deflate", None])
def test_echo_server_compression(compression: str | None) -> None:
    with peers.echo_server(compression=compression) as server, connect(server.url) as client:
        assert client.response is not None
        assert ("Sec-WebSocket-Extensions" in client.response.headers) == (compression is not None)


def test_echo_server_with_tls_and_a_certificate_for_the_address(ca: peers.Authority) -> None:
    with peers.echo_server(ssl=ca.server()) as server, connect(server.url, ssl=ca.client()) as client:
        assert server.url.startswith("wss://127.0.0.1:")
        client.send("x")
        assert client.recv(5) == "x"


def test_a_context_for_another_name_is_refused(ca: peers.Authority) -> None:
    with (
        RawServer(Peer.stall, ssl=ca.server("example.org")) as server,
        dial(server) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ca.client().wrap_socket(sock, server_hostname="localhost")


def test_echo_server_fixture(echo: str) -> None:
    with connect(echo) as client:
        client.send("x")
        assert client.recv(5) == "x"


def test_failing_handler_fails_the_test() -> None:
    def handler(connection: peers.Connection) -> None:
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        peers.echo_server(handler=handler) as server,
        connect(server.url) as client,
        pytest.raises(websockets.exceptions.ConnectionClosedError),
    ):
        client.recv(5)


def test_failing_asgi_application_fails_the_test() -> None:
    async def app(*args: object) -> None:
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        peers.uvicorn_server(app) as server,
        pytest.raises(websockets.exceptions.InvalidStatus),
    ):
        connect(server.url)


def test_asgi_application_that_hangs_fails_the_test() -> None:
    async def app(scope: object, receive: Callable[[], Awaitable[object]], send: object) -> None:
        hanging.set()
        await asyncio.Event().wait()

    hanging = threading.Event()
    server = peers.uvicorn_server(app)
    with contextlib.ExitStack() as stack, ends_within(3), pytest.raises(asyncio.CancelledError), server:  # noqa: PT012
        sock = stack.enter_context(dial(server))
        sock.sendall(REQUEST)
        assert hanging.wait(5)


def test_echo_server_tells_its_clients_that_it_goes() -> None:
    with contextlib.ExitStack() as running:
        server = running.enter_context(peers.echo_server())
        with connect(server.url) as client:
            running.close()
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                client.recv(5)
    assert client.close_code == 1001


@pytest.mark.parametrize("request_bytes", [b"", b"GET / HTTP", REQUEST], ids=["silent", "half a request", "open"])
@pytest.mark.parametrize("server", [peers.echo_server, peers.uvicorn_server])
def test_real_servers_end_while_clients_hang(server: Callable[[], peers.Server], request_bytes: bytes) -> None:
    with contextlib.ExitStack() as stack, ends_within(3), server() as running:
        sock = stack.enter_context(dial(running))
        sock.sendall(request_bytes)
        if request_bytes == REQUEST:
            assert sock.recv(12) == b"HTTP/1.1 101"


def test_echo_server_ends_while_a_client_hangs_in_tls(ca: peers.Authority) -> None:
    with contextlib.ExitStack() as stack, ends_within(3), peers.echo_server(ssl=ca.server()) as server:
        stack.enter_context(dial(server))


# --- RawServer


def test_accept_is_what_a_client_expects() -> None:
    def script(peer: Peer) -> None:
        peer.accept([("X-Extra", "1")], protocol="chat")
        assert peer.read_frame() == Frame(True, 0, peers.TEXT, b"hello", True)
        peer.send(peers.text("häß"))
        peer.send(peers.binary(b"\0\1"))
        peer.send(peers.close_frame(3000, "enough"))
        assert [frame.opcode for frame in peer.read_until_close()] == [peers.CLOSE]
        peer.close()

    with RawServer(script) as server, connect(server.url, subprotocols=["chat"]) as client:  # type: ignore[list-item]
        assert client.response is not None
        assert client.response.headers["X-Extra"] == "1"
        client.send("hello")
        assert (client.recv(5), client.recv(5)) == ("häß", b"\0\1")
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.recv(5)
        assert (client.close_code, client.close_reason) == (3000, "enough")


def test_101_and_what_follows_come_in_one_segment_and_the_request_is_parsed() -> None:
    def script(peer: Peer) -> None:
        assert peer.request == REQUEST
        assert peer.path == "/chat?room=1"
        assert peer.headers["host"] == "localhost"
        assert peer.headers["x-two"] == "a, b"
        peer.accept(after=peers.text("first"), extensions="x-test")
        peer.read_eof()

    with RawServer(script) as server, dial(server) as sock:
        sock.sendall(REQUEST)
        head, _, rest = sock.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of RFC 6455 section 1.3
    assert b"Sec-WebSocket-Extensions: x-test" in head
    assert rest == peers.text("first")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_001])
def test_frames_of_all_lengths_both_ways(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))

    def script(peer: Peer) -> None:
        peer.accept()
        assert peer.read_frame() == Frame(True, 0, peers.BINARY, payload)
        peer.send(peers.binary(payload))
        peer.read_until_close()
        peer.send(peers.close_frame())

    with RawServer(script) as server, connect(server.url, compression=None) as client:
        client.send(payload)
        assert client.recv(5) == payload


def test_frames_are_as_wrong_as_they_are_asked_to_be() -> None:
    assert peers.frame(peers.TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    masked = peers.frame(peers.TEXT, b"Hello", mask=bytes.fromhex("37fa213d"))
    assert masked == bytes.fromhex("818537fa213d7f9f4d5158")  # both are examples of RFC 6455 section 5.7
    assert peers.frame(peers.CONTINUATION, b"x", fin=False, rsv=4) == b"\x40\x01x"
    assert peers.frame(peers.BINARY, length=2**63 - 1) == b"\x82\x7f\x7f" + b"\xff" * 7
    assert peers.ping(b"1") + peers.pong(b"2") == b"\x89\x011\x8a\x012"
    assert peers.close_frame() == b"\x88\x00"
    assert peers.close_frame(1001, "ä") == b"\x88\x04\x03\xe9\xc3\xa4"


def test_send_slowly_sends_each_chunk_by_itself() -> None:
    received: list[bytes] = []
    turn = threading.Semaphore(0)

    class Stepwise:
        """A socket whose sends wait for the reader, so that segments cannot run together."""

        def sendall(self, data: bytes) -> None:
            assert turn.acquire(timeout=5)
            sock.sendall(data)

    ours, sock = socket.socketpair()
    with ours, sock:
        peer = Peer(Stepwise(), 0, None)  # type: ignore[arg-type]
        sender = threading.Thread(target=peer.send_slowly, args=(b"abcde", 2))
        sender.start()
        for _ in range(3):
            turn.release()
            received.append(ours.recv(99))
        sender.join()
    assert received == [b"ab", b"cd", b"e"]


def test_unmasked_frames_are_an_error() -> None:
    server = RawServer(Peer.read_frame)
    with pytest.raises(AssertionError, match="not masked"), server, dial(server) as sock:
        sock.sendall(peers.text("x"))


@pytest.mark.parametrize("action", [lambda peer: peer.request, Peer.read_frame, Peer.read_until_close])
def test_end_of_file_is_an_error_to_who_wants_more(action: Callable[[Peer], object]) -> None:
    with pytest.raises(EOFError), RawServer(action) as server, dial(server) as sock:
        sock.sendall(b"\x81")


def test_client_without_a_byte_ends_the_script_quietly() -> None:
    with RawServer(Peer.accept) as server:
        dial(server).close()


def test_script_exceptions_surface() -> None:
    def script(peer: Peer) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), RawServer(script) as server, dial(server) as sock:
        assert read_all(sock) == b""


def test_script_exceptions_do_not_hide_those_of_the_test(capsys: pytest.CaptureFixture[str]) -> None:
    def script(peer: Peer) -> None:
        raise ZeroDivisionError

    with pytest.raises(KeyError), RawServer(script) as server, dial(server) as sock:  # noqa: PT012
        assert read_all(sock) == b""
        raise KeyError
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_script_that_still_reads_at_the_end_fails_the_test() -> None:
    def script(peer: Peer) -> None:
        peer.send(b"x")
        peer.read_frame()

    server = RawServer(script)
    with contextlib.ExitStack() as stack, ends_within(3), pytest.raises(AssertionError, match="still reading"), server:
        assert stack.enter_context(dial(server)).recv(1) == b"x"


def test_script_may_finish_after_the_test_has() -> None:
    finished = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_eof()
        finished.set()

    with RawServer(script) as server, dial(server):
        pass
    assert finished.is_set()


def test_stall_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GRACE", 5.0)  # so that it cannot be the cutting of the sockets that ends it
    stalled = threading.Event()

    def script(peer: Peer) -> None:
        stalled.set()
        peer.stall()

    with contextlib.ExitStack() as stack, ends_within(3), RawServer(script) as server:
        stack.enter_context(dial(server))
        assert stalled.wait(5)


def test_stall_ends_with_the_client_and_reads_nothing() -> None:
    rest: list[bytes] = []
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.stall()
        rest.append(peer.read_eof())
        ended.set()

    with RawServer(script) as server:
        with dial(server) as sock:
            sock.sendall(b"unread")
        assert ended.wait(5)
    assert rest == [b"unread"]


def test_reset_is_a_reset_and_close_is_none() -> None:
    with RawServer(Peer.reset) as server, pytest.raises(ConnectionResetError), dial(server) as sock:
        sock.recv(1)
    with RawServer(Peer.close) as server, dial(server) as sock:
        assert sock.recv(1) == b""


def test_connections_are_numbered_and_served_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=5)

    def script(peer: Peer) -> None:
        both.wait()
        peer.send(b"%d" % peer.number)

    with RawServer(script) as server, dial(server) as first, dial(server) as second:
        assert (read_all(first), read_all(second)) == (b"0", b"1")


def test_raw_server_with_tls(ca: peers.Authority) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.send_slowly(peers.text("x"))
        peer.stall()

    with RawServer(script, ssl=ca.server()) as server, connect(server.url, ssl=ca.client(), close_timeout=0) as client:
        assert client.recv(5) == "x"


# --- Addresses where nobody answers


def test_refusing_address() -> None:
    with peers.refusing_address() as address, pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_dead_address() -> None:
    with peers.dead_address() as address, pytest.raises(TimeoutError):
        socket.create_connection(address, timeout=0.2)


# --- The fixtures that fail a test


def test_snapshot_notices_a_thread_until_it_has_ended() -> None:
    before = conftest.Snapshot()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(5,), name="forgotten")
    thread.start()
    assert "forgotten" in before.left(0)[0]
    end.set()
    assert before.left(conftest.PATIENCE) == []


def test_snapshot_notices_a_socket_until_it_is_closed() -> None:
    before = conftest.Snapshot()
    with socket.socket():
        assert re.fullmatch(r"socket:\[\d+\]", before.left(0)[0])
    assert before.left(conftest.PATIENCE) == []


FAULTY_TESTS = """
    import conftest, logging, socket, threading, warnings

    conftest.PATIENCE = 0.01
    kept = []

    def test_thread():
        kept.append(threading.Event())
        thread = threading.Thread(target=kept[0].wait, args=(5,), daemon=True)
        thread.start()

    def test_socket():
        kept.append(socket.socket())

    def test_error_in_the_log():
        logging.getLogger("nwebsocket.any").error("unexpected")

    def test_error_in_a_thread():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    def test_unraisable_error():
        class Broken:
            def __del__(self):
                1 / 0
        Broken()

    def test_unclosed_socket():
        socket.socket()

    def test_warning():
        warnings.warn("x")

    def test_good(log):
        logging.getLogger("nwebsocket").warning("a")
        logging.getLogger("nwebsocket").error("b")
        assert [record.getMessage() for record in log.errors() + log.warnings()] == ["b", "a"]
        assert log.errors() == log.warnings() == []
"""


@pytest.mark.slow
def test_fixtures_and_settings_fail_what_they_should(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.path.joinpath("tests", "support").mkdir(parents=True)
    support = [f"tests/support/{name}.py" for name in ("garbage", "local_server", "peers")]
    for name in ("tests/conftest.py", *support, "pyproject.toml"):
        pytester.path.joinpath(name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    pytester.path.joinpath("tests", "test_faulty.py").write_text(textwrap.dedent(FAULTY_TESTS), "utf-8")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer to import than the tests to run
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "pytest_timeout")
    failed = re.findall(r"^(?:FAILED|ERROR) tests/test_faulty\.py::(\w+)", result.stdout.str(), re.MULTILINE)
    assert set(failed) == set(re.findall(r"def (test_\w+)\(\)", FAULTY_TESTS))


def test_garbage_is_collected_though_another_thread_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Cyclic:
        def __init__(self, finalize: Callable[[], object]) -> None:
            self.me, self.finalize = self, finalize

        def __del__(self) -> None:
            self.finalize()

    def slow() -> None:
        entered.set()
        assert leave.wait(LIMIT)

    def collect() -> None:
        Cyclic(slow)
        gc.collect()

    other = threading.Thread(target=collect)
    other.start()
    assert entered.wait(LIMIT)
    gone: list[bool] = []
    Cyclic(lambda: gone.append(True))
    gc.collect()
    assert not gone  # the other thread is at it, so this did nothing

    def attempt() -> None:
        monkeypatch.undo()
        gc.collect()
        leave.set()

    monkeypatch.setattr(gc, "collect", attempt)
    garbage.collect()
    assert gone
    other.join()
