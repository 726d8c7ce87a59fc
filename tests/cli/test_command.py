"""The command `nwebsocket` in pipes: what goes in and out, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import command
import peers
import pytest
from command import read_line, run, started

QUICK = "--wait=0.2"


def accepting(script: Callable[[peers.Peer], object]) -> peers.RawServer:
    """A server that accepts the handshake, and then follows the script."""

    def accept(peer: peers.Peer) -> None:
        peer.accept()
        script(peer)

    return peers.RawServer(accept)


def answering_pings(peer: peers.Peer) -> Callable[[], peers.Frame]:
    """What returns the peer's next frame but for its pings, which it answers."""

    def read() -> peers.Frame:
        while (frame := peer.read_frame()).opcode == peers.PING:
            peer.send(peers.pong(frame.payload))
        return frame

    return read


def closing(code: int | None = None, reason: str = "") -> peers.RawServer:
    def close(peer: peers.Peer) -> None:
        peer.send(peers.close_frame(code, reason))
        peer.read_until_close()

    return accepting(close)


def feed(peer: peers.Peer) -> None:
    """Send news as long as they are taken."""
    with contextlib.suppress(ConnectionError):
        while True:
            peer.send(peers.text("news"))


# --- messages in and out


def test_every_line_is_sent_and_every_answer_written(echo: str) -> None:
    long = b"x" * 2**20
    done = run(QUICK, echo, stdin=b"a\n\n\xc3\xa9\r\n" + long + b"\nlast")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"a\n\n\xc3\xa9\r\n" + long + b"\nlast\n"


@pytest.mark.slow
def test_an_answer_that_takes_its_time_is_waited_for() -> None:
    """The silence is counted from when the server has everything, which its pong says."""

    def slowly(peer: peers.Peer) -> None:
        peer.read_frame()
        ping = peer.read_frame()
        threading.Event().wait(0.5)  # a slow line, not an event that one could wait for
        peer.send(peers.pong(ping.payload) + peers.text("answer"))
        peer.read_until_close()

    with accepting(slowly) as server:
        done = run("--wait", "0.3", server.url, stdin=b"query\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"answer\n", b"")


@pytest.mark.slow
def test_wait_0_closes_at_once_and_after_all_is_sent() -> None:
    frames: list[peers.Frame] = []
    with accepting(lambda peer: frames.extend(peer.read_until_close())) as server:
        run("--wait=0", "--no-compression", server.url, stdin=b"a\nb\n")
    assert [frame.payload for frame in frames] == [b"a", b"b", (1000).to_bytes(2, "big")]


@pytest.mark.slow
def test_wait_inf_listens_until_the_server_closes() -> None:
    def news(peer: peers.Peer) -> None:
        threading.Event().wait(0.1)
        peer.send(peers.text("news") + peers.close_frame(1001, "bye"))
        peer.read_until_close()

    with accepting(news) as server:
        done = run("--wait=inf", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"news\n", b"")


def test_a_message_is_written_at_once(echo: str) -> None:
    with started(echo) as process:
        assert process.stdin is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            assert read_line(process) == line


@pytest.mark.slow
def test_json_and_binary(echo: str) -> None:
    done = run(QUICK, "--json", "--binary", echo, stdin=b"\xff\n")
    (line,) = done.stdout.splitlines()
    message = json.loads(line)
    assert (message["type"], message["data"]) == ("binary", "/w==")
    assert message["time"].endswith("Z")
    assert run(QUICK, "--binary", echo, stdin=b"\xff\x00\n").stdout == b"\xff\x00\n"


@pytest.mark.slow
def test_what_is_no_utf_8_ends_the_input(echo: str) -> None:
    done = run(QUICK, echo, stdin=b"good\nb\xffd\nnever sent\n")
    assert (done.returncode, done.stdout) == (1, b"good\n")
    assert done.stderr == (
        b"nwebsocket: line 2 of standard input is not UTF-8 (byte 0xff at position 2); "
        b"with --binary it is sent as it is\n"
    )


# --- a single query


def test_once() -> None:
    def answer(connection: peers.Connection) -> None:
        connection.send(f"answer to {connection.recv()!r}")
        connection.send("not the first one")

    with peers.echo_server(handler=answer) as server:
        done = run("--once", server.url, '{"type": "users"}')
        assert (done.returncode, done.stdout, done.stderr) == (0, b"answer to '{\"type\": \"users\"}'\n", b"")


@pytest.mark.slow
def test_once_with_all_of_the_input() -> None:
    with peers.echo_server(handler=lambda connection: connection.send(f"answer to {connection.recv()!r}")) as server:
        assert run("--once", server.url, stdin=b"{\n}\n").stdout == b"answer to '{\\n}'\n"
        assert run("--once", "--binary", server.url, stdin=b"\xff\n").stdout == b"answer to b'\\xff\\n'\n"


@pytest.mark.slow
def test_once_without_an_answer() -> None:
    with accepting(lambda peer: peer.read_until_close()) as server:
        done = run("--once", "--wait=0.1", server.url, "query")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"nwebsocket: no message from {server.url} within 0.1 s\n".encode()
    with closing(1000, "no") as server:
        done = run("--once", server.url, "query")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"nwebsocket: ")
    assert done.stderr.count(b"\n") == 1


# --- how it ends


@pytest.mark.parametrize(("code", "status"), [pytest.param(1000, 0, marks=pytest.mark.slow), (None, 0), (4000, 1)])
def test_the_server_closes_first(code: int | None, status: int) -> None:
    with closing(code, "" if code is None else "so \x1b[31mthere") as server, started(server.url) as process:
        assert process.wait(command.LIMIT) == status
        assert process.stderr is not None
        told = process.stderr.read().decode()
    expected = f"nwebsocket: {server.url}: closed by the server, {code}: so \\x1b[31mthere\n"
    assert told == (expected if status else "")


@pytest.mark.slow
def test_a_connection_that_is_cut() -> None:
    with accepting(lambda peer: peer.end()) as server:
        done = run("--wait=inf", server.url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"nwebsocket: {server.url}: the server ended the connection without a Close frame\n".encode()


@pytest.mark.slow
def test_a_server_that_closes_before_all_is_sent() -> None:
    def close_soon(peer: peers.Peer) -> None:
        peer.read_frame()
        peer.send(peers.close_frame(1000, "enough"))
        peer.read_until_close()

    with accepting(close_soon) as server, started("--no-compression", server.url) as process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            while True:
                process.stdin.write(b"y\n" * 1000)
        assert process.wait(command.LIMIT) == 1
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert told == f"nwebsocket: {server.url}: closed by the server, 1000 (normal closure): enough, before all of " + (
        "the input was sent\n"
    )


def test_nobody_listens() -> None:
    with peers.refusing_address() as (host, port):
        done = run(f"{host}:{port}", stdin=b"a\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (
        f"nwebsocket: ws://{host}:{port}/: cannot connect to {host} port {port} ({host}: Connection refused)\n".encode()
    )


def test_a_wrong_command_line() -> None:
    done = run("ftp://example.org/")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"nwebsocket: invalid URL 'ftp://example.org/'")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_close_politely(number: signal.Signals) -> None:
    frames: list[peers.Frame] = []

    def script(peer: peers.Peer) -> None:
        peer.send(peers.text("ready"))
        frames.extend(peer.read_until_close())
        peer.send(peers.close_frame(1000))

    with accepting(script) as server, started(server.url) as process:
        assert read_line(process) == b"ready\n"
        process.send_signal(number)
        assert process.wait(command.LIMIT) == -number
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert frames[-1].payload == (1000).to_bytes(2, "big")


def test_a_broken_pipe_ends_it_quietly() -> None:
    with accepting(feed) as server, started(server.url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert read_line(process) == b"news\n"
        process.stdout.close()
        assert process.wait(command.LIMIT) == -signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(select, "poll"), reason="the system does not tell that a pipe has lost its reader")
def test_nobody_reads_any_more_and_nothing_was_left_to_write(echo: str) -> None:
    with started("--wait=inf", echo) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"a\n")
        assert read_line(process) == b"a\n"
        process.stdout.close()
        assert process.wait(command.LIMIT) == 0
        assert process.stderr.read() == b""


@pytest.mark.slow
def test_the_shell_sees_what_it_should(echo: str) -> None:
    script = """
        set -o pipefail
        printf 'a\\nb\\n' | $NWEBSOCKET $ECHO; echo $?
        printf 'a\\n' | $NWEBSOCKET $ECHO | head -1; echo $?
        $NWEBSOCKET $FEED | head -1; echo $?
    """
    with accepting(feed) as server:
        command_line = f"{sys.executable} -m nwebsocket {QUICK}"
        environment = {**os.environ, "NWEBSOCKET": command_line, "ECHO": echo, "FEED": server.url}
        done = subprocess.run(["bash", "-c", script], capture_output=True, env=environment, timeout=command.LIMIT)
    assert done.stdout.split() == [b"a", b"b", b"0", b"a", b"0", b"news", b"141"]
    assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("what", ["messages", "help"])
def test_a_full_disk(echo: str, what: str) -> None:
    with open("/dev/full", "wb") as full:
        arguments = ["--help"] if what == "help" else ["--once", echo, "a"]
        done = subprocess.run(
            [sys.executable, "-m", "nwebsocket", *arguments], stdout=full, stderr=subprocess.PIPE, timeout=command.LIMIT
        )
    assert (done.returncode, done.stderr) == (1, b"nwebsocket: standard output: No space left on device\n")


@pytest.mark.slow
def test_descriptors_that_are_closed(echo: str) -> None:
    script = "$NWEBSOCKET <&-; echo $?; $NWEBSOCKET </dev/null 2>&1 >&-; echo $?; $NWEBSOCKET </dev/null 2>&-; echo $?"
    environment = {**os.environ, "NWEBSOCKET": f"{sys.executable} -m nwebsocket {QUICK} {echo}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=environment, timeout=command.LIMIT)
    assert done.stdout == b"0\nnwebsocket: standard output is closed\n1\n0\n"
    assert done.stderr == b""


# --- who cannot write does not receive, and who cannot send does not read


@pytest.mark.slow
def test_input_is_not_read_while_the_server_does_not_read() -> None:
    def stall(peer: peers.Peer) -> None:
        peer.send(peers.text("ready"))
        peer.stall()

    with accepting(stall) as server, started("--no-compression", server.url) as process:
        assert read_line(process) == b"ready\n"
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        taken = 0
        while select.select([], [process.stdin], [], 1.0)[1]:
            taken += process.stdin.write(b"x" * 1023 + b"\n") or 0
            assert taken < 80 * 2**20
        process.terminate()
        assert process.wait(command.LIMIT) == -signal.SIGTERM
    assert taken > 2**20


@pytest.mark.slow
def test_the_server_feels_that_nobody_reads() -> None:
    sent, blocked = [0], threading.Event()
    message = peers.text("x" * 10_000)

    def flood(peer: peers.Peer) -> None:
        sock = peer._sock
        while select.select([], [sock], [], 1.0)[1]:
            sock.sendall(message)
            sent[0] += 1
            assert sent[0] < 20_000
        blocked.set()
        peer.send(peers.close_frame(1000))
        peer.read_until_close()

    with accepting(flood) as server, started("--wait=inf", server.url) as process:
        assert blocked.wait(command.LIMIT)
        received = len(process.communicate()[0])
        assert process.wait(command.LIMIT) == 0
    assert received == 10_001 * sent[0]


# --- a connection that comes back


@pytest.mark.slow
def test_reconnect() -> None:
    frames: list[peers.Frame] = []

    def script(peer: peers.Peer) -> None:
        peer.accept()
        read = answering_pings(peer)
        if peer.number == 0:
            peer.send(peers.text("first"))
            peer.reset()
            return
        peer.send(peers.text("second"))
        while (frame := read()).opcode != peers.CLOSE:
            frames.append(frame)
        peer.send(peers.close_frame(1000))

    with peers.RawServer(script) as server, started(QUICK, "--reconnect", "--no-compression", server.url) as process:
        assert read_line(process) == b"first\n"
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"kept\n")
        process.stdin.close()
        assert read_line(process) == b"second\n"
        assert process.wait(command.LIMIT) == 0
        lost, back = process.stderr.read().decode().splitlines()
    assert [frame.payload for frame in frames] == [b"kept"]
    why = "the connection was lost: Connection reset by peer; next attempt in "
    assert lost.startswith(f"nwebsocket: {server.url}: {why}")
    assert back == f"nwebsocket: {server.url}: connected again"
