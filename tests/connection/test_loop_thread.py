"""The loop thread and the queue that leads there."""

import gc
import threading
from time import monotonic
from typing import Any

import garbage
import pytest

from nwebsocket._threads import loop_thread
from nwebsocket._threads.loop_thread import LoopThread
from nwebsocket._threads.safe_curio import in_thread


@pytest.fixture
def loop() -> Any:
    loop = LoopThread()
    loop.start()
    yield loop
    loop.stop(5)
    assert not loop.alive


def run(loop: LoopThread, function: Any) -> None:
    """Have `function` run on the loop thread, and wait for it."""
    done = threading.Event()

    async def command() -> None:
        try:
            function()
        finally:
            done.set()

    assert loop.post(command)
    assert done.wait(5)


def test_commands_run_on_the_loop_thread_in_the_order_of_posting(loop: LoopThread) -> None:
    seen: list[Any] = []
    for number in range(1000):

        async def command(number: int = number) -> None:
            seen.append((number, loop.is_current()))

        loop.post(command)
    run(loop, lambda: None)
    assert seen == [(number, True) for number in range(1000)]


def test_every_command_of_many_threads_runs_once_and_each_threads_in_order(loop: LoopThread) -> None:
    seen: dict[int, list[int]] = {thread: [] for thread in range(8)}

    def post_many(thread: int) -> None:
        for number in range(2000):

            async def command(number: int = number) -> None:
                seen[thread].append(number)

            loop.post(command)

    threads = [threading.Thread(target=post_many, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(loop, lambda: None)
    assert all(numbers == list(range(2000)) for numbers in seen.values())


def test_an_exception_in_a_command_is_logged_and_the_next_one_runs(loop: LoopThread, log: Any) -> None:
    run(loop, lambda: 1 / 0)
    run(loop, lambda: None)
    (record,) = log.errors()
    assert record.exc_info[0] is ZeroDivisionError


def test_many_threads_may_end_while_the_loop_is_busy(loop: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    """More than the kernel's socket for wake-ups holds bytes."""
    many, begun, gate, done = 600, threading.Semaphore(0), threading.Event(), threading.Event()
    ended: list[bool] = []

    def wait() -> bool:
        begun.release()
        return gate.wait(5)

    async def wait_for_one() -> None:
        ended.append(await in_thread(wait, "one of many"))
        if len(ended) == many:
            done.set()

    def end_all() -> None:
        threads = [thread for thread in threading.enumerate() if thread.name == "one of many"]
        gate.set()
        for thread in threads:
            thread.join()

    for _ in range(many):
        loop.spawn(wait_for_one)
    for _ in range(many):
        assert begun.acquire(timeout=5)
    run(loop, end_all)
    assert done.wait(5)
    assert all(ended)
    assert caplog.records == []


def test_after_the_end_posting_says_no() -> None:
    loop = LoopThread()
    loop.start()
    loop.stop(5)

    async def never() -> None:
        raise AssertionError

    assert not loop.post(never)


def test_a_finalizer_may_post_while_its_thread_is_inside_post(loop: LoopThread) -> None:
    seen: list[int] = []

    class Cyclic:
        def __init__(self, number: int) -> None:
            self.me, self.number = self, number

        def __del__(self) -> None:
            async def command(number: int = self.number) -> None:
                seen.append(number)

            loop.post(command)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(2000):
            Cyclic(number)

            async def nothing() -> None: ...

            loop.post(nothing)
    finally:
        gc.set_threshold(*threshold)
    garbage.collect()
    run(loop, lambda: None)
    assert sorted(seen) == list(range(2000))


def test_an_exception_that_interrupts_post_leaves_the_loop_awake(loop: LoopThread, monkeypatch: Any) -> None:
    """As a KeyboardInterrupt between the item and its wake-up byte would."""
    ran = threading.Event()

    async def command() -> None:
        ran.set()

    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._queue, "_put_send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.post(command)
    assert ran.wait(5)


def test_who_posts_goes_on_first(loop: LoopThread, monkeypatch: Any) -> None:
    """Else close() would often return in CLOSED: the system call of the wake-up lets the loop have the interpreter."""
    monkeypatch.setattr(loop_thread, "_COURTESY", 5)
    original, ran, early = loop._queue._put_send, threading.Event(), list[bool]()

    async def command() -> None:
        ran.set()

    def slow() -> None:
        original()
        early.append(ran.wait(0.05))

    monkeypatch.setattr(loop._queue, "_put_send", slow)
    loop.post(command)
    assert ran.wait(5)
    assert early == [False]


def test_a_post_that_never_returns_holds_the_loop_up_for_a_moment_only(loop: LoopThread) -> None:
    loop._posting.acquire()
    run(loop, lambda: None)


def test_call_later_runs_on_the_loop_thread(loop: LoopThread) -> None:
    ran = threading.Event()
    loop.call_later(0.01, lambda: ran.set() if loop.is_current() else None)
    assert ran.wait(5)


# --- Timers


class Bell:
    """What timers ring: the names in the order of ringing, and when."""

    def __init__(self, expected: int) -> None:
        self.rung: list[tuple[str, float]] = []
        self.done = threading.Event()
        self._expected = expected

    def ring(self, name: str) -> None:
        self.rung.append((name, monotonic()))
        if len(self.rung) == self._expected:
            self.done.set()

    def command(self, name: str) -> Any:
        async def command() -> None:
            self.ring(name)

        return command

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.rung]


def test_timers_ring_in_the_order_of_their_times_and_never_early(loop: LoopThread) -> None:
    bell, start = Bell(3), monotonic()

    async def command() -> None:
        await loop.call_at(start + 0.10, bell.command("last"))
        await loop.call_at(start + 0.02, bell.command("first"))  # nearer than the one that is waited for
        await loop.call_at(start + 0.06, bell.command("second"))

    loop.post(command)
    assert bell.done.wait(5)
    assert bell.names == ["first", "second", "last"]
    for (_, when), due in zip(bell.rung, (0.02, 0.06, 0.10), strict=True):
        assert when - start >= due


def test_a_cancelled_timer_does_not_ring_and_a_late_one_rings_at_once(loop: LoopThread) -> None:
    bell = Bell(2)

    async def command() -> None:
        (await loop.call_at(monotonic() + 0.01, bell.command("cancelled"))).cancel()
        await loop.call_at(monotonic() - 1, bell.command("late"))
        await loop.call_at(monotonic() + 0.05, bell.command("after"))

    loop.post(command)
    assert bell.done.wait(5)
    assert bell.names == ["late", "after"]


def test_a_timer_that_raises_is_logged_and_the_others_ring(loop: LoopThread, log: Any) -> None:
    bell = Bell(1)

    async def fails() -> None:
        raise ValueError("timer")

    async def command() -> None:
        await loop.call_at(monotonic(), fails)
        await loop.call_at(monotonic() + 0.01, bell.command("after"))

    loop.post(command)
    assert bell.done.wait(5)
    (error,) = log.errors()
    assert isinstance(error.exc_info[1], ValueError)


def test_call_later_from_another_thread(loop: LoopThread) -> None:
    bell, start = Bell(1), monotonic()
    loop.call_later(0.03, lambda: bell.ring(str(loop.is_current())))
    assert bell.done.wait(5)
    assert bell.names == ["True"]
    assert bell.rung[0][1] - start >= 0.03
