"""What a handler hears: the event objects of the browser, and how many of them a handler asks for.

Names and meaning follow the WHATWG standards (DOM section 2.2, HTML section 9.1, WebSockets section 6).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import InitVar, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

EventType = Literal["open", "message", "error", "close"]
EVENT_TYPES: tuple[EventType, ...] = ("open", "message", "error", "close")
WITH_ARGUMENT = frozenset({"onmessage", "onerror"})
HANDLER_NAMES: dict[str, EventType] = {f"on{event_type}": event_type for event_type in EVENT_TYPES}


class _Aimed:
    """What has a target that is no field: ``dataclasses.asdict()`` copies fields, and a socket cannot be copied."""

    __slots__ = ("target",)

    target: Any

    def _as_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        kind, *others = fields(self)  # type: ignore[arg-type]
        pairs = [(kind.name, getattr(self, kind.name)), ("target", self.target)]
        pairs += [(field.name, getattr(self, field.name)) for field in others]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Aimed) or type(self) is not type(other):
            return NotImplemented
        return self.target is other.target and self._as_tuple() == other._as_tuple()

    def __hash__(self) -> int:
        return hash((id(self.target), *self._as_tuple()))

    def __copy__(self) -> Self:
        return self  # it never changes

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an event cannot be pickled with its socket: take its fields by dataclasses.asdict()")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Event(_Aimed):
    """Something happened to ``target``, the WebSocket; ``currentTarget`` is the same socket.

    The target is no field of the dataclass.
    """

    type: EventType
    target: InitVar[Any]

    def __post_init__(self, target: Any) -> None:
        object.__setattr__(self, "target", target)

    @property
    def currentTarget(self) -> Any:
        """The socket whose listener is running: always ``target``."""
        return self.target


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MessageEvent(Event):
    """A message has come: ``data`` is a str (text) or bytes (binary), ``origin`` the server's, as in "wss://host"."""

    data: str | bytes
    origin: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ErrorEvent(Event):
    """The connection has failed; ``error`` is the exception that says why. A CloseEvent follows."""

    error: Exception


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CloseEvent(Event):
    """The connection has ended.

    ``code``      the close code (RFC 6455 section 7.4.1); 1005: the server gave none; 1006: there was no Close frame
    ``reason``    the text beside it
    ``wasClean``  True if both sides exchanged their Close frames
    ``retry_in``  the seconds after which a ReconnectingWebSocket will connect again; None: it has ended for good
    """

    code: int
    reason: str
    wasClean: bool
    retry_in: float | None = None


_NEVER_RUN = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def check_handler(name: str, handler: Any, *, always_with_argument: bool) -> None:
    """Raise TypeError, naming the handler, unless `handler` can be called as the handler `name` will be.

    That is with one argument, or (onopen and onclose) with one or none, as it likes. Functions whose body would not
    run by being called, coroutine functions above all, are refused.
    """
    if not callable(handler):
        raise TypeError(f"{name} must be a function, a method or None, not {handler!r}")
    for function in (handler, type(handler).__call__):
        if any(is_kind(function) for is_kind in _NEVER_RUN):
            raise TypeError(f"{name} is an async or a generator function, whose body would never run: use plain def")
    try:
        signature = inspect.signature(handler)
    except ValueError:  # some builtins have none
        return
    wants_argument = always_with_argument or takes_event(handler)
    try:
        signature.bind(*([None] if wants_argument else []))
    except TypeError:
        expected = "one argument" if always_with_argument else "one argument, the event, or none"
        raise TypeError(f"{name} is called with {expected}, but its parameters are {signature}") from None


def takes_event(handler: Callable[..., Any]) -> bool:
    """Whether `handler` asks for an argument: it has a required positional parameter, or ``*args``."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except ValueError:
        return True
    return any(
        p.kind is p.VAR_POSITIONAL or (p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty)
        for p in parameters
    )
