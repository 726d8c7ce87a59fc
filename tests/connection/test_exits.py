"""Ways out of callbacks and of the process, signals, and clocks that jump.

Every test but the last runs a script in an interpreter of its own (see test_process.py).
"""

from __future__ import annotations

import ast
import signal
from pathlib import Path

import pytest
from peers import CLOSE, LIMIT, Peer, RawServer, echo_server
from test_process import Recorder, check_quiet, needs_fork, run

import nwebsocket

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no such signals")
GOING_AWAY = (CLOSE, (1001).to_bytes(2, "big"))


def accept_only(peer: Peer) -> None:
    peer.accept()
    peer.read_eof()


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("exception", ["SystemExit(3)", "MemoryError()", "KeyboardInterrupt()", "GeneratorExit()"])
def test_no_exception_in_a_callback_ends_anything(tmp_path: Path, callbacks: str, exception: str) -> None:
    """sys.exit() there ends a thread, if anything, as in any other thread of Python's."""
    with echo_server() as server:
        ran = run(
            tmp_path,
            """
            heard = threading.Event()
            def onmessage(message):
                if message == "bad":
                    raise EXCEPTION
                heard.set()
            ws = WebSocket(sys.argv[1], callbacks=sys.argv[2])
            ws.onmessage = onmessage
            ws.wait_open(10).send("bad")
            ws.send("good")
            assert heard.wait(10)
            ws.close()
            assert ws.wait_closed(10).wasClean
            print("READY", flush=True)
            """.replace("EXCEPTION", exception),
            server.url,
            callbacks,
        )
    assert ran.code == 0
    assert ran.err.startswith("exception in the handler onmessage of WebSocket\nTraceback")
    assert ran.err.count("Traceback") == 1
    assert exception.partition("(")[0] in ran.err.splitlines()[-1]


@pytest.mark.parametrize("where", ["in a callback", "in the main thread"])
def test_os_exit_is_immediate(tmp_path: Path, where: str) -> None:
    with RawServer(accept_only) as server:
        ran = run(
            tmp_path,
            """
            def leave():
                print("READY", flush=True)
                os._exit(7)
            ws = WebSocket(sys.argv[1])
            if sys.argv[2] == "in a callback":
                ws.onopen = leave
                time.sleep(10)
            ws.wait_open(10)
            leave()
            """,
            server.url,
            where,
        )
    assert (ran.code, ran.err) == (7, "")
    assert ran.exit_time < 1


@needs_fork
def test_a_fork_before_the_first_socket(tmp_path: Path) -> None:
    with echo_server() as server:
        ran = run(
            tmp_path,
            """
            pid = os.fork()
            with connect(sys.argv[1]) as ws:
                ws.send("x")
                assert ws.recv(10) == "x"
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                print("READY", flush=True)
            """,
            server.url,
        )
    check_quiet(ran, within=2)


@needs_signals
@pytest.mark.parametrize("handler", ["sys.exit(0)", "ws.close(1000); ws.wait_closed(5); sys.exit(0)", None])
def test_sigterm(tmp_path: Path, handler: str | None) -> None:
    """With a handler the process says goodbye; without one it is gone at once, as any other."""
    recorder = Recorder()
    lines = [
        "import signal",
        "ws = connect(sys.argv[1])",
        f"signal.signal(signal.SIGTERM, lambda *_: [{handler.replace(';', ',')}])" if handler else "",
        "def terminate():",
        "    print('READY', flush=True)",
        "    os.kill(os.getpid(), signal.SIGTERM)",
        "threading.Timer(0.1, terminate).start()",
        "ws.recv()",
    ]
    script = recorder if handler else accept_only
    with RawServer(script) as server:
        ran = run(tmp_path, "\n".join(lines), server.url)
        if handler:
            expected = GOING_AWAY if handler == "sys.exit(0)" else (CLOSE, (1000).to_bytes(2, "big"))
            assert recorder.frames.get(timeout=LIMIT)[-1] == expected
    assert ran.err == ""
    assert ran.code == (0 if handler else -signal.SIGTERM)
    assert ran.exit_time < 2


def test_a_system_clock_that_jumps(tmp_path: Path) -> None:
    """A day forth and back: no time-out comes earlier or later for it."""
    with echo_server() as server:
        ran = run(
            tmp_path,
            """
            real, offset = time.time, 0.0
            time.time = lambda: real() + offset
            ws = connect(sys.argv[1], ping_interval=0.05, ping_timeout=5)
            for offset in (86400.0, -86400.0, 0.0):
                assert 0 <= ws.ping(5) < 5
                began = time.monotonic()
                try:
                    ws.recv(0.1)
                except WaitTimeout:
                    pass
                assert 0.1 <= time.monotonic() - began < 2
                ws.send("x")
                assert ws.recv(5) == "x"
            ws.close()
            assert ws.wait_closed(5).wasClean
            print("READY", flush=True)
            """,
            server.url,
        )
    check_quiet(ran, within=2)


def test_only_the_monotonic_clock_is_used() -> None:
    """But for the one place that compares with a date that a server has sent, in Retry-After, and for what is shown."""
    shown = {"main", "card", "format", "record"}
    found = set()
    for path in Path(nwebsocket.__file__).parent.rglob("*.py"):
        if path.stem in shown:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                found |= {(path.stem, alias.name) for alias in node.names if alias.name != "monotonic"}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                found |= {(path.stem, node.attr)} - {(path.stem, "monotonic")}
    assert found == {("supervisor", "time")}, found
