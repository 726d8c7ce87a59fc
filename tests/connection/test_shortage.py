"""When the system gives no more descriptors or threads, and interpreters that cannot have a thread of ours.

Every test runs a script in an interpreter of its own (see test_process.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from threading import get_ident
from time import monotonic
from typing import Any

import pytest
from holding import held_loop
from peers import LIMIT, echo_server
from test_process import READY, check_quiet, run

from nwebsocket import ConnectionClosed, WaitTimeout, WebSocket, connect
from nwebsocket._connection import sender, writer
from nwebsocket._connection.writer import Writer
from nwebsocket._protocol.fast_lane import ENABLED, FastLane

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

DESCRIPTORS = """
import gc, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def take_all(but):
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(but):
        os.close(held.pop())
    return held

def converse():
    with connect(sys.argv[1]) as ws:
        ws.send("x")
        assert ws.recv(10) == "x"
"""


@needs_proc
def test_no_descriptor_for_another_socket(tmp_path: Path) -> None:
    with echo_server() as server:
        ran = run(
            tmp_path,
            DESCRIPTORS
            + """
converse()
before = descriptors()
held = take_all(0)
try:
    connect(sys.argv[1])
except ConnectionFailed as error:
    print(str(error).partition(" (")[2])
for descriptor in held:
    os.close(descriptor)
assert descriptors() == before, descriptors()
converse()
"""
            + READY,
            server.url,
        )
    check_quiet(ran, within=2)
    assert ran.out == "127.0.0.1: Too many open files)\n"


@needs_proc
@pytest.mark.parametrize("left", [0, 3, 5, 6])
def test_few_descriptors_for_the_first_socket(tmp_path: Path, left: int) -> None:
    """Those that the loop thread needs are there, or the constructor says so; the thread does not crash."""
    with echo_server() as server:
        ran = run(
            tmp_path,
            DESCRIPTORS
            + """
import nwebsocket._connection.opening, nwebsocket._connection.session
before = descriptors()
held = take_all(int(sys.argv[2]))
try:
    connect(sys.argv[1]).close()
    print("open")
except OSError as error:
    print(type(error).__name__, error)
for descriptor in held:
    os.close(descriptor)
gc.collect()
converse()
"""
            + READY,
            server.url,
            str(left),
        )
    check_quiet(ran, within=2)
    if left < 6:
        text = "OSError [Errno 24] the background thread for all WebSockets cannot be started: Too many open files\n"
        assert ran.out == text
    else:
        assert ran.out == "open\n"


NO_THREADS = """
import gc
STARTERS = [name for name in ("_start_new_thread", "_start_joinable_thread") if hasattr(threading, name)]

class NoThreads:
    def __enter__(self):
        self.starters = {name: getattr(threading, name) for name in STARTERS}
        for name in STARTERS:
            setattr(threading, name, self.refuse)
    def refuse(self, *_, **__):
        raise RuntimeError("can't start new thread")
    def __exit__(self, *_):
        for name, function in self.starters.items():
            setattr(threading, name, function)

no_threads = NoThreads()
"""


def test_no_thread_for_the_loop(tmp_path: Path) -> None:
    with echo_server() as server:
        ran = run(
            tmp_path,
            NO_THREADS
            + """
with no_threads:
    try:
        WebSocket(sys.argv[1])
    except RuntimeError as error:
        print(error)
gc.collect()
with connect(sys.argv[1]) as ws:
    ws.send("x")
    assert ws.recv(10) == "x"
"""
            + READY,
            server.url,
        )
    check_quiet(ran, within=2)
    assert ran.out == "the background thread for all WebSockets cannot be started: can't start new thread\n"


def test_no_thread_for_callbacks_nor_for_asking(tmp_path: Path) -> None:
    """Callbacks run on the loop thread then, and a socket that comes back goes on trying."""
    with echo_server() as server:
        ran = run(
            tmp_path,
            NO_THREADS
            + """
from nwebsocket._connection import backoff
backoff.FIRST_DELAY = backoff.MAX_DELAY = 0.01
with connect(sys.argv[1]):
    pass
with no_threads:
    heard = threading.Event()
    ws = WebSocket(sys.argv[1])
    ws.onmessage = lambda message: heard.set()
    ws.wait_open(10).send("x")
    assert heard.wait(10)
    ws.close()
    ws.wait_closed(10)
    class Back(ReconnectingWebSocket):
        failures = 0
        several = threading.Event()
        def onerror(self, error):
            self.failures += 1
            if self.failures == 3:
                self.several.set()
    back = Back(sys.argv[1], callbacks="loop")
    assert back.several.wait(10)
back.wait_open(10).send("kept")
assert back.recv(10) == "kept"
back.close()
back.wait_closed(10)
"""
            + READY,
            server.url,
        )
    assert (ran.code, ran.out) == (0, "")
    lines = set(ran.err.splitlines())
    assert lines == {
        "no thread can be started for callbacks: they run on the loop thread",
        "should_reconnect() cannot be asked, it goes on: can't start new thread",
    }


SUB_INTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if hasattr(interpreters, "new_config"):
    made = interpreters.create(sys.argv[2])
else:
    made = interpreters.create(isolated=sys.argv[2] == "isolated")
code = f'''
import sys
sys.path[:] = {sys.path!r}
import nwebsocket
try:
    nwebsocket.connect({sys.argv[1]!r})
except RuntimeError as error:
    print(error, flush=True)
'''
interpreters.run_string(made, code)
interpreters.destroy(made)
with connect(sys.argv[1]):
    print("the main one works")
"""


crashes = pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="3.12 crashes when an isolated interpreter ends")


@pytest.mark.parametrize("kind", [pytest.param("isolated", marks=crashes), "legacy"])
def test_a_sub_interpreter_is_refused(tmp_path: Path, kind: str) -> None:
    with echo_server() as server:
        ran = run(tmp_path, SUB_INTERPRETER + READY, server.url, kind)
    assert ran.out.splitlines() == [
        "nwebsocket works in the main interpreter only, not in a sub-interpreter "
        "(mod_wsgi: set WSGIApplicationGroup to %{GLOBAL})",
        "the main one works",
    ]
    check_quiet(ran, within=2)


@pytest.mark.skipif(not ENABLED, reason="without the fast lane only the loop thread makes frames")
@pytest.mark.parametrize("compression", ["deflate", None])
def test_without_memory_for_a_frame_send_raises_and_nothing_is_sent(
    compression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with echo_server() as server, connect(server.url, compression=compression) as ws:
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_framed", no_memory)
            patch.setattr(writer, "frame_of", no_memory)
            with pytest.raises(MemoryError):
                ws.send("x")
        assert ws.bufferedAmount == 0
        ws.send("y")
        assert ws.recv(LIMIT) == "y"
        assert ws.stats.messages_sent == 1


@pytest.mark.parametrize("compression", ["deflate", None])
def test_without_memory_for_a_frame_on_the_loop_the_connection_ends_and_says_why(
    compression: Any, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    def twice(message: str) -> None:
        monkeypatch.setattr(Writer, "_framed", no_memory)
        ws._nwebsocket.bridge.sender._written_at = monotonic()  # so it comes at once after the last one, and waits
        ws.send(message)

    with echo_server() as server:
        ws = WebSocket(server.url, callbacks="loop", compression=compression).wait_open(LIMIT)
        errors: list[Exception] = []
        ws.onerror = errors.append
        ws.onmessage = twice
        monkeypatch.setattr(sender, "_PAUSE", LIMIT)
        ws.send("to be echoed")
        ws.wait_closed(LIMIT)
    assert "MemoryError" in str(errors[0])
    assert {record.exc_info[0] for record in log.errors()} == {MemoryError}


@pytest.mark.skipif(not ENABLED, reason="without the fast lane only the loop thread makes frames")
@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("size", [1, 100_000])
def test_without_memory_for_a_frame_of_what_was_accepted_the_loop_tries_again(
    compression: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def framed(writer: Writer, messages: Any) -> Any:
        if get_ident() == this_thread:
            raise MemoryError
        return frame(writer, messages)

    this_thread, frame, message = get_ident(), Writer._framed, "x" * size
    with echo_server() as server, connect(server.url, compression=compression) as ws:
        ws.send("first")
        assert ws.recv(LIMIT) == "first"
        monkeypatch.setattr(Writer, "_framed", framed)
        monkeypatch.setattr(sender, "_PAUSE", LIMIT)  # so the next is accepted, to be written with what follows it
        with held_loop():
            ws.send(message)
            with pytest.raises(WaitTimeout):
                ws.recv(0.01)
        assert ws.recv(LIMIT) == message
        assert ws.stats.messages_sent == 2


@pytest.mark.skipif(not ENABLED, reason="without the fast lane only the loop thread reads")
@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("everywhere", [False, True])
def test_without_memory_for_a_message_the_loop_tries_again_and_says_why(
    compression: Any, everywhere: bool, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    def take_whole(lane: FastLane, *args: Any, **options: Any) -> int:
        nonlocal tried
        if everywhere or get_ident() == this_thread:
            tried += get_ident() == this_thread
            raise MemoryError
        return take(lane, *args, **options)

    this_thread, take, tried = get_ident(), FastLane.take_whole, 0
    with echo_server() as server, connect(server.url, compression=compression) as ws:
        bridge = ws._nwebsocket.bridge
        while bridge.reader is None or not bridge.reader.lent:
            ws.send("first")
            assert ws.recv(LIMIT) == "first"
        monkeypatch.setattr(FastLane, "take_whole", take_whole)
        ws.send("second")
        if everywhere:
            with pytest.raises(ConnectionClosed, match="MemoryError"):
                ws.recv(LIMIT)
            assert {record.exc_info[0] for record in log.errors()} == {MemoryError}
        else:
            assert ws.recv(LIMIT) == "second"
    assert tried


def no_memory(*_: object, **__: object) -> bytes:
    raise MemoryError
