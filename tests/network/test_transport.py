"""DNS, TCP and TLS against real sockets and servers in threads; every test leaves no socket and no thread behind."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import garbage
import pytest
import trustme

from nwebsocket._base.log import Trace
from nwebsocket._connection.opening import Opening
from nwebsocket._network import tcp
from nwebsocket._network import transport as transport_module
from nwebsocket._network.tcp import begin_connecting, connect_any, connect_host
from nwebsocket._network.tls import TLS, default_tls_context
from nwebsocket._network.transport import Transport, open_transport
from nwebsocket._protocol.url import parse_url
from nwebsocket._threads.safe_curio import Event, Kernel, TaskTimeout, before, curio, sleep, spawn
from nwebsocket.exceptions import ConnectionFailed, TLSError
from nwebsocket.options import Options

PATIENCE = 10.0  # seconds: longer than anything here takes, shorter than the test's time limit
BIG = os.urandom(1 << 16) * 64  # 4 MiB: more than any socket buffer takes at once

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts on how Linux treats a full backlog")


def open_descriptors(*, collected: bool = True) -> set[str]:
    if collected:
        garbage.collect()
    directory = "/proc/self/fd"
    links = {}
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        with contextlib.suppress(OSError):
            links[name] = os.readlink(f"{directory}/{name}")
    return {link for link in links.values() if link.startswith("socket:")}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    sockets, threads = open_descriptors(), set(threading.enumerate())
    with caplog.at_level(logging.WARNING):
        yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread
    assert open_descriptors() <= sockets
    assert not caplog.records


def run(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    async def within_patience() -> Any:
        return await before(time.monotonic() + PATIENCE, function(*args))

    with Kernel() as kernel:
        return kernel.run(within_patience)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected TCP pair: ours, theirs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    theirs.settimeout(PATIENCE)
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def server(handle: Callable[[socket.socket], None], connections: int = 1) -> Iterator[int]:
    """Serve so many connections in a thread; yields the port, and afterwards raises what the handler raised."""
    errors: list[BaseException] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)

    def serve() -> None:
        try:
            for _ in range(connections):
                with listener.accept()[0] as sock:
                    sock.settimeout(PATIENCE)
                    handle(sock)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(2 * PATIENCE)
        listener.close()
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 1 << 16))
        if not chunk:
            break
        data += chunk
    return bytes(data)


async def read_exactly(transport: Transport, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (chunk := await transport.receive()):
        data += chunk
    return bytes(data)


async def write(transport: Transport, data: bytes) -> None:
    transport.send(data)
    while not transport.flush():
        await transport.wait_writable()


# ---- the stream


def test_receive_takes_what_is_there_and_then_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        theirs.sendall(b"first")
        assert await transport.receive() == b"first"
        reader = await spawn(transport.receive)
        await sleep(0)
        theirs.sendall(b"second")
        assert await reader.join() == b"second"
        theirs.shutdown(socket.SHUT_WR)
        assert await transport.receive() == b""
        await transport.close()
        await transport.close()

    run(main)


def test_queued_chunks_leave_in_order_and_together(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        for chunk in (b"a", b"", b"bc", b"d"):
            transport.send(chunk)
        assert (transport.unsent, transport.sent) == (4, 0)
        assert transport.flush()
        assert (transport.unsent, transport.sent) == (0, 4)
        assert theirs.recv(100) == b"abcd"
        await transport.close()

    run(main)


def test_partial_writes_against_a_slow_reader(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(receive_exactly(theirs, 2 * len(BIG) + 4)))

    async def main() -> None:
        transport = Transport(ours)
        transport.send(BIG)
        assert not transport.flush()
        assert 0 < transport.sent < len(BIG)
        transport.send(b"tail")
        transport.send(BIG)
        assert transport.sent + transport.unsent == 2 * len(BIG) + 4
        assert not transport.flush()
        reader.start()
        await write(transport, b"")
        assert (transport.sent, transport.unsent) == (2 * len(BIG) + 4, 0)
        await transport.close()

    run(main)
    reader.join(PATIENCE)
    assert received == [BIG + b"tail" + BIG]


def test_reading_and_writing_may_wait_at_the_same_time(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        reader = await spawn(transport.receive)
        writer = await spawn(write, transport, BIG)
        await sleep(0)
        theirs.sendall(b"x")
        assert await reader.join() == b"x"
        drain = threading.Thread(target=receive_exactly, args=(theirs, len(BIG)))
        drain.start()
        await writer.join()
        await transport.close()
        drain.join(PATIENCE)

    run(main)


def test_shutdown_ends_our_side_only(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        transport.shutdown()
        assert theirs.recv(1) == b""
        theirs.sendall(b"late")
        assert await transport.receive() == b"late"
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(ConnectionResetError):
            await transport.receive()
        transport.shutdown()  # ENOTCONN
        await transport.close()

    run(main)


def test_the_end_is_known_when_it_has_come(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        assert not transport.has_ended()
        theirs.sendall(b"last")
        theirs.shutdown(socket.SHUT_WR)
        await sleep(0)
        assert not transport.has_ended()  # there is something to read
        assert await transport.receive() == b"last"
        assert transport.has_ended()
        assert await transport.receive() == b""
        await transport.close()
        assert not transport.has_ended()

    run(main)


def test_abort_resets_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        await transport.abort()
        await transport.abort()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)

    run(main)


def test_a_write_to_a_reset_connection_raises(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        transport = Transport(ours)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(OSError):  # noqa: PT011  EPIPE or ECONNRESET, depending on the system
            await write(transport, BIG)
        await transport.close()

    run(main)


@pytest.mark.parametrize("close", [Transport.close, Transport.abort])
def test_a_socket_closed_by_its_reader_leaves_no_registration(
    pair: tuple[socket.socket, socket.socket], close: Callable[[Transport], Coroutine[Any, Any, None]]
) -> None:
    ours, theirs = pair

    async def main() -> None:
        registered = (await curio.traps._get_kernel())._selector.get_map()
        transport, number = Transport(ours), ours.fileno()
        sender = await spawn(send_soon)
        assert await transport.receive() == b"x"
        assert number in {key.fd for key in registered.values()}, "curio cleans up earlier now: this tests nothing"
        await close(transport)
        assert number not in {key.fd for key in registered.values()}
        await sender.join()

    async def send_soon() -> None:
        theirs.sendall(b"x")

    run(main)


def test_a_peer_that_never_pauses_leaves_the_others_their_turn(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    monkeypatch.setattr(transport_module, "READ_SIZE", 1)
    monkeypatch.setattr(transport_module, "READ_SIZE_IN_STREAMS", 1)  # each read fills its buffer: there may be more

    async def main() -> None:
        transport = Transport(ours)
        theirs.sendall(b"x")
        await transport.receive()  # it waits for the first, whether that is there or not
        had_turn = Event()
        await spawn(had_turn.set, daemon=True)
        for _ in range(transport_module.READS_IN_A_ROW):
            assert not had_turn.is_set()
            theirs.sendall(b"x")
            await transport.receive()
        assert had_turn.is_set()
        await transport.close()

    run(main)


def test_a_forked_childs_copy_is_closed_without_a_kernel(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    copy = ours.dup()
    Transport(copy).close_inherited()
    assert copy.fileno() == -1
    ours.send(b"still open")
    assert theirs.recv(100) == b"still open"


# ---- DNS and TCP


def test_open_by_address_and_by_name() -> None:
    def handle(sock: socket.socket) -> None:
        sock.sendall(b"hello")

    async def main(host: str, port: int) -> None:
        transport = await open_transport(host, port, tls=None)
        assert transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert await read_exactly(transport, 5) == b"hello"
        await transport.close()

    for host in ("127.0.0.1", "localhost"):
        with server(handle) as port:
            run(main, host, port)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_refused_names_host_port_and_every_address() -> None:
    port = closed_port()
    with pytest.raises(ConnectionFailed) as caught:
        run(lambda: open_transport("localhost", port, tls=None))
    message = str(caught.value)
    assert f"localhost port {port}" in message
    assert "127.0.0.1: Connection refused" in message
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize("host", ["no..such.host", "x" * 70 + ".invalid", "a..b"])
def test_unknown_host(host: str) -> None:
    with pytest.raises(ConnectionFailed, match="cannot find the address of host") as caught:
        run(lambda: open_transport(host, 80, tls=None))
    assert host in str(caught.value)
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_a_lookup_that_outlives_its_kernel_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow_lookup(*args: Any, flags: int = 0, **kwargs: Any) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        looking.set()
        go_on.wait(PATIENCE)
        done.set()
        return []

    async def main() -> None:
        task = await spawn(open_plain)
        while not looking.is_set():
            await sleep(0)
        await task.cancel()

    async def open_plain() -> None:
        await open_transport("slow.example", 80, tls=None)

    monkeypatch.setattr(socket, "getaddrinfo", slow_lookup)
    run(main)
    go_on.set()
    assert done.wait(PATIENCE)


@pytest.fixture
def silent_address() -> Iterator[tuple[int, Any]]:
    """An address that neither accepts nor refuses: a full backlog."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield socket.AF_INET, listener.getsockname()


@pytest.fixture
def good_address() -> Iterator[tuple[int, Any]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield socket.AF_INET, listener.getsockname()


async def until_begun(attempts: int, opened: set[str]) -> None:
    """Wait until there are so many sockets more than there were."""
    while len(open_descriptors(collected=False) - opened) < attempts:
        await sleep(0)


async def timed_connect(addresses: list[tuple[int, Any]]) -> tuple[float, Any]:
    start = await sleep(0)
    sock = await connect_any(addresses)
    with sock:
        return await sleep(0) - start, sock.getpeername()


@linux_only
def test_the_next_attempt_begins_after_the_delay(silent_address: Any, good_address: Any) -> None:
    seconds, peer = run(timed_connect, [silent_address, silent_address, good_address])
    assert peer == good_address[1]
    assert 2 * tcp.ATTEMPT_DELAY <= seconds < 2 * tcp.ATTEMPT_DELAY + 1


def test_the_next_attempt_begins_at_once_when_one_fails(good_address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "ATTEMPT_DELAY", 2 * PATIENCE)
    refused = (socket.AF_INET, ("127.0.0.1", closed_port()))
    assert run(timed_connect, [refused, refused, good_address])[1] == good_address[1]


@linux_only
def test_a_late_answer_of_an_early_attempt_wins(silent_address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first attempt ever succeeds, and only after the others have begun."""
    monkeypatch.setattr(tcp, "ATTEMPT_DELAY", 0.01)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as filler:
        filler.connect(listener.getsockname())
        first = (socket.AF_INET, listener.getsockname())

        async def main() -> Any:
            opened = open_descriptors()
            connecting = await spawn(timed_connect, [first, silent_address, silent_address])
            await until_begun(3, opened)
            listener.accept()[0].close()  # room for the first attempt's retransmitted SYN
            return await connecting.join()

        assert run(main)[1] == listener.getsockname()


def test_all_refused() -> None:
    addresses = [(socket.AF_INET, ("127.0.0.1", closed_port())) for _ in range(3)]
    with pytest.raises(tcp._AllFailed) as caught:
        run(connect_any, addresses)
    assert [address for address, _ in caught.value.attempts] == addresses
    assert all(isinstance(error, ConnectionRefusedError) for _, error in caught.value.attempts)


def test_families_alternate_beginning_with_the_first() -> None:
    v6 = [(socket.AF_INET6, (f"::{n}", 80, 0, 0)) for n in range(3)]
    v4 = [(socket.AF_INET, ("127.0.0.1", 80))]
    assert tcp._interleave([*v6, *v4]) == [v6[0], v4[0], v6[1], v6[2]]
    assert tcp._interleave([*v4, *v6]) == [v4[0], v6[0], v6[1], v6[2]]


def test_ipv6_that_refuses_and_ipv4_that_answers(good_address: Any) -> None:
    refused = (socket.AF_INET6, ("::1", closed_port(), 0, 0))  # or no IPv6 here at all: it fails either way
    assert run(timed_connect, [refused, good_address])[1] == good_address[1]


def test_what_has_begun_in_another_thread_is_gone_on_with(good_address: Any) -> None:
    attempt = begin_connecting(*good_address[1])
    assert attempt is not None
    assert run(connect_host, *good_address[1], attempt) is attempt[0]
    attempt[0].close()


def test_a_name_must_be_looked_up_before() -> None:
    assert begin_connecting("localhost", 80) is None


def test_what_has_begun_and_is_refused_is_told_as_ever() -> None:
    port = closed_port()
    attempt = begin_connecting("127.0.0.1", port)
    assert attempt is not None
    for begun in (attempt, None):
        with pytest.raises(ConnectionFailed, match=f"127.0.0.1 port {port} .127.0.0.1: Connection refused") as caught:
            run(connect_host, "127.0.0.1", port, begun)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert attempt[0].fileno() == -1


@linux_only
def test_what_has_begun_and_is_cancelled_is_closed(silent_address: Any) -> None:
    attempt = begin_connecting(*silent_address[1])
    assert attempt is not None
    with pytest.raises(TaskTimeout):
        run(lambda: before(time.monotonic() + 0.1, connect_host(*silent_address[1], attempt)))
    assert attempt[0].fileno() == -1


def test_what_has_begun_and_is_not_gone_on_with_is_closed(good_address: Any) -> None:
    host, port = good_address[1]
    opening = Opening(parse_url(f"ws://{host}:{port}/"), (), Options(), Trace())
    opening.begin(None)
    assert opening._begun is not None
    opening.abandon()
    assert opening._begun[0].fileno() == -1


@linux_only
@pytest.mark.parametrize("silent", [1, 3])
def test_a_cancelled_race_leaves_nothing(silent: int, silent_address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "ATTEMPT_DELAY", 0.01)

    async def main() -> None:
        opened = open_descriptors()
        with pytest.raises(TaskTimeout):
            await before(time.monotonic() + 0.1, connect_any([silent_address] * silent))
        assert open_descriptors() == opened
        task = await spawn(connect_any, [silent_address] * silent)
        await until_begun(silent, opened)
        assert len(open_descriptors() - opened) == silent
        await task.cancel()
        assert open_descriptors() == opened

    run(main)


@linux_only
def test_a_kernel_that_ends_during_the_race_leaves_nothing(
    silent_address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "ATTEMPT_DELAY", 0.01)

    async def main() -> None:
        opened = open_descriptors()
        await spawn(connect_any, [silent_address] * 3, daemon=True)
        await until_begun(3, opened)

    run(main)


def test_the_second_to_connect_is_closed(good_address: Any) -> None:
    """Both have connected before the race could be called off."""

    async def main() -> None:
        race = tcp._Race()
        await race._attempt(good_address)
        winner, opened = race.winner, open_descriptors()
        await race._attempt(good_address)
        assert race.winner is winner is not None
        assert open_descriptors() == opened
        winner.close()

    run(main)


# ---- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(authority: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context


def tls_echo(context: ssl.SSLContext, size: int) -> Callable[[socket.socket], None]:
    """Echo so many bytes, then close with close_notify."""

    def handle(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(receive_exactly(tls, size))
            with contextlib.suppress(OSError):
                tls.unwrap()

    return handle


def failing_handshake(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def handle(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(1)

    return handle


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_echo(authority: trustme.CA, client_context: ssl.SSLContext, host: str, version: ssl.TLSVersion) -> None:
    context = server_context(authority, host)
    context.maximum_version = version

    async def main(port: int) -> None:
        transport = await open_transport(host, port, tls=client_context)
        handshake = transport.sent
        writer = await spawn(write, transport, BIG)
        assert await read_exactly(transport, len(BIG)) == BIG
        await writer.join()
        assert transport.unsent == 0
        assert transport.sent - handshake > len(BIG)
        assert await transport.receive() == b""
        assert await transport.receive() == b""
        transport.shutdown()
        await transport.close()

    with server(tls_echo(context, len(BIG))) as port:
        run(main, port)


def test_tls_shutdown_sends_close_notify_and_reading_goes_on(
    authority: trustme.CA, client_context: ssl.SSLContext
) -> None:
    context = server_context(authority, "localhost")
    ended: list[bytes] = []

    def handle(sock: socket.socket) -> None:
        # An SSLSocket answers close_notify by itself and sends no more; with BIOs it can be watched.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        pump(sock, incoming, outgoing, tls.do_handshake)
        ended.append(pump(sock, incoming, outgoing, lambda: tls.read(1)))
        tls.write(b"late")
        sock.sendall(outgoing.read())

    async def main(port: int) -> None:
        transport = await open_transport("localhost", port, tls=client_context)
        transport.shutdown()
        assert await transport.receive() == b"late"
        assert await transport.receive() == b""
        await transport.close()

    with server(handle) as port:
        run(main, port)
    assert ended == [b""]


def pump(sock: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, step: Callable[[], Any]) -> Any:
    while True:
        try:
            result = step()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(1 << 16))
        else:
            sock.sendall(outgoing.read())
            return result


@pytest.mark.parametrize("data", [b"", b"the last words"])
def test_tls_cut_without_close_notify_is_the_end(
    authority: trustme.CA, client_context: ssl.SSLContext, data: bytes
) -> None:
    context = server_context(authority, "localhost")

    def handle(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(data)

    async def main(port: int) -> None:
        transport = await open_transport("localhost", port, tls=client_context)
        assert await read_exactly(transport, 1000) == data
        assert await transport.receive() == b""
        await transport.close()

    with server(handle) as port:
        run(main, port)


def test_data_before_a_garbled_record_is_delivered(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    context = server_context(authority, "localhost")

    def handle(sock: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        pump(sock, incoming, outgoing, tls.do_handshake)
        tls.write(b"good")
        sock.sendall(outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
        receive_exactly(sock, 1000)  # the alert

    async def main(port: int) -> None:
        transport = await open_transport("localhost", port, tls=client_context)
        assert await transport.receive() == b"good"
        with pytest.raises(ssl.SSLError):
            await transport.receive()
        await transport.close()

    with server(handle) as port:
        run(main, port)


def test_answers_to_the_peer_that_the_os_does_not_take_are_reported(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair

    def with_output() -> TLS:
        tls = TLS(ssl.create_default_context(), "localhost")
        assert not tls.handshake()
        assert tls.outgoing.pending
        return tls

    async def main() -> None:
        transport = Transport(ours)
        calls: list[int] = []
        transport.tell_unsent(lambda: calls.append(transport.unsent))
        transport._tls = with_output()
        transport._send_tls_answers()
        assert calls == []
        assert transport.sent > 0
        transport._tls = None
        transport.send(8 * BIG)
        sent = -1
        while transport.sent > sent:  # until the OS takes nothing more
            sent = transport.sent
            assert not transport.flush()
        transport._tls = with_output()
        transport._send_tls_answers()
        assert calls == [transport.unsent]
        await transport.close()

    run(main)


def failure(port: int, context: ssl.SSLContext, host: str = "localhost") -> str:
    with pytest.raises(TLSError) as caught:
        run(lambda: open_transport(host, port, tls=context))
    assert isinstance(caught.value.__cause__, OSError)
    message = str(caught.value)
    assert host in message
    assert "CERT_NONE" not in message
    return message


def test_unknown_issuer(authority: trustme.CA) -> None:
    with server(failing_handshake(server_context(authority, "localhost"))) as port:
        assert "ssl=ssl.create_default_context(cafile='ca.pem')" in failure(port, default_tls_context())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_wrong_host(authority: trustme.CA, client_context: ssl.SSLContext, host: str) -> None:
    context = server_context(authority, "other.example", "10.9.8.7")
    with server(failing_handshake(context)) as port:
        message = failure(port, client_context, host)
    assert "mismatch" in message
    assert "connect by a name that is in the certificate: other.example, 10.9.8.7" in message


def test_expired(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    context = server_context(
        authority, "localhost", not_before=yesterday - datetime.timedelta(days=1), not_after=yesterday
    )
    with server(failing_handshake(context)) as port:
        message = failure(port, client_context)
    assert "expired" in message
    assert "must be renewed" in message


def test_a_server_that_does_not_speak_tls(client_context: ssl.SSLContext) -> None:
    def handle(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with server(handle) as port:
        message = failure(port, client_context)
    assert f"does not speak TLS on port {port}" in message
    assert "use ws://" in message


def test_no_tls_version_in_common(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    context = server_context(authority, "localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    modern = ssl.create_default_context()
    authority.configure_trust(modern)
    modern.minimum_version = ssl.TLSVersion.TLSv1_3
    with server(failing_handshake(context)) as port:
        assert "no TLS version in common" in failure(port, modern)


def test_cut_during_the_handshake(client_context: ssl.SSLContext) -> None:
    def handle(sock: socket.socket) -> None:
        receive_exactly(sock, 100)

    with server(handle) as port:
        message = failure(port, client_context)
    assert "during the TLS handshake" in message


def test_reset_during_the_handshake(client_context: ssl.SSLContext) -> None:
    def handle(sock: socket.socket) -> None:
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with server(handle) as port:
        assert "during the TLS handshake: Connection reset" in failure(port, client_context)


def test_cancelled_during_the_handshake(client_context: ssl.SSLContext) -> None:
    released, in_handshake = threading.Event(), threading.Event()

    def handle(sock: socket.socket) -> None:
        sock.recv(1)
        in_handshake.set()
        assert released.wait(PATIENCE)

    async def attempt(port: int) -> None:
        await open_transport("127.0.0.1", port, tls=client_context)

    async def main(port: int) -> None:
        task = await spawn(attempt, port)
        while not in_handshake.is_set():
            await sleep(0)
        opened = open_descriptors()
        await task.cancel()
        assert len(opened - open_descriptors()) == 1

    with server(handle) as port:
        try:
            run(main, port)
        finally:
            released.set()


def test_a_trailing_dot_is_not_part_of_the_certificates_name(
    authority: trustme.CA, client_context: ssl.SSLContext
) -> None:
    async def main(port: int) -> None:
        transport = await open_transport("127.0.0.1", port, tls=None)  # not every resolver knows "localhost."
        await transport.start_tls(client_context, "localhost.", port)
        await transport.close()

    with server(failing_handshake(server_context(authority, "localhost"))) as port:
        run(main, port)


def test_the_default_context_verifies_and_is_made_once() -> None:
    context = default_tls_context()
    assert context is default_tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_the_message_for_a_private_ca_works(authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    async def main(port: int) -> None:
        transport = await open_transport("localhost", port, tls=context)
        await write(transport, b"ok")
        assert await read_exactly(transport, 2) == b"ok"
        await transport.close()

    with server(tls_echo(server_context(authority, "localhost"), 2)) as port:
        run(main, port)


class FailingTLS:
    """Encrypts by adding a mark, until it fails, as OpenSSL does after the end of the server's stream."""

    def __init__(self) -> None:
        self.outgoing = ssl.MemoryBIO()
        self.fails = False

    def encrypt(self, data: memoryview) -> int:
        if self.fails:
            raise ssl.SSLEOFError("EOF occurred in violation of protocol")
        self.outgoing.write(b"*" + data)
        return len(data)

    def take_output(self, size: int) -> bytes:
        return self.outgoing.read(size)


def test_what_was_given_away_before_tls_failed_counts_as_taken() -> None:
    """Else a ReconnectingWebSocket sends it again."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport, tls, batch = Transport(ours), FailingTLS(), b"a message"
        transport._tls = tls  # type: ignore[assignment]
        assert transport.flush(batch, 1)
        assert theirs.recv(100) == b"*a message"
        tls.outgoing.write(b"an alert")
        tls.fails = True
        transport.send(b"a Close frame")
        with pytest.raises(ssl.SSLEOFError):
            transport.flush()
        assert transport.taken_of(batch, 1) == len(batch)


def test_what_tls_failed_to_encrypt_does_not_count_as_taken() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport, tls, batch = Transport(ours), FailingTLS(), b"a message"
        transport._tls = tls  # type: ignore[assignment]
        tls.outgoing.write(b"an alert")
        tls.fails = True
        with pytest.raises(ssl.SSLEOFError):
            transport.flush(batch, 1)
        assert transport.taken_of(batch, 1) == 0
