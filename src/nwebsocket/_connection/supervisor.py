"""One connection after another, for a socket that comes back. Runs in the loop thread.

    run() ── ask: where to, with what (in a thread) ── Session.run() ── bridge.lost() ── again? (in a thread) ── wait ─┐
      ^                                                                                                              │
      └──────────────────────────────────────────────────────────────────────────────────────────────────────────────┘

It ends by close(), by an end that would be the same the next time, or when should_reconnect() says so. The next attempt
is not made before the handlers have heard of the last one: so they hear everything in order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .._base.clock import monotonic
from .._base.log import log
from .._base.logger import repr_of
from .._protocol.url import URL
from .._threads import the_loop
from .._threads.loop_thread import Timer
from .._threads.safe_curio import (
    CancelledError,
    Event,
    Task,
    current_task,
    disable_cancellation,
    in_thread,
    sleep,
    spawn,
)
from ..exceptions import Cancelled, ConnectionFailed, ConnectionLost, WebSocketError
from ..options import Options
from .backoff import Backoff, is_final
from .callbacks import Callbacks
from .life import Ending, describe
from .opening import Opening
from .outbox import OutboxBridge
from .session import Session, conclude

CONFIRM_INTERVAL = 1.0
"""Seconds between two looks whether a ping would tell what has arrived."""


class Target(NamedTuple):
    """Where to connect to, and how."""

    url: URL
    protocols: tuple[str, ...]
    options: Options


class Supervisor:
    """Keeps a socket connected.

    ``ask``          called before each attempt, in a thread: where to connect to
    ``asks_again``   whether that may be something else each time
    ``reconnects``   called after each, in a thread: the user's last word on whether to go on after this ending
    """

    def __init__(
        self,
        bridge: OutboxBridge,
        callbacks: Callbacks,
        ask: Callable[[], Target],
        *,
        asks_again: bool,
        reconnects: Callable[[Ending, float], bool],
    ) -> None:
        self.bridge = bridge
        self._callbacks = callbacks
        self._ask = ask
        self._asks_again = asks_again
        self._reconnects = reconnects
        self.backoff = Backoff()
        self._task: Task
        self._waits = False  # for what close() need not wait for
        self._rest = Event()  # the handlers rest
        self._where: object = ""
        self._lived = 0.0  # seconds that the last connection was open
        bridge.supervise(
            on_close=lambda: bridge.post(self._stop), on_rest=self._handlers_rest, in_handler=callbacks.is_current
        )

    async def run(self) -> None:
        """All connections."""
        self._task = await current_task()
        try:
            ending = await self._connect()
            while await self._comes_back(ending):
                ending = await self._connect()
        except CancelledError:
            ending = self._ended_by_cancellation()
        except Exception as error:
            log.exception("internal error")
            ending = _failure(ConnectionLost(f"internal error: {repr_of(error)}"))
        async with disable_cancellation():
            conclude(self.bridge, self._callbacks, ending, self._where)

    async def _connect(self) -> Ending:
        """Make one attempt, and live through the connection if it succeeds."""
        self._lived = 0.0
        self.bridge.life.next_attempt()
        try:
            target = await self._interruptibly(in_thread(self._ask, "nwebsocket-ask"))
        except CancelledError:
            raise
        except WebSocketError as error:
            return _failure(error)
        except BaseException as error:  # sys.exit() in a function of the user's ends no socket
            failure = ConnectionFailed(f"asking for the URL, the headers or the protocols failed: {repr_of(error)}")
            return _failure(failure.because_of(error))
        session = _Attempt(self.bridge, self._callbacks, target)
        self.bridge.next_session(session)
        await self._live_through(session)
        self._where, self._lived = session.where, session.lived
        return session.ending

    async def _live_through(self, session: _Attempt) -> None:
        """In a task of its own: a task can be cancelled once in its life, and what comes too late goes with it."""
        task = await spawn(session.run(), daemon=True)
        try:
            await task.wait()
        except CancelledError:  # the loop ends
            await task.cancel()
            raise

    async def _comes_back(self, ending: Ending) -> bool:
        """Whether to connect again; if so, everybody has heard of the end of the last connection, and has waited."""
        bridge = self.bridge
        if bridge.life.close_request is not None or self._is_final(ending):
            return False
        seconds = self.backoff.next_delay(self._lived, ending.error, time.time())
        if not await self._user_agrees(ending, seconds):
            return False
        due = monotonic() + seconds
        bridge.comes_back_in(seconds, ending)
        if ending.error is not None:
            self._callbacks.happened(("error",))
        if bridge.life.opened_at is not None:
            self._callbacks.happened(("close",))
        self._callbacks.notify()
        log.info("%s; the next attempt is in %.1f s", describe(ending), seconds)
        await self._interruptibly(self._wait(due))
        return True

    async def _user_agrees(self, ending: Ending, seconds: float) -> bool:
        try:
            ask = in_thread(lambda: self._reconnects(ending, seconds), "nwebsocket-ask")
            return bool(await self._interruptibly(ask))
        except RuntimeError as error:  # no more threads
            if threading.main_thread().is_alive():  # else the interpreter ends: nobody can start one
                log.warning("should_reconnect() cannot be asked, it goes on: %s", error)
            return True

    def _is_final(self, ending: Ending) -> bool:
        return is_final(ending.code, ending.error, asks_again=self._asks_again)

    async def _wait(self, due: float) -> None:
        while not self._callbacks.settled():
            self._rest.clear()
            if not self._callbacks.settled():
                await self._rest.wait()
        await sleep(max(0.0, due - monotonic()))

    async def _interruptibly(self, coroutine: Any) -> Any:
        """Wait for something; close() ends that by a CancelledError."""
        self._waits = True
        try:
            if self.bridge.life.close_request is not None:
                coroutine.close()
                raise CancelledError
            return await coroutine
        finally:
            self._waits = False

    async def _stop(self) -> None:
        """close() was called (command)."""
        if self._waits:
            await self._task.cancel(blocking=False)

    def _handlers_rest(self) -> None:
        if not self._rest.is_set():
            self.bridge.post(self._rest.set)

    def _ended_by_cancellation(self) -> Ending:
        if self.bridge.life.close_request is None:
            return _failure(ConnectionLost("the loop thread has ended"))
        return _failure(Cancelled("close() was called while there was no connection"))


class _Attempt(Session):
    """A connection whose end is not the end of everything.

    It pings while messages are on their way: what was sent before an answered ping has arrived, and is not at risk.
    """

    ending: Ending
    lived = 0.0

    def __init__(self, bridge: OutboxBridge, callbacks: Callbacks, target: Target) -> None:
        opening = Opening(target.url, target.protocols, target.options, bridge.trace)
        super().__init__(bridge, callbacks, opening, target.options)
        self._origin = target.url.origin
        self._outbox = bridge
        self._confirming: Timer | None = None

    def _bridge_opened(self) -> bool:
        self._callbacks.opened_again(self._origin)
        return super()._bridge_opened()

    async def _serve(self) -> None:
        await self._confirm_later()
        await super()._serve()

    async def _confirm_later(self) -> None:
        self._confirming = await the_loop.current().call_at(monotonic() + CONFIRM_INTERVAL, self._confirm)

    async def _confirm(self) -> None:
        if self._outbox.outgoing.wants_confirmation():
            await self.ping([])
        await self._confirm_later()

    def _conclude(self, ending: Ending) -> None:
        if self._confirming is not None:
            self._confirming.cancel()
        self.ending = ending
        opened_at = self._life.opened_at
        if opened_at is not None:
            self.lived = monotonic() - opened_at
        self._outbox.lost(ending)


def _failure(error: WebSocketError) -> Ending:
    return Ending(1006, "", False, None, error)

