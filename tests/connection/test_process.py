"""The process around the connections: its exit, fork, multiprocessing, and what the import does to it.

Every test runs a script in an interpreter of its own, with a limit on its time.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peers import CLOSE, LIMIT, Peer, RawServer, close_frame, dead_address, echo_server, frame, text

import nwebsocket

SOURCE = str(Path(nwebsocket.__file__).parents[1])
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")


class Ran(NamedTuple):
    """A script that has ended, and how long it took from its line "READY" on (seconds)."""

    code: int
    out: str
    err: str
    exit_time: float


def run(tmp_path: Path, script: str, *arguments: str, options: tuple[str, ...] = ()) -> Ran:
    """Run `script`, which may print what the test wants to see and then "READY"."""
    file = tmp_path / "script.py"
    file.write_text("import sys, os, time, threading\nfrom nwebsocket import *\n" + textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    process = subprocess.Popen(
        [sys.executable, *options, str(file), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    timer = threading.Timer(2 * LIMIT, process.kill)
    timer.start()
    assert process.stdout is not None
    lines = []
    ready = time.monotonic()
    for line in process.stdout:
        if line == "READY\n":
            ready = time.monotonic()
        else:
            lines.append(line)
    _, err = process.communicate()
    exit_time = time.monotonic() - ready
    timer.cancel()
    return Ran(process.returncode, "".join(lines), err, exit_time)


def check_quiet(ran: Ran, *, within: float) -> None:
    """The script has ended well, in time, and without a word of complaint."""
    assert ran.err == ""
    assert ran.code == 0
    assert ran.exit_time < within


BOUND = 5.0
"""Seconds for an exit that waits for servers: 2 are promised, and the rest is the machine's, which may be busy. What
goes wrong takes 10 (`close_timeout`), or for ever.
"""

READY = 'print("READY", flush=True)\n'


# --- Exit


class Recorder:
    """A server's script: notes the frames up to the Close frame, answers that, and notes what comes after it."""

    def __init__(self, *, answer: bool = True) -> None:
        self.answer = answer
        self.frames: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        frames = peer.read_until_close()
        self.frames.put([(received.opcode, received.payload) for received in frames])
        if self.answer:
            peer.send(frame(CLOSE, frames[-1].payload))
        assert peer.read_eof() == b""


def test_a_script_that_forgets_close_says_goodbye_after_its_messages(tmp_path: Path) -> None:
    recorder = Recorder()
    with RawServer(recorder) as server:
        ran = run(
            tmp_path,
            """
            ws = connect(sys.argv[1], compression=None)
            for number in range(1000):
                ws.send(str(number))
            print("READY", flush=True)
            """,
            server.url,
        )
        frames = recorder.frames.get(timeout=LIMIT)
    check_quiet(ran, within=1)
    assert [payload for _, payload in frames[:-1]] == [str(number).encode() for number in range(1000)]
    assert frames[-1] == (CLOSE, (1001).to_bytes(2, "big"))


@pytest.mark.parametrize("how", ["sys.exit()", "sys.exit(0)", "raise SystemExit", "del ws"])
def test_other_ways_to_leave(tmp_path: Path, how: str) -> None:
    recorder = Recorder()
    with RawServer(recorder) as server:
        ran = run(
            tmp_path,
            f"""
            ws = connect(sys.argv[1], compression=None)
            ws.onmessage = print
            ws.send("last words")
            print("READY", flush=True)
            {how}
            """,
            server.url,
        )
        assert [payload for _, payload in recorder.frames.get(timeout=LIMIT)] == [b"last words", b"\x03\xe9"]
    check_quiet(ran, within=1)


def test_an_uncaught_exception_says_goodbye_too(tmp_path: Path) -> None:
    recorder = Recorder()
    with RawServer(recorder) as server:
        ran = run(tmp_path, "ws = connect(sys.argv[1])\n1 / 0", server.url)
        assert len(recorder.frames.get(timeout=LIMIT)) == 1
    assert ran.code == 1
    assert ran.err.rstrip().endswith("ZeroDivisionError: division by zero")
    assert ran.err.count("Traceback") == 1


def test_exit_waits_for_a_slow_reader(tmp_path: Path) -> None:
    sizes: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        while (received := peer.read_frame()).opcode != CLOSE:
            sizes.append(len(received.payload))
            time.sleep(0.02)
        peer.send(close_frame(1001))

    with RawServer(script) as server:
        ran = run(
            tmp_path,
            """
            ws = connect(sys.argv[1], compression=None)
            for number in range(15):
                ws.send(bytes(10**6))
            print("READY", flush=True)
            """,
            server.url,
        )
    check_quiet(ran, within=BOUND)
    assert sizes == [10**6] * 15


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_exit_with_many_connections_whose_servers_never_answer(tmp_path: Path, callbacks: str) -> None:
    recorder = Recorder(answer=False)
    with RawServer(recorder) as server:
        ran = run(
            tmp_path,
            """
            sockets = [WebSocket(sys.argv[1], callbacks=sys.argv[2]) for _ in range(50)]
            for ws in sockets:
                ws.onclose = lambda: None
                ws.wait_open(10)
            print("READY", flush=True)
            """,
            server.url,
            callbacks,
        )
        closes = [recorder.frames.get(timeout=LIMIT)[-1] for _ in range(50)]
    check_quiet(ran, within=BOUND)
    assert closes == [(CLOSE, (1001).to_bytes(2, "big"))] * 50


def test_exit_while_connecting(tmp_path: Path) -> None:
    with dead_address() as (host, port):
        ran = run(
            tmp_path,
            """
            ws = WebSocket(sys.argv[1], open_timeout=None)
            ws.onopen = print
            try:
                ws.wait_open(0.1)
            except TimeoutError:
                print("READY", flush=True)
            """,
            f"ws://{host}:{port}/",
        )
    check_quiet(ran, within=BOUND)


def test_exit_during_the_handshake(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.stall()

    with RawServer(script) as server:
        ran = run(tmp_path, "ws = WebSocket(sys.argv[1], open_timeout=None)\n" + READY, server.url)
    check_quiet(ran, within=BOUND)


@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(1000)", "lock.acquire()"])
def test_exit_while_a_callback_is_busy_for_ever(tmp_path: Path, body: str) -> None:
    with echo_server() as server:
        ran = run(
            tmp_path,
            f"""
            lock = threading.Lock()
            lock.acquire()
            entered = threading.Event()
            def onopen():
                entered.set()
                {body}
            ws = WebSocket(sys.argv[1])
            ws.onopen = onopen
            entered.wait(10)
            print("READY", flush=True)
            """,
            server.url,
        )
    check_quiet(ran, within=3)


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("heard_before", [True, False], ids=["with a thread", "without a thread"])
def test_onclose_runs_for_a_connection_that_closes_at_exit(
    tmp_path: Path, callbacks: str, heard_before: bool
) -> None:
    # Since 3.12 no thread can be started at exit: a socket that has none yet must run onclose all the same.
    with RawServer(Recorder()) as server:
        ran = run(
            tmp_path,
            f"""
            ws = WebSocket(sys.argv[1], callbacks=sys.argv[2])
            ws.onclose = lambda event: print("closed", event.code, event.wasClean, flush=True)
            if {heard_before}:
                ws.onopen = lambda: None
            ws.wait_open(10)
            print("READY", flush=True)
            """,
            server.url,
            callbacks,
        )
    check_quiet(ran, within=BOUND)
    assert ran.out == "closed 1001 True\n"


def test_close_before_the_end_still_waits_for_the_handshake(tmp_path: Path) -> None:
    recorder = Recorder()
    with RawServer(recorder) as server:
        ran = run(
            tmp_path,
            """
            ws = connect(sys.argv[1], compression=None)
            ws.send("last words")
            ws.close(3000, "bye")
            print("READY", flush=True)
            """,
            server.url,
        )
        frames = recorder.frames.get(timeout=LIMIT)
    check_quiet(ran, within=1)
    assert [payload for _, payload in frames] == [b"last words", b"\x0b\xb8bye"]


def test_the_users_own_atexit_functions_can_still_send(tmp_path: Path) -> None:
    recorder = Recorder()
    with RawServer(recorder) as server:
        ran = run(
            tmp_path,
            """
            import atexit
            ws = connect(sys.argv[1], compression=None)
            atexit.register(lambda: ws.send("last words"))
            print("READY", flush=True)
            """,
            server.url,
        )
        assert [payload for _, payload in recorder.frames.get(timeout=LIMIT)] == [b"last words", b"\x03\xe9"]
    check_quiet(ran, within=1)


def test_a_socket_made_by_an_atexit_function_does_not_hang(tmp_path: Path) -> None:
    with echo_server() as server:
        ran = run(
            tmp_path,
            """
            import atexit
            def late():
                try:
                    connect(sys.argv[1])
                except (RuntimeError, ConnectionError):
                    pass
            with connect(sys.argv[1]):
                pass
            atexit.register(late)
            print("READY", flush=True)
            """,
            server.url,
        )
    assert ran.code == 0
    assert ran.exit_time < 2.5


# --- fork

CHILD = """
def child_of(parents):
    try:
        assert parents.readyState == WebSocket.CLOSED, parents
        assert open_sockets() == []
        for use in (lambda: parents.send("child"), lambda: parents.recv(1), lambda: parents.ping(1)):
            try:
                use()
                raise AssertionError("it works in the child")
            except ConnectionClosed:
                pass
        parents.close()
        parents.wait_closed(1)
        with connect(sys.argv[2]) as own:
            own.send("own")
            assert own.recv(10) == "own"
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(9)

def check_child(pid):
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""


def conversing(peer: Peer) -> None:
    """Two messages from the parent, the second one after the child has gone, and nothing of the child."""
    peer.accept()
    for _ in range(2):
        received = peer.read_frame()
        assert received.payload == b"parent"
        peer.send(text("server"))
    assert [(received.opcode, received.payload) for received in peer.read_until_close()] == [(CLOSE, b"\x03\xe8")]
    peer.send(close_frame(1000))
    assert peer.read_eof() == b""


CONVERSE = """
def converse():
    ws.send("parent")
    assert ws.recv(10) == "server"

def converse_to_the_end():
    converse()
    ws.close(1000)
    assert ws.wait_closed(10).wasClean
    print("READY", flush=True)
"""


def run_forking(tmp_path: Path, url: str, script: str, *arguments: str) -> Ran:
    """Run a script with processes besides its own, which have a server for themselves; it must end well."""
    with echo_server() as own:
        ran = run(
            tmp_path,
            CHILD + CONVERSE + textwrap.dedent(script),
            url,
            own.url,
            *arguments,
            options=("-W", "ignore::DeprecationWarning"),
        )
    check_quiet(ran, within=1)
    return ran


@needs_fork
@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"], ids=["at once", "with atexit"])
def test_a_forked_child_leaves_the_parents_connection_alone(tmp_path: Path, leave: str) -> None:
    with RawServer(conversing) as server:
        run_forking(
            tmp_path,
            server.url,
            f"""
            ws = connect(sys.argv[1], compression=None)
            converse()
            pid = os.fork()
            if pid == 0:
                child_of(ws)
                {leave}
            check_child(pid)
            converse_to_the_end()
            """,
        )


@needs_fork
def test_send_in_a_child_forked_while_other_threads_send_raises(tmp_path: Path) -> None:
    """They may hold the wire at the moment of the fork, and are not there to let go of it."""
    with echo_server() as server:
        run_forking(
            tmp_path,
            server.url,
            """
            import signal
            ws = connect(sys.argv[1], compression=None)
            ws.onmessage = lambda message: None
            over = threading.Event()
            def flood():
                while not over.is_set():
                    ws.send(b"x" * 200_000)
            threads = [threading.Thread(target=flood) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(30):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(5)
                    try:
                        ws.send("x")
                    except ConnectionClosed:
                        os._exit(0)
                    os._exit(6)
                check_child(pid)
            over.set()
            for thread in threads:
                thread.join()
            ws.close()
            ws.wait_closed(20)
            print("READY", flush=True)
            """,
        )


@needs_fork
def test_done_callbacks_do_not_run_inside_fork_and_the_childs_queries_fail(tmp_path: Path) -> None:
    with RawServer(conversing) as server:
        run_forking(
            tmp_path,
            server.url,
            """
            class Client(QueryMixin, WebSocket):
                def tag_request(self, request, tag):
                    return "parent"
            ws = Client(sys.argv[1], compression=None).wait_open(10)
            called = []
            query = ws.query({})
            query.add_done_callback(called.append)
            pid = os.fork()
            if pid == 0:
                if called:
                    os._exit(3)
                if not isinstance(query.exception(5), ConnectionClosed):
                    os._exit(4)
                os._exit(0)
            check_child(pid)
            assert called == [] and not query.done()
            query.cancel()
            assert ws.recv(10) == "server"
            converse_to_the_end()
            """,
        )


@needs_fork
@pytest.mark.parametrize(("leave", "status"), [("return", 0), ("sys.exit(3)", 3), ("raise ValueError", 1)])
def test_a_child_forked_in_a_done_callback_on_the_loop_ends(tmp_path: Path, leave: str, status: int) -> None:
    with echo_server() as server:
        run_forking(
            tmp_path,
            server.url,
            f"""
            attached = threading.Event()
            class Client(QueryMixin, WebSocket):
                def read_reply(self, message):
                    attached.wait(10)
                    return super().read_reply(message)
            ws = Client(sys.argv[1]).wait_open(10)
            children, forked = [], threading.Event()
            def done(query):
                pid = os.fork()
                if pid == 0:
                    sys.stderr = open(os.devnull, "w")
                    {leave}
                children.append(pid)
                forked.set()
            ws.query({{"a": 1}}).add_done_callback(done)
            attached.set()
            assert forked.wait(10)
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == {status}
            assert ws.query({{"a": 2}}).result(10)["a"] == 2
            ws.close()
            assert ws.wait_closed(10).wasClean
            print("READY", flush=True)
            """,
        )


@needs_fork
@pytest.mark.parametrize("secure", [False, True])
def test_a_child_forked_while_a_socket_connects_does_not_keep_it(tmp_path: Path, secure: bool) -> None:
    """Else the server would not see that the parent has given up."""
    gone = tmp_path / "gone"

    def script(peer: Peer) -> None:
        peer.read_eof()
        gone.touch()

    with RawServer(script) as server:
        url = server.url.replace("ws:", "wss:") if secure else server.url
        run_forking(
            tmp_path,
            url,
            """
            ws = WebSocket(sys.argv[1])
            time.sleep(0.3)  # it waits for an answer by now; if not, all is well just the same
            ready, over = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(ready[1], b"x")
                os.read(over[0], 1)
                os._exit(0)
            os.read(ready[0], 1)
            ws.close()
            ws.wait_closed(10)
            deadline = time.monotonic() + 10
            while not os.path.exists(sys.argv[3]):
                assert time.monotonic() < deadline, "the server has not seen the end"
                time.sleep(0.01)
            os.write(over[1], b"x")
            check_child(pid)
            print("READY", flush=True)
            """,
            str(gone),
        )


@needs_fork
def test_a_child_forked_in_a_handler_on_the_loop_may_use_sockets_of_its_own(tmp_path: Path) -> None:
    with RawServer(conversing) as server:
        run_forking(
            tmp_path,
            server.url,
            """
            children, heard = [], threading.Event()
            def onmessage(message):
                pid = os.fork()
                if pid:
                    children.append(pid)
                    heard.set()
                    return
                try:
                    answers, answered = [], threading.Event()
                    own = WebSocket(sys.argv[2], callbacks="loop").wait_open(10)
                    own.onmessage = lambda message: (answers.append(message), len(answers) == 2 and answered.set())
                    own.send("one")
                    own.send("two")
                    ok = answered.wait(10)
                    own.close()
                    own.wait_closed(10)
                    os._exit(0 if ok else 7)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(8)
            ws = WebSocket(sys.argv[1], compression=None, callbacks="loop").wait_open(10)
            ws.onmessage = onmessage
            ws.send("parent")
            assert heard.wait(10)
            check_child(children[0])
            ws.onmessage = None
            converse_to_the_end()
            """,
        )


@needs_fork
@pytest.mark.parametrize("leave", ["pass", "sys.exit(0)", "os._exit(0)"])
def test_a_child_forked_in_a_handler_on_the_loop_ends(tmp_path: Path, leave: str) -> None:
    with RawServer(conversing) as server:
        run_forking(
            tmp_path,
            server.url,
            f"""
            children, heard = [], threading.Event()
            def onmessage(message):
                pid = os.fork()
                if pid == 0:
                    {leave}
                else:
                    children.append(pid)
                    heard.set()
            ws = WebSocket(sys.argv[1], compression=None, callbacks="loop").wait_open(10)
            ws.onmessage = onmessage
            ws.send("parent")
            assert heard.wait(10)
            check_child(children[0])
            ws.onmessage = None
            converse_to_the_end()
            """,
        )


@needs_fork
def test_a_child_forked_under_load(tmp_path: Path) -> None:
    """The locks may be held by other threads at the moment of the fork."""
    with echo_server() as server:
        run_forking(
            tmp_path,
            server.url,
            """
            ws = connect(sys.argv[1], compression=None, max_queue=10_000)
            received = []
            complete = threading.Event()
            def onmessage(message):
                received.append(int(message))
                if len(received) == 3000:
                    complete.set()
            ws.onmessage = onmessage
            def produce():
                for number in range(3000):
                    ws.send(str(number))
            producer = threading.Thread(target=produce)
            producer.start()
            for _ in range(5):
                pid = os.fork()
                if pid == 0:
                    with connect(sys.argv[2]) as mine:
                        mine.send("own")
                        assert mine.recv(10) == "own"
                    assert ws.readyState == WebSocket.CLOSED
                    sys.exit(0)
                check_child(pid)
            producer.join()
            complete.wait(10)
            assert received == list(range(3000))
            ws.close()
            assert ws.wait_closed(10).wasClean
            print("READY", flush=True)
            """,
        )


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    with RawServer(conversing) as server:
        run_forking(
            tmp_path,
            server.url,
            """
            import multiprocessing

            def work(url, answers):
                with connect(url) as own:
                    own.send("own")
                    answers.put((own.recv(10), len(open_sockets())))

            if __name__ == "__main__":
                ws = connect(sys.argv[1], compression=None)
                converse()
                context = multiprocessing.get_context(sys.argv[3])
                answers = context.SimpleQueue()
                process = context.Process(target=work, args=(sys.argv[2], answers))
                process.start()
                process.join(10)
                assert process.exitcode == 0, process.exitcode
                assert answers.get() == ("own", 1)
                converse()
                ws.close(1000)
                assert ws.wait_closed(10).wasClean
                print("READY", flush=True)
            """,
            method,
        )


@needs_fork
def test_a_child_forked_while_a_callback_runs(tmp_path: Path) -> None:
    with echo_server() as server:
        run_forking(
            tmp_path,
            server.url,
            """
            entered, forked = threading.Event(), threading.Event()
            def onmessage(message):
                entered.set()
                forked.wait(10)
            ws = WebSocket(sys.argv[1]).wait_open(10)
            ws.onmessage = onmessage
            ws.send("1")
            ws.send("2")
            assert entered.wait(10)
            pid = os.fork()
            if pid == 0:
                assert ws.readyState == WebSocket.CLOSED
                ws.wait_closed(5)
                sys.exit(0)
            started = time.monotonic()
            check_child(pid)
            assert time.monotonic() - started < 1, "the child's exit waits for the parent's callback"
            forked.set()
            ws.close()
            assert ws.wait_closed(10).wasClean
            print("READY", flush=True)
            """,
        )


@needs_fork
def test_a_callback_thread_may_fork(tmp_path: Path) -> None:
    with echo_server() as server:
        ran = run_forking(
            tmp_path,
            server.url,
            """
            done = threading.Event()
            def onopen():
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if ws.readyState == WebSocket.CLOSED else 9)
                print(os.waitpid(pid, 0)[1], flush=True)
                done.set()
            ws = WebSocket(sys.argv[1])
            ws.onopen = onopen
            assert done.wait(10)
            print("READY", flush=True)
            """,
        )
    assert ran.out == "0\n"


# --- The import


def test_the_import_patches_nothing_and_starts_nothing(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import multiprocessing.connection, ssl
        print(threading.active_count())
        if sys.version_info >= (3, 12):
            print(hasattr(ssl, "wrap_socket"))
            for name in ("CHALLENGE", "WELCOME", "FAILURE"):
                print(hasattr(multiprocessing.connection, name))
        else:
            print(ssl.wrap_socket.__module__ == "ssl")
        """,
    )
    check_quiet(ran, within=LIMIT)
    assert ran.out.split() == (["1"] + ["False"] * 4 if sys.version_info >= (3, 12) else ["1", "True"])


def test_the_import_changes_no_signal_handler_and_no_logging() -> None:
    """Compared with before the import: a shell may start its background jobs with SIGINT ignored."""
    code = """if True:
        import logging, signal
        def handlers():
            return [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        before = handlers()
        import nwebsocket
        print(handlers() == before)
        print(logging.getLogger().handlers, logging.getLogger("nwebsocket").level)
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert ran.stdout.splitlines() == ["True", "[] 0"]
    assert ran.stderr == ""


def test_it_can_be_imported_in_many_threads_at_once(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        for name in [name for name in sys.modules if name.partition(".")[0] in ("nwebsocket", "curio", "wsproto")]:
            del sys.modules[name]
        barrier = threading.Barrier(8)
        loaded = []
        def load():
            barrier.wait()
            import nwebsocket
            loaded.append(nwebsocket.WebSocket)
        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(loaded), len(set(loaded)))
        """,
    )
    check_quiet(ran, within=LIMIT)
    assert ran.out == "8 1\n"


SHORT_SESSION = """
with connect(sys.argv[1]) as ws:
    ws.send("x")
    assert ws.recv(10) == "x"
heard = threading.Event()
ws = WebSocket(sys.argv[1])
ws.onmessage = lambda message: heard.set()
ws.onopen = lambda: ws.send("y")
assert heard.wait(10)
ws.close()
ws.wait_closed(10)
"""


@pytest.mark.parametrize("ending", ["", "forgotten = connect(sys.argv[1])\n"], ids=["closed", "forgotten"])
def test_a_short_session_in_development_mode_prints_nothing(tmp_path: Path, ending: str) -> None:
    with echo_server() as server:
        ran = run(tmp_path, SHORT_SESSION + ending + READY, server.url, options=("-X", "dev", "-W", "error"))
    check_quiet(ran, within=1)
    assert ran.out == ""


def test_ctrl_c_ends_a_script_that_waits(tmp_path: Path) -> None:
    recorder = Recorder()
    with RawServer(recorder) as server:
        ran = run(
            tmp_path,
            """
            import signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
            ws = connect(sys.argv[1])
            def interrupt():
                print("READY", flush=True)
                os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.2, interrupt).start()
            ws.recv()
            """,
            server.url,
        )
        assert recorder.frames.get(timeout=LIMIT)[-1] == (CLOSE, (1001).to_bytes(2, "big"))
    assert ran.exit_time < 1
    assert ran.err.rstrip().endswith("KeyboardInterrupt")
    assert ran.err.count("Traceback") == 1
