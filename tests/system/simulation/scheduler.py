"""Threads that run one at a time; a strategy says, at each point of choice, which one goes on.

    thread A ── point("lock") ──> strategy ──> thread B ── wait(ready) ──> strategy ──> ...

A thread is real: it has an identity and a stack of its own. But it runs only while it has the baton, which it passes on
at points and waits alone. So a run is what the strategy chooses, and nothing else. A thread that waits says for what:
so it is known who can go on. When nobody can, the clock jumps to the next deadline. Without one, that is a deadlock.
"""

from __future__ import annotations

import _thread
import dis
import functools
import gc
import random
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from threading import get_ident
from types import CodeType, FrameType, FunctionType
from typing import Any, Protocol

BEGIN = 1000.0
"""What the virtual clock shows at first, in seconds."""

STEP = 1e-6
"""Seconds that one step takes."""

MAX_STEPS = 200_000
"""Steps of a run, after which it is taken for one without an end."""


class Abandoned(BaseException):
    """The run has ended while this thread was still waiting."""


class Deadlock(Exception):
    """Nobody can go on, now or ever."""


class Endless(Exception):
    """The run has taken more steps than any should."""


class Strategy(Protocol):
    """Who chooses."""

    def choose(self, threads: Sequence[SimThread], current: SimThread | None) -> int:
        """Which of the threads that can go on does so: its index."""
        ...

    def draw(self, most: int) -> int:
        """A number from 0 to ``most``, for whatever else is to be decided."""
        ...


class Random:
    """Any of them; the current one with a probability of its own for each run, for few changes show much, too."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._stay = self._dice.choice((0.0, 0.5, 0.9, 0.99))

    def choose(self, threads: Sequence[SimThread], current: SimThread | None) -> int:
        if current in threads and self._dice.random() < self._stay:
            return threads.index(current)
        return self._dice.randrange(len(threads))

    def draw(self, most: int) -> int:
        return self._dice.randint(0, most)


class PCT:
    """Probabilistic concurrency testing (Burckhardt and others, ASPLOS 2010): each thread has a priority, the highest
    goes on, and at ``depth - 1`` steps, drawn before, that one becomes the lowest. A bug that takes ``depth`` ordered
    events is found with a probability of at least 1 / (threads * steps ** (depth - 1)) in each run.
    """

    def __init__(self, seed: int, depth: int = 3, steps: int = 2000) -> None:
        self._dice = random.Random(seed)
        self._changes = {self._dice.randrange(steps) for _ in range(depth - 1)}
        self._priorities: dict[int, float] = {}
        self._step = 0
        self._lowest = 0.0

    def choose(self, threads: Sequence[SimThread], current: SimThread | None) -> int:
        for thread in threads:
            self._priorities.setdefault(thread.number, 1 + self._dice.random())
        best = max(range(len(threads)), key=lambda index: self._priorities[threads[index].number])
        if self._step in self._changes:
            self._lowest -= 1
            self._priorities[threads[best].number] = self._lowest
            best = max(range(len(threads)), key=lambda index: self._priorities[threads[index].number])
        self._step += 1
        return best

    def draw(self, most: int) -> int:
        return self._dice.randint(0, most)


class Replay:
    """The choices of an earlier run, one after the other; after the last, whoever is first, and 0."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = list(reversed(choices))

    def choose(self, threads: Sequence[SimThread], current: SimThread | None) -> int:
        return self._next(len(threads) - 1)

    def draw(self, most: int) -> int:
        return self._next(most)

    def _next(self, most: int) -> int:
        return min(self._choices.pop(), most) if self._choices else 0


class SimThread:
    """One of the threads."""

    def __init__(self, number: int, name: str, function: Callable[[], object]) -> None:
        self.number = number
        self.name = name
        self.function = function
        self.baton = _thread.allocate_lock()
        self.baton.acquire()
        self.ready: Callable[[], object] | None = None  # what it waits for, if it waits
        self.deadline: float | None = None
        self.what = "start"
        self.ident: int | None = None
        self.ended = False

    def __repr__(self) -> str:
        return f"{self.name} ({self.what})"


class Scheduler:
    """All threads of one run.

    ``trace``    a line for each step: the thread that goes on, and what it does there
    ``choices``  the numbers that the strategy has given, by which Replay repeats the run
    ``errors``   what threads have raised, and what ended the run if it was no thread's end
    """

    def __init__(self, strategy: Strategy, *, fine: bool = False, keep_trace: bool = False) -> None:
        self._strategy = strategy
        self._fine = (Fine if sys.version_info < (3, 12) else Monitored)(self) if fine else None
        self._keep_trace = keep_trace
        self.now = BEGIN
        self.trace: list[str] = []
        self.choices: list[int] = []
        self.errors: list[str] = []
        self.threads: list[SimThread] = []
        self.steps = 0
        self._current: SimThread | None = None
        self._choosing = False
        self._finished = _thread.allocate_lock()
        self._finished.acquire()
        self.over = False
        self.main: SimThread | None = None
        self.interrupts = 0
        """So many KeyboardInterrupts may still come while the main thread waits."""
        self.asides: list[Callable[[], object]] = []
        """What the main thread may be made to do where it looks for signals, each once: a signal handler."""

    # ---- outside

    def run(self, main: Callable[[], object]) -> None:
        """Run ``main`` in a thread, and all that it starts, until all have ended or nobody can go on."""
        self.main = self.spawn(main, "main")
        if self._fine is not None:
            self._fine.begin()
        self._pass_on(None)
        self._finished.acquire()
        self.over = True
        if self._fine is not None:
            self._fine.end()
        for thread in self.threads:
            if not thread.ended and thread.ident is not None:
                thread.baton.release()  # it raises Abandoned

    # ---- inside

    def spawn(self, function: Callable[[], object], name: str) -> SimThread:
        """Another thread, which may go on from now on."""
        thread = SimThread(len(self.threads), name, function)
        self.threads.append(thread)
        threading.Thread(target=self._live, args=(thread,), name=name, daemon=True).start()
        return thread

    def current(self) -> SimThread | None:
        """The calling thread, if it is one of ours."""
        current = self._current
        return current if current is not None and current.ident == get_ident() else None

    def point(self, what: str) -> None:
        """Any other thread may go on here."""
        current = self.current()
        if current is None or self._choosing:
            return
        current.what = what
        self._pass_on(current)

    def wait(self, what: str, ready: Callable[[], object], timeout: float | None) -> bool:
        """Wait until ``ready()`` is true; False after ``timeout`` virtual seconds. Nobody runs while it is asked."""
        current = self.current()
        if current is None:
            raise Abandoned
        current.what, current.ready = what, ready
        current.deadline = None if timeout is None else self.now + timeout
        try:
            self._pass_on(current)
            if current is self.main:
                current.ready = None
                self.look_for_signals()
                if self.interrupts and self.draw(7) == 7:
                    self.interrupts -= 1
                    raise KeyboardInterrupt
            return bool(ready())
        finally:
            current.ready = current.deadline = None

    def wait_for_lock(self, what: str, free: Callable[[], object], blocking: bool, timeout: float) -> bool:
        """Wait as acquire() of a lock does, until ``free()``; return whether it is so."""
        deadline = self.now + timeout if timeout >= 0 else None
        while not free():
            if not blocking or (deadline is not None and deadline <= self.now):
                return False
            self.wait(what, free, None if deadline is None else deadline - self.now)
        return True

    def look_for_signals(self) -> None:
        """The main thread may have to do something else here."""
        if self.asides and self.current() is self.main and self.draw(7) == 7:
            self.asides.pop()()

    def draw(self, most: int) -> int:
        """A number from 0 to ``most`` that the strategy chooses."""
        number = self._strategy.draw(most) if most else 0
        self.choices.append(number)
        return number

    def _live(self, thread: SimThread) -> None:
        thread.baton.acquire()
        thread.ident = get_ident()
        try:
            if not self.over:
                if self._fine is not None:
                    self._fine.begin_thread()
                thread.function()
        except Abandoned:
            pass
        except BaseException:
            self.errors.append(f"{thread.name}: {traceback.format_exc()}")
        thread.ended = True
        if not self.over:
            self._pass_on(thread)

    def _pass_on(self, current: SimThread | None) -> None:
        try:
            chosen = None if self._all_ended() else self._choose(current)
        except BaseException as error:  # what somebody waits for may raise, too: an invariant
            self.errors.append(f"{type(error).__name__}: {error}")
            chosen = None
        if chosen is None:
            self._finished.release()
        elif chosen is current:
            return
        else:
            self._current = chosen
            if chosen.ident is None:
                chosen.ident = 0  # until it knows
            chosen.baton.release()
        if current is not None and not current.ended:
            current.baton.acquire()
            if self.over:
                raise Abandoned

    def _all_ended(self) -> bool:
        return all(thread.ended for thread in self.threads)

    def _choose(self, current: SimThread | None) -> SimThread:
        self.steps += 1
        self.now += STEP
        if self.steps > MAX_STEPS:
            raise Endless(f"{self.steps} steps; {self._who()}")
        able = self._able()
        if not able:
            deadlines = [t.deadline for t in self.threads if not t.ended and t.deadline is not None]
            if not deadlines:
                raise Deadlock(self._who() + "\n" + self._stacks())
            self.now = max(self.now, min(deadlines))
            able = self._able()
        index = self._strategy.choose(able, current) if len(able) > 1 else 0
        if len(able) > 1:
            self.choices.append(index)
        chosen = able[index]
        if self._keep_trace:
            self.trace.append(f"{self.now:.6f} {chosen.name}: {chosen.what}")
        return chosen

    def _able(self) -> list[SimThread]:
        self._choosing = True  # what is asked may be the library's
        try:
            return [thread for thread in self.threads if not thread.ended and self._is_able(thread)]
        finally:
            self._choosing = False

    def _is_able(self, thread: SimThread) -> bool:
        late = thread.deadline is not None and thread.deadline <= self.now
        return thread.ready is None or late or bool(thread.ready())

    def _who(self) -> str:
        return ", ".join(map(repr, (thread for thread in self.threads if not thread.ended)))

    def _stacks(self) -> str:
        frames = sys._current_frames()
        stacks = []
        for thread in self.threads:
            frame = frames.get(thread.ident or 0)
            if not thread.ended and frame is not None:
                stacks.append(f"--- {thread}\n" + "".join(traceback.format_stack(frame)[-6:]))
        return "\n".join(stacks)


# Opcodes at which CPython may let another thread go on, or that lead to C code that may. More of them do no harm.
_SWITCHING = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RETURN", "YIELD", "RESUME")
_MAY_SWITCH = frozenset(code for name, code in dis.opmap.items() if name.startswith(_SWITCHING))


class Fine:
    """Makes a point of choice of each opcode of the library at which CPython may let another thread go on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._codes: dict[CodeType, bytes] = {}

    def begin(self) -> None:
        """The run begins."""

    def begin_thread(self) -> None:
        """The calling thread does."""
        sys.settrace(self._enter)

    def end(self) -> None:
        """The run has ended."""

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The trace function of a thread."""
        if not frame.f_globals.get("__name__", "").startswith("nwebsocket."):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            code = frame.f_code
            opcodes = self._codes.get(code)
            if opcodes is None:
                opcodes = self._codes[code] = code.co_code
            if opcodes[frame.f_lasti] in _MAY_SWITCH:
                self._scheduler.point(f"{code.co_name}:{frame.f_lineno}")
        return self._step


class Monitored(Fine):
    """The same since Python 3.12, where tracing misses opcodes now and then."""

    _TOOL = 4

    def begin(self) -> None:
        monitoring = self._monitoring = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        events = monitoring.events
        monitoring.use_tool_id(self._TOOL, "simulation")
        for event in (events.PY_START, events.PY_RESUME, events.PY_RETURN, events.PY_YIELD, events.CALL, events.JUMP):
            monitoring.register_callback(self._TOOL, event, self._at)
        monitoring.register_callback(self._TOOL, events.C_RETURN, self._at)
        self._all = events.PY_START | events.PY_RESUME | events.PY_RETURN | events.PY_YIELD | events.CALL | events.JUMP
        for code in _codes_of_library():
            monitoring.set_local_events(self._TOOL, code, self._all)

    def begin_thread(self) -> None:
        pass

    def end(self) -> None:
        for code in _codes_of_library():
            self._monitoring.set_local_events(self._TOOL, code, 0)
        self._monitoring.free_tool_id(self._TOOL)

    def _at(self, code: CodeType, *_: object) -> None:
        self._scheduler.point(code.co_name)


@functools.cache
def _codes_of_library() -> list[CodeType]:
    functions = [
        function.__code__
        for function in gc.get_objects()
        if type(function) is FunctionType and str(function.__module__).partition(".")[0] == "nwebsocket"
    ]
    codes: dict[CodeType, None] = {}
    while functions:
        code = functions.pop()
        codes[code] = None
        functions += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return list(codes)
