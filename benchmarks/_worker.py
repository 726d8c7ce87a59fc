"""One client in a process of its own, and how compare.py talks to it: a line of JSON each way for each step.

Nothing of another client is imported in that process, runs a thread in it, or fills its memory.

    python _worker.py CLIENT CA_FILE    reads requests from standard input until it ends
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TextIO

from _server import raise_descriptor_limit

WARM_UP = 0.2
"""How much is done before each round, unmeasured, as a share of the round."""


class ClientFailed(Exception):
    """A client is missing, has failed, or has not answered in time."""


class Worker:
    """The process of a client, seen from the one that measures.

    ``path``     a directory to be searched first for its modules, or None
    ``timeout``  seconds that any one step may take
    ``without``  a shortcut of nwebsocket's that is not to be taken, or None
    ``version``  of the client; and ``file`` where it was imported from, if it says so

    Raises ClientFailed if the client cannot be imported.
    """

    def __init__(self, client: str, ca: str, path: str | None, timeout: float, without: str | None = None) -> None:
        environment = os.environ | ({"PYTHONPATH": path} if path else {})
        environment |= {"NWEBSOCKET_WITHOUT": without} if without else {}
        command = [sys.executable, __file__, client, ca]
        self._timeout = timeout
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.version, self.file = self._answer()
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call `method` of the process's Desk. Raises ClientFailed; if it was for the time, the process is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer tells
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        with self._process:
            pass

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        watchdog = threading.Timer(self._timeout, self._process.kill)
        watchdog.start()
        began = perf_counter()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            self._process.wait()
            too_slow = perf_counter() - began >= self._timeout
            raise ClientFailed(f"no answer for {self._timeout:g} s: killed" if too_slow else "its process has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientFailed(answer["error"])
        return answer["result"]


class Desk:
    """What the worker can be asked for, one job at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._job: Any = None

    def open(self, job: str, *arguments: Any) -> None:
        """Make a job with its connections (see _clients.py)."""
        self._job = getattr(self._client, job)(*arguments)

    def compression(self) -> dict[str, Any]:
        """Whether the client offers to compress by default, and what the server has accepted."""
        return {"offers": self._client.offers, "extensions": self._client.extensions}

    def round(self, amount: float) -> dict[str, float]:
        """Warm up, then measure: messages per second, and microseconds of this process's CPU for each."""
        self._job.round(amount * WARM_UP)
        cpu, began = process_time(), perf_counter()
        count = self._job.round(amount)
        wall, cpu = perf_counter() - began, process_time() - cpu
        return {"figure": count / wall, "cpu": cpu / count * 1e6}

    def close(self) -> None:
        self._job.close()

    def idle(self, url: str, number: int, warm_up: int) -> dict[str, float]:
        """Open `number` connections: KiB of memory for each, and how many threads the process then has."""
        raise_descriptor_limit()
        held = self._client.idle(url, warm_up)
        before = resident_memory()
        held += self._client.idle(url, number)
        return {"figure": (resident_memory() - before) / len(held[warm_up:]) / 1024, "threads": threads()}


def resident_memory() -> int:
    """Return the bytes of memory that are resident; where the system does not tell, the most that ever were."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def threads() -> int:
    """Return how many threads this process has, also those that Python did not start where the system tells."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))
    return threading.active_count()


def main(name: str, ca: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that measures; it ends us
    # What a client may print must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    desk: Desk | None = None

    def start() -> tuple[str, str]:
        nonlocal desk
        from _clients import CLIENTS

        client = CLIENTS[name](ca)
        desk = Desk(client)
        return client.version(), client.file()

    _reply(answers, start)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        _reply(answers, getattr(desk, method), *arguments)
    os._exit(0)


def _reply(answers: TextIO, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        answer = {"result": function(*arguments)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        answer = {"error": f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
