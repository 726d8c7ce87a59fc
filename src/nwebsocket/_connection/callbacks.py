"""Which event a handler of one WebSocket hears next, and that it hears it.

The events of a connection have a fixed order: open, the messages, error, close. An event is run as soon as it is the
first of those that have a handler; one that has none waits for the first handler of its type. Messages without a
handler wait for recv() and hold nobody up.

The loop thread and the setters of handlers call `notify()`. Then the callback thread (`callback_thread.py`), or the
loop, calls `run_all()`, which asks `next_type()` until it says None.

1. Code of the user's runs with no lock held. So what is found out by asking it (`handlers.py`) is acted upon under the
   lock only if nothing has changed meanwhile: `handlers.changes`.
2. What a handler raises is logged, and ends neither the thread nor the dispatching.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from .._base import orphan
from .._base.log import log
from .._threads import the_loop
from ..events import (
    CloseEvent,
    ErrorEvent,
    Event,
    EventType,
    MessageEvent,
    takes_event,
)
from ..exceptions import ConnectionClosed, InvalidStateError
from .bridge import Bridge
from .callback_thread import CallbackThread
from .handlers import ATTRIBUTE, Handlers, Listener
from .outgoing import sent_too_much
from .owner import Owner
from .phase import ReadyState


class Run(Enum):
    """What the handlers do."""

    RESTING = auto()
    RUNNING = auto()
    PAUSED = auto()  # on the loop: they have sent too much, here or to others, and wait until it is written


RESTING, RUNNING, PAUSED = Run  # to look one up in the class takes four times as long


class Callbacks:
    """The handlers of one WebSocket, and the thread they run on."""

    def __init__(self, owner: Any, bridge: Bridge, origin: str, where: str, defaults: dict[str, Any]) -> None:
        self._bridge = bridge
        self._life = bridge.life
        self._origin = origin
        self._on_loop = where == "loop"
        self.owner = Owner(owner, bridge, lambda _: self.thread.wake())
        self.handlers = Handlers(self.owner.reference, bridge.lock, defaults)
        # Events that have happened and that no handler has heard yet, but for messages, which the bridge keeps.
        self._pending: set[EventType] = set()
        # Those of them for which there was no handler when it was looked for; every new handler moves them back.
        self._unheard: set[EventType] = set()
        # What handlers see in the place of the connection's state: OPEN, for an open event heard after close(); CLOSED,
        # when they hear of the end, for whatever it is; None: it is OPEN to them until close() is called.
        self._shown: ReadyState | None = None
        self.thread = CallbackThread(bridge, self)
        self._run = RESTING

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
        """Whether messages have a handler, on the callback thread."""
        return not self._on_loop and self.handlers.hear_messages()

    def init_left(self) -> None:
        """When the outermost __init__ has returned, callbacks may run."""
        if self.owner.leave_init():
            self._handlers_changed()

    # ---- what happened

    def happened(self, event_types: Sequence[EventType]) -> None:
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
        owner, handlers = self.owner.reference(), self.handlers
        if self._pending or self.owner.inits or self._run is not RESTING or owner is None:
            return messages
        self._run = RUNNING
        try:
            for index, data in enumerate(messages):
                handler = handlers.only_attribute(owner)
                if handler is None:
                    return messages[index:]
                try:
                    handler(data)
                except BaseException as error:
                    self._log_exception("onmessage", error)
                if sent_too_much and self._pause():
                    return messages[index + 1 :]
                if orphan.thread is not None:
                    orphan.end()
        finally:
            self._rest()
        return []

    def _pause(self) -> bool:
        """Pause the handlers on the loop, which have sent more than `write_limit` and cannot wait in send(): the next
        message is heard when that is written. Return whether they pause.
        """
        if not self._on_loop or not self._bridge.intake.hold_up_handlers():
            return False
        self._run = PAUSED
        return True

    def _rest(self) -> None:
        if self._run is RUNNING:
            self._run = RESTING

    def go_on(self) -> None:
        """What they have sent is written; on the loop thread."""
        if self._run is PAUSED:
            self._run = RESTING
            self.notify()

    def notify(self) -> None:
        """There may be something to run, or a new handler to hear it. From any thread."""
        if self.owner.inits:
            self.owner.waits()
        elif self._on_loop:
            self._notify_loop()
        else:
            self.thread.notify()

    def come_and_read(self) -> None:
        """The socket is lent: the callback thread, if it sleeps, shall read it."""
        self.thread.wake()

    def ended(self) -> None:
        """The connection is over, and everything that happened has been said; from the loop thread."""
        self.notify()
        self._keep_owner()

    def _keep_owner(self) -> None:
        self.owner.keep(self._may_hear_more)

    def _may_hear_more(self) -> bool:
        over = self._life.ending is not None and self.next_type() is None
        return not over and self.handlers.hear_anything()

    # ---- what the thread asks

    def next_type(self) -> EventType | None:
        """The type of the first event that has a handler: what to run next."""
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

    def is_done(self) -> bool:
        """Whether there never will be: the connection has ended and no event is left, with a handler or without; or the
        socket is gone. With the lock held.
        """
        left = self._pending or self._unheard or self._bridge.inbox.messages
        return self.owner() is None or (self._life.ending is not None and not left)

    def run_without_thread(self) -> None:
        """There are no more threads: the loop's has to do."""
        self._on_loop = True
        self._notify_loop()

    def _notify_loop(self) -> None:
        if self._run is PAUSED:
            return
        if the_loop.is_loop_thread() and self._run is RESTING:
            self.run_all()
            self._bridge.wake()
        elif not self._bridge.post(self._run_on_loop) and threading.main_thread().is_alive():
            the_loop.current().post(self._run_on_loop)  # a handler that is set after the loop has ended

    async def _run_on_loop(self) -> None:
        if self._run is RESTING:
            self.run_all()
            self._bridge.wake()

    def after_fork_in_child(self) -> None:
        """There is no callback thread in the child, and nothing to hear: the events are the parent's."""
        self._pending.clear()
        self._unheard.clear()
        self._run = RESTING
        self._shown = ReadyState.CLOSED
        self.owner.let_go()
        self.thread.after_fork_in_child()

    # ---- running

    def is_current(self) -> bool:
        """Whether the caller is one of this socket's handlers."""
        if self._on_loop:
            return self._run is RUNNING and the_loop.is_loop_thread()
        return self.thread.is_current()

    def end_unheard(self) -> bool:
        """Whether the connection has ended and neither its error nor its close has been heard."""
        return self._pending | self._unheard >= {"error", "close"}

    def settled(self) -> bool:
        """Nothing is running, and nothing waits that could run now."""
        if self.owner.inits:
            return True
        # In this order: the thread that runs them says so before it takes any.
        return self.next_type() is None and self._run is not RUNNING

    def visible_state(self) -> ReadyState:
        """readyState: a handler sees the state of its event, everybody else the connection's."""
        state = self._life.state
        if self._shown is ReadyState.CLOSED or state <= ReadyState.OPEN or not self.is_current():
            return state
        closing = self._life.closed_locally and self._shown is not ReadyState.OPEN
        return ReadyState.CLOSING if closing else ReadyState.OPEN

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

    def run_all(self) -> None:
        """Run the handlers of all events that have some."""
        self._run = RUNNING
        try:
            while self._run is RUNNING and (event_type := self.next_type()) is not None:
                owner = self.owner()
                if owner is None:
                    return
                if event_type == "message":
                    self._dispatch_messages(owner)
                else:
                    self._dispatch(owner, event_type)
                del owner
        finally:
            self._rest()
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
        inbox, handler_of = self._bridge.inbox, self.handlers.only_attribute
        while inbox.messages:
            if sent_too_much and self._pause():
                return
            handler = handler_of(owner)
            if handler is None:
                if self._dispatch_to_hearers(owner):
                    continue
                return
            data = inbox.take()
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
            return  # the last one has just been removed: `next_type` will set the event aside
        with self._bridge.lock:
            if event_type == "close" and "error" in self._pending:
                return  # the connection was to come back, and now has ended for good: that error goes first
            self._pending.discard(event_type)
            ending, retry_in = self._bridge.to_be_heard()
        if event_type == "open":
            self._shown = ReadyState.OPEN if self._life.closed_locally else None  # close() came before this is heard
            self._bridge.announcing()
            self._call_handlers(Event("open", owner), hearers)
            self._bridge.announced()
            self._shown = None
            return
        assert ending is not None
        self._shown = ReadyState.CLOSED if retry_in is None else None
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
        owner = self.owner.name
        if self._on_loop:
            orphan.end(error)
        if _is_late(self._bridge, error):
            log.info("the handler %s of %s came too late: %s", name, owner, error)
        else:
            log.exception("exception in the handler %s of %s", name, owner)



def _call_with_or_without(handler: Callable[..., Any], event: Event) -> None:
    """onopen and onclose may be written with a parameter, for the event, or without."""
    if takes_event(handler):
        handler(event)
    else:
        handler()


def _is_late(bridge: Bridge, error: BaseException) -> bool:
    """Whether it is no fault of the handler's: the program has closed the socket, or the connection for which it was
    called is lost, and the next one will call it again.
    """
    if isinstance(error, ConnectionClosed):
        return error.closed_first == "client" and bridge.life.closed_locally
    return isinstance(error, InvalidStateError) and bridge.has_refused(error)
