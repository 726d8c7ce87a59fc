"""Which event a handler hears next, and the thread that runs the handlers of one WebSocket.

The events of a connection have a fixed order: open, the messages, error, close. An event is run as soon as it is the
first of those that have a handler; one that has none waits for the first handler of its type. Messages without a
handler wait for recv() and hold nobody up.

The loop thread and the setters of handlers call `notify()`; the callback thread asks `_next_type()` until it says None.

1. Code of the user's runs with no lock held. So what is found out by asking it (`handlers.py`) is acted upon under the
   lock only if nothing has changed meanwhile: `handlers.changes`, `_notices`.
2. What a handler raises is logged, and ends neither the thread nor the dispatching.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

from .._base import orphan
from .._base.log import log
from .._threads import the_loop
from ..events import (
    EVENT_TYPES,
    CloseEvent,
    ErrorEvent,
    Event,
    EventType,
    MessageEvent,
    takes_event,
)
from ..exceptions import ConnectionClosed, InvalidStateError
from .bridge import Bridge
from .handlers import ATTRIBUTE, Handlers, Listener
from .outgoing import overfull
from .phase import ReadyState

INIT_PATIENCE = 5.0
"""Seconds that an ``__init__`` may run while events wait, before a warning says why no callback has run yet."""

LATE_HANDLER_PATIENCE = 0.25
"""Seconds that the callback thread outlives its connection while events wait for a handler: set soon, it runs there."""


class Callbacks:
    """The handlers of one WebSocket, and the thread they run on."""

    def __init__(self, owner: Any, bridge: Bridge, origin: str, where: str, defaults: dict[str, Any]) -> None:
        self._bridge = bridge
        self._life = bridge.life
        self._origin = origin
        self._on_loop = where == "loop"
        self._owner = weakref.ref(owner, self._owner_gone)
        self.handlers = Handlers(self._owner, bridge.lock, defaults)
        # Held while there are handlers, so that a socket lives as long as it may call them.
        self._kept_alive: Any = None
        # How many __init__ are running; callbacks are held until the outermost has returned.
        self._init_depth = 0
        self._held_notified = False
        # Events that have happened and that no handler has heard yet, but for messages, which the bridge keeps.
        self._pending: set[EventType] = set()
        # Those of them for which there was no handler when it was looked for; every new handler moves them back.
        self._unheard: set[EventType] = set()
        self._end_dispatched = False
        self._shows_open = False
        self._notices = 0  # calls of notify(); guarded by the bridge's lock, as the next one is
        self._keepings = 0  # calls of _keep_owner(): the last one decides
        self._paused = False  # on the loop: they have sent too much, here or to others, and wait until it is written
        self._thread: threading.Thread | None = None
        self._thread_ident: int | None = None
        self._running = False
        # The callback thread sleeps, or is about to, on `_wakeup`; guarded by the bridge's lock.
        self._idle = False
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    # ---- handlers

    def attribute_set(self, name: str) -> None:
        """An on... attribute has been assigned: it takes its place among the listeners, and what waited is run."""
        self.handlers.set_attribute(name)
        self._handlers_changed()

    def add(self, event_type: str, function: Callable[[Any], Any], once: bool) -> None:
        """addEventListener()."""
        if self.handlers.add(event_type, function, once):
            self._handlers_changed()

    def remove(self, event_type: str, function: Callable[[Any], Any]) -> None:
        """removeEventListener(); takes effect at once, also for the event being dispatched."""
        self.handlers.remove(event_type, function)
        self._keep_owner()

    def _handlers_changed(self) -> None:
        with self._bridge.lock:
            self.handlers.changed()
            self._pending |= self._unheard
            self._unheard.clear()
        self._keep_owner()
        self._bridge.wake()  # a recv() that waits has nothing to wait for any more
        self.notify()

    def hear_on_thread(self) -> bool:
        """Whether somebody listens to messages, on the callback thread."""
        return not self._on_loop and self.handlers.hear_messages()

    # ---- the constructor

    def init_entered(self) -> None:
        self._init_depth += 1

    def init_left(self) -> None:
        """When the outermost __init__ has returned, callbacks may run."""
        self._init_depth -= 1
        if self._init_depth == 0:
            self._handlers_changed()

    def _hold(self) -> None:
        if not self._held_notified:
            self._held_notified = True
            callbacks = weakref.ref(self)  # which may have ended long before

            def warn_if_held() -> None:
                alive = callbacks()
                if alive is not None:
                    alive._warn_if_held()

            self._bridge.call_later(INIT_PATIENCE, warn_if_held)

    def _warn_if_held(self) -> None:
        if self._init_depth:
            log.warning(
                "%s.__init__ has been running for %g s: callbacks run only after it has returned",
                type(self._owner()).__name__,
                INIT_PATIENCE,
            )

    # ---- what happened

    def happened(self, *event_types: EventType) -> None:
        """Events to be heard; from the loop thread, followed by notify()."""
        with self._bridge.lock:
            self._pending.update(event_types)

    def opened_again(self, origin: str) -> None:
        """A new connection is open: what nobody has heard of the end of the last one is of no interest any more."""
        self._origin = origin
        with self._bridge.lock:
            self._unheard.clear()

    def run_at_once(self, messages: list[str | bytes]) -> list[str | bytes]:
        """Run the message handler for messages that have just come, with callbacks="loop" and nothing in the inbox;
        return those for which this cannot be done: they go the usual way, by notify(). This one is faster.
        """
        owner, handlers = self._owner(), self.handlers
        if self._pending or self._init_depth or self._running or owner is None:
            return messages
        self._running = True
        try:
            for index, data in enumerate(messages):
                handler = handlers.only_attribute(owner)
                if handler is None:
                    return messages[index:]
                try:
                    handler(data)
                except BaseException as error:
                    self._log_exception("onmessage", error)
                if overfull and self._pause():
                    return messages[index + 1 :]
                if orphan.thread is not None:
                    orphan.end()
        finally:
            self._running = False
        return []

    def _pause(self) -> bool:
        """Pause the handlers on the loop, which have sent more than `write_limit` and cannot wait in send(): the next
        message is heard when that is written. Return whether they pause.
        """
        if self._on_loop:
            self._paused = self._bridge.intake.hold_up_handlers()
        return self._paused

    def go_on(self) -> None:
        """What they have sent is written; on the loop thread."""
        if self._paused:
            self._paused = False
            self.notify()

    def notify(self) -> None:
        """There may be something to run, or somebody new to hear it. From any thread."""
        if self._init_depth:
            self._hold()
        elif self._on_loop:
            self._notify_loop()
        else:
            self._notify_thread()

    def come_and_read(self) -> None:
        """The socket is lent: the callback thread, if it sleeps, shall read it."""
        with self._bridge.lock:
            self._wake_thread()

    def ended(self) -> None:
        """The connection is over, and everything that happened has been said; from the loop thread."""
        self.notify()
        self._keep_owner()

    def _keep_owner(self) -> None:
        """A socket with handlers lives until it has heard everything; without, nobody but its user holds it."""
        with self._bridge.lock:
            self._keepings += 1
            number = self._keepings
        over = self._life.ending is not None and self._next_type() is None
        listening = not over and any(map(self.handlers.hear, EVENT_TYPES))
        owner = self._owner() if listening else None
        with self._bridge.lock:
            if number == self._keepings:  # else another thread has looked later
                owner, self._kept_alive = self._kept_alive, owner
        del owner  # without the lock: it may have been the last reference

    def _notify_thread(self) -> None:
        with self._bridge.lock:
            self._notices += 1
            if self._thread is not None:
                self._wake_thread()
                return
        if self._next_type() is None:
            return
        try:
            with self._bridge.lock:
                if self._thread is not None:
                    self._wake_thread()
                    return
                self._thread = threading.Thread(target=self._run_thread, name="nwebsocket-callbacks", daemon=True)
        except BaseException:
            self._bridge.post(self._start_thread)
            raise
        # Not on the main thread: a signal handler that interrupts start() breaks the thread.
        if get_ident() != threading.main_thread().ident or not self._bridge.post(self._start_thread):
            self._start_thread_here()

    async def _start_thread(self) -> None:
        if self._thread is None:
            self.notify()
        else:
            self._start_thread_here()

    def _start_thread_here(self) -> None:
        thread = self._thread
        if thread is None or thread.ident is not None:
            return
        try:
            thread.start()
        except RuntimeError:
            # No more threads: the system's limit is reached, or the interpreter is exiting (Python 3.12+).
            if threading.main_thread().is_alive():
                log.warning("no thread can be started for callbacks: they run on the loop thread")
            self._thread = None
            self._on_loop = True
            self._notify_loop()

    def _run_thread(self) -> None:
        self._thread_ident = get_ident()
        while True:
            self._run_all()
            self._bridge.write_now()
            self._bridge.lead(None)
            notices = self._notices
            if self._next_type() is not None:
                continue
            with self._bridge.lock:
                if notices != self._notices:
                    continue
                if self._owner() is None or self._all_heard():
                    break
                self._idle = True
                patience = -1 if self._life.ending is None else LATE_HANDLER_PATIENCE
            if patience > 0:
                self._bridge.wake()  # wait_closed() waits for just this
            self._bridge.want_socket_back()
            if not self._wakeup.acquire(timeout=patience) and self._stays_idle():
                break
        self._finish_thread()

    def _all_heard(self) -> bool:
        """Whether the connection has ended and no event is left, with a handler or without."""
        return self._life.ending is not None and not (self._pending or self._unheard or self._bridge.inbox.messages)

    def _owner_gone(self, _: object) -> None:
        with self._bridge.lock:
            self._wake_thread()

    def _wake_thread(self) -> None:
        idle, self._idle = self._idle, False
        if idle:
            self._wakeup.release()

    def _stays_idle(self) -> bool:
        """Whether nobody woke the thread between its time-out and now."""
        with self._bridge.lock:
            idle, self._idle = self._idle, False
            if not idle:
                self._wakeup.acquire()
            return idle

    def _finish_thread(self) -> None:
        with self._bridge.lock:
            self._thread = None
            self._thread_ident = None
        self._bridge.wake()
        self.notify()  # a handler set in this very moment is not forgotten

    def _notify_loop(self) -> None:
        if self._paused:
            return
        if the_loop.is_loop_thread() and not self._running:
            self._run_all()
            self._bridge.wake()
        elif not self._bridge.post(self._run_on_loop) and threading.main_thread().is_alive():
            the_loop.current().post(self._run_on_loop)  # a handler that is set after the loop has ended

    async def _run_on_loop(self) -> None:
        if not self._running and not self._paused:
            self._run_all()
            self._bridge.wake()

    def after_fork_in_child(self) -> None:
        """There is no callback thread in the child, and nothing to hear: the events are the parent's."""
        self._pending.clear()
        self._unheard.clear()
        self._running = self._idle = False
        self._end_dispatched = True
        self._thread = self._thread_ident = self._kept_alive = None
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    # ---- running

    def is_current(self) -> bool:
        """Whether the caller is one of this socket's handlers."""
        if self._on_loop:
            return self._running and the_loop.is_loop_thread()
        return get_ident() == self._thread_ident

    def end_unheard(self) -> bool:
        """Whether the connection has ended and neither its error nor its close has been heard."""
        return self._pending | self._unheard >= {"error", "close"}

    def settled(self) -> bool:
        """Nothing is running, and nothing waits that could run now."""
        if self._init_depth:
            return True
        # In this order: whoever runs them says so before he takes any.
        return self._next_type() is None and not self._running

    def visible_state(self) -> ReadyState:
        """readyState: a handler sees the state of its event, everybody else the connection's."""
        state = self._life.state
        if self._end_dispatched or state <= ReadyState.OPEN or not self.is_current():
            return state
        closing = self._life.closed_locally and not self._shows_open
        return ReadyState.CLOSING if closing else ReadyState.OPEN

    def _next_type(self) -> EventType | None:
        """The type of the first event that has a handler."""
        if "open" in self._pending and self._has_handler_or_sets_aside("open"):
            return "open"
        if self._bridge.inbox.messages and self.handlers.hear_messages():
            return "message"
        if not self._pending:
            return None
        if "error" in self._pending and self._has_handler_or_sets_aside("error"):
            return "error"
        if "close" in self._pending and self._has_handler_or_sets_aside("close"):
            return "close"
        return None

    def _has_handler_or_sets_aside(self, event_type: EventType) -> bool:
        while True:
            changes = self.handlers.changes
            if self.handlers.hear(event_type):
                return True
            with self._bridge.lock:
                if changes == self.handlers.changes:
                    if event_type in self._pending:
                        self._pending.discard(event_type)
                        self._unheard.add(event_type)
                    break
        if event_type == "open":
            self._bridge.announced()
        return False

    def _run_all(self) -> None:
        self._running = True
        try:
            while not self._paused and (event_type := self._next_type()) is not None:
                owner = self._owner()
                if owner is None:
                    return
                if event_type == "message":
                    self._dispatch_messages(owner)
                else:
                    self._dispatch(owner, event_type)
                del owner
        finally:
            self._running = False
        if self._on_loop:
            orphan.end()
        if self._life.ending is not None:
            self._keep_owner()
        self._bridge.callbacks_rest()

    def _dispatch_messages(self, owner: Any) -> None:
        """All that wait; no event comes between them."""
        self._bridge.inbox.begin_consuming()
        try:
            self._consume(owner)
        finally:
            self._bridge.inbox.end_consuming()

    def _consume(self, owner: Any) -> None:
        """Have the messages heard, until there are none, or nobody would hear the next."""
        bridge, handlers = self._bridge, self.handlers
        while bridge.inbox.messages:
            if overfull and self._pause():
                return
            handler = handlers.only_attribute(owner)
            if handler is None:
                if self._dispatch_to_hearers(owner):
                    continue
                return
            data = bridge.inbox.take()
            if data is None:
                return
            try:
                handler(data)
            except BaseException as error:
                self._log_exception("onmessage", error)

    def _dispatch_to_hearers(self, owner: Any) -> bool:
        hearers = self.handlers.hearers("message")
        data = self._bridge.inbox.take() if hearers else None
        if data is None:
            return False
        self._call_handlers(MessageEvent("message", owner, data, self._origin), hearers, data)
        return True

    def _dispatch(self, owner: Any, event_type: EventType) -> None:
        hearers = self.handlers.hearers(event_type)
        if not hearers:
            return  # the last one has just been removed: `_next_type` will set the event aside
        with self._bridge.lock:
            if event_type == "close" and "error" in self._pending:
                return  # the connection was to come back, and now has ended for good: that error goes first
            self._pending.discard(event_type)
            ending, retry_in = self._bridge.to_be_heard()
        if event_type == "open":
            self._shows_open = self._life.closed_locally  # close() came before this event was heard
            self._bridge.announcing()
            self._call_handlers(Event("open", owner), hearers)
            self._bridge.announced()
            self._shows_open = False
            return
        assert ending is not None
        self._end_dispatched = retry_in is None
        if event_type == "error":
            assert ending.error is not None
            self._call_handlers(ErrorEvent("error", owner, ending.error), hearers, ending.error)
        else:
            event = CloseEvent("close", owner, ending.code, ending.reason, ending.clean, retry_in)
            self._call_handlers(event, hearers)

    def _call_handlers(self, event: Event, hearers: list[Any], argument: Any = None) -> None:
        """Run them. What a handler removes does not run any more."""
        for index, entry in enumerate(hearers):
            if isinstance(entry, Listener):
                if index == 0 or not entry.removed:
                    self._call_listener(entry, event)
            else:
                handler = self.handlers.attribute(event.type) if entry is ATTRIBUTE else entry
                if handler is not None:
                    self._call_attribute(handler, event, argument)

    def _call_listener(self, entry: Listener, event: Event) -> None:
        if entry.once:
            self.handlers.take_off(event.type, entry)
            self._keep_owner()
        self._call(event.type, entry.function, event)

    def _call_attribute(self, handler: Callable[..., Any], event: Event, argument: Any) -> None:
        name = f"on{event.type}"
        if argument is None:
            self._call(name, _call_with_or_without, handler, event)
        else:
            self._call(name, handler, argument)

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """An exception in a handler is logged, and the next event is still delivered."""
        try:
            function(*arguments)
        except BaseException as error:
            self._log_exception(name, error)

    def _log_exception(self, name: str, error: BaseException) -> None:
        owner = type(self._owner()).__name__
        if self._on_loop:
            orphan.end(error)
        if self._is_late(error):
            log.info("the handler %s of %s came too late: %s", name, owner, error)
        else:
            log.exception("exception in the handler %s of %s", name, owner)

    def _is_late(self, error: BaseException) -> bool:
        """Whether it is no fault of the handler's: the program has closed the socket, or the connection for which the
        handler was called is lost, and the next one will call it again.
        """
        if isinstance(error, ConnectionClosed):
            return error.closed_first == "client" and self._life.closed_locally
        return isinstance(error, InvalidStateError) and self._bridge.has_refused(error)


def _call_with_or_without(handler: Callable[..., Any], event: Event) -> None:
    """onopen and onclose may be written with a parameter, for the event, or without."""
    if takes_event(handler):
        handler(event)
    else:
        handler()
