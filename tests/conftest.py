"""Fixtures for all tests: a certificate authority, an echo server, the log, and what no test may leave behind.

Warnings, exceptions that nobody caught in a thread, and unraisable ones fail a test through pytest's
``filterwarnings = error``; threads, sockets and unexpected errors in the log through the fixtures here.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import garbage
import hypothesis
import local_server
import peers
import pytest

from nwebsocket._threads import the_loop

# The proxies of the machine are no business of the tests, nor of the processes that they start.
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]

# Shells have what runs in the background ignore it, which would go for the processes that the tests start, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The limit of each test is pytest's: how long one example takes says more about the machine than about us.
hypothesis.settings.register_profile("nwebsocket", deadline=None)
hypothesis.settings.load_profile("nwebsocket")

server = local_server.server  # the fixture that users copy

#: How long threads and sockets may take to go after a test has ended (seconds).
PATIENCE = 10.0


@pytest.fixture(scope="session")
def ca() -> peers.Authority:
    """A certificate authority: `ca.server(*names)` and `ca.client()` are contexts."""
    return peers.tls_contexts()


@pytest.fixture
def echo() -> Iterator[str]:
    """The URL of an echo server."""
    with peers.echo_server() as server:
        yield server.url


class Log(logging.Handler):
    """Holds the warnings and errors of the library's log until the test has asked for them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def errors(self) -> list[logging.LogRecord]:
        """Return, and thereby forgive, the records of level ERROR and above so far."""
        return self._take(lambda level: level >= logging.ERROR)

    def warnings(self) -> list[logging.LogRecord]:
        """Return and forget the records of level WARNING so far."""
        return self._take(lambda level: level < logging.ERROR)

    def _take(self, wanted: Callable[[int], bool]) -> list[logging.LogRecord]:
        taken = [record for record in self._records if wanted(record.levelno)]
        for record in taken:
            self._records.remove(record)
        return taken


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """The library's log. An error there that the test has not asked for with `log.errors()` fails the test."""
    handler = Log()
    logger = logging.getLogger("nwebsocket")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
    if errors := handler.errors():
        texts = map(logging.Formatter().format, errors)
        pytest.fail("unexpected errors in the log:\n" + "\n".join(texts), pytrace=False)


class Snapshot:
    """The threads and sockets of the process at one moment, to tell later what has come and not gone."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._sockets = _open_sockets()

    def left(self, patience: float) -> list[str]:
        """Return what is new and still there after `patience` seconds at most."""
        deadline = time.monotonic() + patience
        if self._left_now():
            garbage.collect()
        while (left := self._left_now()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left

    def _left_now(self) -> list[str]:
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        sockets = _open_sockets() - self._sockets
        return [repr(thread) for thread in threads if not _is_shared(thread)] + sorted(sockets)


def _is_shared(thread: threading.Thread) -> bool:
    """Whether the thread belongs to the library as a whole: the loop's, or a worker that curio keeps for later."""
    target = getattr(thread, "_target", None)
    return thread.name == "nwebsocket-loop" or getattr(target, "__qualname__", "") == "ThreadWorker.run_worker"


def _open_sockets() -> set[str]:
    """The open sockets of this process by their inodes, where the system shows them (Linux)."""
    sockets = set()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since, as the one that listed the directory
                sockets.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {link for link in sockets if link.startswith("socket:")}


@pytest.fixture(scope="module", autouse=True)
def old_objects_stay() -> None:
    """Have the garbage collector look at nothing older than the test's module: else it takes half of all the time."""
    garbage.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left(log: Log) -> Iterator[None]:
    """Fail a test that leaves a thread or a socket behind. Set up before a test's own fixtures, it ends after them."""
    _run_loop()
    before = Snapshot()
    yield
    if left := before.left(PATIENCE):
        pytest.fail("left behind: " + ", ".join(left), pytrace=False)


def _run_loop() -> None:
    """Have the loop thread running, so that its own sockets are not taken for a test's."""
    running = threading.Event()
    the_loop.current().call_later(0, running.set)
    assert running.wait(peers.LIMIT)
