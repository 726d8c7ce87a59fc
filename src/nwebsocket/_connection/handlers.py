"""Who hears the events of one WebSocket: its on... attributes, and what addEventListener() was given.

1. Code of the user's (attributes, which may be properties, and the `__eq__` of listeners) runs with no lock held. So
   what is found out by asking it is acted upon under the lock only if `changes` is still what it was.
2. What it raises is logged once for each attribute, which is then taken for none.
3. Who is the first to hear an event is settled before the event is taken: then at least one hears it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any

from .._base.log import log
from .._base.logger import contains
from ..events import EVENT_TYPES, HANDLER_NAMES, WITH_ARGUMENT, EventType, check_handler

ATTRIBUTE = object()
"""Stands for the handler in the ``on...`` attribute in a list of listeners, which has its place there."""

_NO_LISTENERS = [ATTRIBUTE]


class Listener:
    """One entry of addEventListener()."""

    __slots__ = ("function", "once", "removed")

    def __init__(self, function: Callable[[Any], Any], once: bool) -> None:
        self.function = function
        self.once = once
        self.removed = False

    def remove(self) -> None:
        """It does not run any more, even if its event is being dispatched."""
        self.removed = True


class Handlers:
    """The handlers of one WebSocket; from any thread.

    ``owner``     gives the WebSocket, or None when it is gone
    ``lock``      the connection's
    ``defaults``  the base class's empty on... methods: an attribute that is still one of these is no handler
    """

    __slots__ = (
        "_broken",
        "_default_onmessage",
        "_defaults",
        "_listeners",
        "_lock",
        "_owner",
        "changes",
    )

    def __init__(self, owner: Callable[[], Any], lock: RLock, defaults: dict[str, Any]) -> None:
        self._owner = owner
        self._lock = lock
        self._defaults = defaults
        self._default_onmessage = defaults["onmessage"]
        self._listeners: dict[str, list[Any]] = {}  # of the types that have ever had some
        self._broken: tuple[str, ...] = ()  # attributes that could not be looked up, and of which the log has been told
        self.changes = 0
        """How often they have changed; guarded by the lock."""

    def set_attribute(self, name: str) -> None:
        """An on... attribute has been assigned: it takes its place among the listeners."""
        with self._lock:
            listeners = self._listeners.setdefault(HANDLER_NAMES[name], [])
            if ATTRIBUTE not in listeners:
                listeners.append(ATTRIBUTE)

    def add(self, event_type: str, function: Callable[[Any], Any], once: bool) -> bool:
        """Add a listener; False if the same function is there already (DOM section 2.7)."""
        while True:
            changes = self.changes
            if any(entry is not ATTRIBUTE and entry.function == function for entry in self._copied(event_type)):
                return False
            with self._lock:
                if changes == self.changes:
                    self._listeners.setdefault(event_type, []).append(Listener(function, once))
                    return True

    def remove(self, event_type: str, function: Callable[[Any], Any]) -> None:
        """Remove a listener, if it is there."""
        for entry in self._copied(event_type):
            if entry is not ATTRIBUTE and entry.function == function:
                self.take_off(event_type, entry)

    def take_off(self, event_type: str, entry: Listener) -> None:
        """Remove this entry."""
        with self._lock:
            self.changed()
            entry.remove()
            if entry in (listeners := self._listeners[event_type]):
                listeners.remove(entry)

    def _copied(self, event_type: str) -> list[Any]:
        return list(self._listeners.get(event_type, ()))

    def changed(self) -> None:
        """They have changed; with the lock held."""
        self.changes += 1

    def hear(self, event_type: str) -> bool:
        """Whether there is a handler for this type of event."""
        listeners = self._listeners.get(event_type)
        if listeners and any(entry is not ATTRIBUTE for entry in listeners):
            return True
        return self.attribute(event_type) is not None

    def hear_anything(self) -> bool:
        """Whether there is a handler for any type of event."""
        owner, defaults = self._owner(), self._defaults
        try:  # as in attribute(), with fewer calls: it is asked for each connection
            for name in HANDLER_NAMES:
                handler = getattr(owner, name, None)
                if handler is not None and getattr(handler, "__func__", None) is not defaults[name]:
                    return True
        except BaseException:
            self._not_looked_up(owner, name)
            return any(map(self.hear, EVENT_TYPES))
        return any(entry is not ATTRIBUTE for listeners in list(self._listeners.values()) for entry in listeners)

    def hear_messages(self) -> bool:
        """The same for messages, as fast as can be: it is asked for each one."""
        if self._listeners and "message" in self._listeners:
            return self.hear("message")
        owner = self._owner()
        try:
            handler = getattr(owner, "onmessage", None)
            return handler is not None and getattr(handler, "__func__", None) is not self._default_onmessage
        except BaseException:
            self._not_looked_up(owner, "onmessage")
            return False

    def only_attribute(self, owner: Any) -> Callable[[Any], Any] | None:
        """The onmessage attribute, if it is a handler and nobody else listens to messages; as fast as can be."""
        if self._listeners and (listeners := self._listeners.get("message")) and listeners != _NO_LISTENERS:
            return None
        try:  # as in attribute(), with fewer calls
            handler: Callable[[Any], Any] | None = getattr(owner, "onmessage", None)
            return None if getattr(handler, "__func__", None) is self._default_onmessage else handler
        except BaseException:
            self._not_looked_up(owner, "onmessage")
            return None

    def attribute(self, event_type: str) -> Callable[..., Any] | None:
        """The on... attribute, if it is a handler. It may be a property, and the socket may have a `__getattr__`."""
        owner, name = self._owner(), f"on{event_type}"
        try:
            handler: Callable[..., Any] | None = getattr(owner, name, None)
            return None if getattr(handler, "__func__", None) is self._defaults[name] else handler
        except BaseException:
            self._not_looked_up(owner, name)
            return None

    def _not_looked_up(self, owner: Any, name: str) -> None:
        """What looking it up has raised, and is being handled, goes to the log, or on."""
        if not contains():
            raise
        if name not in self._broken:
            self._broken += (name,)
            log.exception("%s of %s cannot be looked up: it is taken for none", name, type(owner).__name__)

    def hearers(self, event_type: EventType) -> list[Any]:
        """Who will hear the next event of this type, in the order in which they were registered: Listeners, and
        ATTRIBUTE for the on... attribute. But the first is what to call: it hears the event whatever happens.
        """
        entries = self._copied(event_type)
        if ATTRIBUTE not in entries:
            entries.insert(0, ATTRIBUTE)
        for index, entry in enumerate(entries):
            first = self.attribute(event_type) if entry is ATTRIBUTE else entry
            if first is not None:
                return [first, *entries[index + 1 :]]
        return []


def check_methods(owner: Any, defaults: dict[str, Any]) -> None:
    """Raise TypeError if a method of a subclass cannot be the handler that its name says."""
    for name in HANDLER_NAMES:
        handler = getattr(owner, name)
        if handler is not None and getattr(handler, "__func__", None) is not defaults[name]:
            check_handler(name, handler, always_with_argument=name in WITH_ARGUMENT)
