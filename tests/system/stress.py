"""Every public method from 16 threads at random, while connections open, fail and close.

    python tests/system/stress.py --seconds 120
    python tests/system/stress.py --seconds 120 --variant gc
    python tests/system/stress.py --seconds 6 --times 20 python3.10 python3.11 python3.12 python3.13

Python switches between the threads as often as it can (`sys.setswitchinterval(1e-6)`). The server
(`stressing/server.py`) accepts, refuses, cuts, stalls and closes; the threads (`stressing/actions.py`) use every method
rightly and wrongly; what must hold at any moment is checked throughout (`stressing/monitor.py`). If a thread does not
get on, the stacks of all are shown. With the same seed every thread chooses the same, though not at the same moments.
Exit code 1 if anything was wrong.

Variants: "mixed", all kinds of sockets; "plain", "loop" (callbacks="loop"), "reconnecting", "queries": one kind alone;
"gc": mixed, and the garbage collector runs at nearly every allocation; "cpu": mixed, and the main thread computes.

The last results, on two very busy processors: 20 times 6 s on each of Python 3.10, 3.11, 3.12 and 3.13, and 120 s each
of "reconnecting", "queries", "mixed", "gc" and "cpu" on 3.11: no fault.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stressing.actions import Action, Querying, ReconnectingQuerying, choose
from stressing.monitor import Broken, Watched

from nwebsocket import Deflate, ReconnectingWebSocket, WaitTimeout, WebSocket, open_sockets
from nwebsocket._connection import backoff

THREADS = 16
SLOTS = 8
STUCK = 30.0
"""Seconds after which a thread that has not finished what it does never will."""

VARIANTS = ("mixed", "plain", "loop", "reconnecting", "queries", "gc", "cpu")
KINDS: dict[str, tuple[type[WebSocket], ...]] = {
    "plain": (WebSocket,),
    "loop": (WebSocket, Querying),
    "reconnecting": (ReconnectingWebSocket,),
    "queries": (Querying, ReconnectingQuerying),
}
WATCHED = {
    kind: type(f"Watched{kind.__name__}", (Watched, kind), {}) if kind is not WebSocket else Watched
    for kind in (WebSocket, ReconnectingWebSocket, Querying, ReconnectingQuerying)
}
FATES = ("echo", "echo", "echo", "chatter", "refuse", "cut", "close", "stall", "break")
OPTIONS = {
    "open_timeout": 0.3,
    "close_timeout": 0.2,
    "ping_interval": 0.1,
    "ping_timeout": 0.2,
    "max_queue": 16,
    "write_limit": 50_000,
}


class Stress:
    """The sockets, and the threads that use them."""

    def __init__(self, variant: str, seed: int, urls: Sequence[str]) -> None:
        self.faults: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._variant = variant
        self._seed = seed
        self._urls = urls
        self._stop = threading.Event()
        self._dice = random.Random(seed)  # of the main thread, and of handlers
        self._busy_since: dict[str, float] = {}
        self._retired: collections.deque[Any] = collections.deque()
        self._slots: list[Any] = []
        self._in_hands: list[Any] = []  # those with which somebody is at work, who may have them after their time
        self._lock = threading.Lock()  # for these two
        for _ in range(SLOTS):
            self._slots.append(self._make(self._dice))

    # ---- sockets

    def _make(self, dice: random.Random) -> Any:
        kinds = KINDS.get(self._variant) or tuple(WATCHED)
        kind: Any = WATCHED[dice.choice(kinds)]
        on_loop = self._variant == "loop" or dice.random() < 0.3
        options: dict[str, Any] = {**OPTIONS, "callbacks": "loop" if on_loop else "thread"}
        compressed = dice.random() < 0.3
        url = self._urls[0] if compressed else self._urls[1] + dice.choice(FATES)
        options |= {"compression": Deflate(threshold=0) if compressed else None, "hears_messages": dice.random() < 0.5}
        ws = kind(url, faults=self.faults, **options)
        for event_type in ("open", "message", "close"):
            if dice.random() < 0.3:
                ws.addEventListener(event_type, self._act_in_handler, once=True)
        self.counts["sockets"] += 1
        return ws

    def _replace(self, dice: random.Random) -> None:
        """Put a new socket in the place of one, which is closed, now or before."""
        new, index = self._make(dice), dice.randrange(SLOTS)
        with self._lock:
            ws, self._slots[index] = self._slots[index], new
        ws.close()
        self._retired.append(ws)
        if dice.random() < 0.1:
            WebSocket(self._urls[1] + dice.choice(FATES), **OPTIONS)  # type: ignore[arg-type]  # dropped at once

    def _check_retired(self, *, patience: float) -> None:
        for _ in range(len(self._retired)):
            ws = self._retired.popleft()
            with self._lock:
                in_hand = ws in self._in_hands  # then its messages may be taken right now
            if in_hand or not has_ended(ws, patience):
                self._retired.append(ws)
                continue
            ws.monitor.check_end(ws)

    # ---- threads

    def run(self, seconds: float) -> None:
        """Have all threads work for so long, then bring everything to its end."""
        threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.faults:
            self._compute() if self._variant == "cpu" else self._stop.wait(0.02)
            self._watch()
        self._stop.set()
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.02) if threads[0].is_alive() else time.sleep(0.02)
            self._watch()
        self._finish()

    def _work(self, number: int) -> None:
        dice = random.Random(f"{self._seed} {number}")
        name = threading.current_thread().name
        while not self._stop.is_set() and not self.faults:
            self._busy_since[name] = time.monotonic()
            with self._faults_noted("replacing a socket"):
                if dice.random() < 0.04:
                    self._replace(dice)
            with self._one_in_hand(dice) as ws:
                self._perform(choose(dice, in_handler=False), ws, dice)
                with self._faults_noted("looking at a socket"):
                    ws.monitor.check(ws)
        del self._busy_since[name]

    def _act_in_handler(self, _: object) -> None:
        if self._stop.is_set():
            return
        dice = random.Random(self._dice.random())
        with self._one_in_hand(dice) as ws:
            self._perform(choose(dice, in_handler=True), ws, dice, in_handler=True)

    @contextlib.contextmanager
    def _one_in_hand(self, dice: random.Random) -> Iterator[Any]:
        """One of the sockets, to be worked with."""
        with self._lock:
            ws = dice.choice(self._slots)
            self._in_hands.append(ws)
        try:
            yield ws
        finally:
            with self._lock:
                self._in_hands.remove(ws)

    def _perform(self, action: Action, ws: Any, dice: random.Random, *, in_handler: bool = False) -> None:
        may_raise = action.may_raise
        if action.waits and in_handler:
            may_raise = (*may_raise, RuntimeError)
        outcome = "done"
        with self._faults_noted(action.do.__name__):
            try:
                action.do(ws, dice)
            except may_raise as error:
                outcome = type(error).__name__
        self.counts[f"{action.do.__name__}: {outcome}"] += 1

    @contextlib.contextmanager
    def _faults_noted(self, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.faults.append(f"in {what}:\n{traceback.format_exc()}")

    # ---- the main thread

    def _compute(self) -> None:
        number, end = 1, time.monotonic() + 0.1
        while time.monotonic() < end:
            number = number * 48271 % 2147483647

    def _watch(self) -> None:
        now = time.monotonic()
        if stuck := [name for name, since in list(self._busy_since.items()) if now - since > STUCK]:
            print(f"{', '.join(stuck)} stuck for {STUCK:g} s:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(3)
        with self._faults_noted("looking at sockets that have ended"):
            self._check_retired(patience=0)

    def _finish(self) -> None:
        with self._faults_noted("ending"):
            self._retired.extend(self._slots)
            for ws in self._slots:
                ws.close()
            deadline = time.monotonic() + STUCK
            while self._retired and time.monotonic() < deadline:
                self._check_retired(patience=0.1)
            left = list(self._retired) or [ws for ws in open_sockets() if not has_ended(ws, STUCK)]
            if left:
                raise Broken(f"these do not end: {left}")


def has_ended(ws: WebSocket, patience: float) -> bool:
    """Whether it has ended, and its handlers have heard of it."""
    try:
        ws.wait_closed(patience)
    except WaitTimeout:
        return False
    return True


# --- The process


@contextlib.contextmanager
def server() -> Iterator[list[str]]:
    """The URLs of a server in another process."""
    here = Path(__file__).parent
    path = os.pathsep.join((str(here), str(here.parent / "support"), *sys.path))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "stressing.server"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


class ErrorLog(logging.Handler):
    """Takes an error in the library's log for a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        self._faults.append(logging.Formatter().format(record))


def listen_for_errors(faults: list[str]) -> None:
    """Have what nobody catches, and what the library logs as an error, among the faults."""
    logger = logging.getLogger("nwebsocket")
    logger.propagate = False
    logger.addHandler(ErrorLog(faults))
    threading.excepthook = lambda arguments: faults.append("".join(traceback.format_exception(*arguments[:3])))
    sys.unraisablehook = lambda unraisable: faults.append(f"unraisable: {unraisable}")


@contextlib.contextmanager
def constant_collection() -> Iterator[None]:
    """The garbage collector at nearly every allocation, and in a thread besides."""
    stop, threshold = threading.Event(), gc.get_threshold()

    def collect() -> None:
        while not stop.wait(0.02):
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    gc.set_threshold(1, 50, 50)
    thread.start()
    yield
    stop.set()
    thread.join()
    gc.set_threshold(*threshold)


def stress(variant: str, seconds: float, seed: int) -> Stress:
    """Do it in this process, which is of no use for anything else afterwards."""
    faulthandler.dump_traceback_later(seconds + 4 * STUCK, exit=True)
    backoff.FIRST_DELAY, backoff.MAX_DELAY = 0.02, 0.1
    collecting = constant_collection() if variant == "gc" else contextlib.nullcontext()
    with server() as urls, collecting:
        sys.setswitchinterval(1e-6)
        stress = Stress(variant, seed, urls)
        listen_for_errors(stress.faults)
        stress.run(seconds)
        sys.setswitchinterval(0.005)
    faulthandler.cancel_dump_traceback_later()
    return stress


def report(stress: Stress) -> Iterator[str]:
    """The figures, and what is wrong."""
    performed = {name: count for name, count in stress.counts.items() if ":" in name}
    yield f"{stress.counts['sockets']} sockets, {sum(performed.values()):,} calls"
    yield from (f"    {name} {count:,}" for name, count in sorted(performed.items()))
    yield from stress.faults[:5]
    yield f"{len(stress.faults)} faults"


def many_times(options: argparse.Namespace) -> int:
    """Run this script with each of the Pythons so many times, one run after the other; return how many failed."""
    failed = 0
    for python in options.pythons or [sys.executable]:
        passed = 0
        for time_number in range(options.times):
            variant = options.variant or VARIANTS[time_number % len(VARIANTS)]
            arguments = ("--seconds", str(options.seconds), "--seed", str(options.seed + time_number))
            ran = subprocess.run(
                [python, __file__, *arguments, "--variant", variant], capture_output=True, text=True, check=False
            )
            passed += ran.returncode == 0
            if ran.returncode:
                print(f"{variant}, seed {options.seed + time_number}:\n{ran.stdout}{ran.stderr}", flush=True)
        print(f"{python}: {passed} of {options.times} passed", flush=True)
        failed += options.times - passed
    return failed


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--variant", choices=VARIANTS, help="default: mixed; with --times one after the other")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, help="run it so many times, in processes of their own")
    parser.add_argument("pythons", nargs="*", help="the Pythons to run it with, each so many times")
    options = parser.parse_args()
    if options.times:
        return bool(many_times(options))
    outcome = stress(options.variant or "mixed", options.seconds, options.seed)
    print(f"{options.variant or 'mixed'}, {options.seconds:g} s, seed {options.seed}, {sys.version.split()[0]}")
    print("\n".join(report(outcome)), flush=True)
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
