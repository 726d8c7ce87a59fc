"""The public class, on the user's side: validation, state, handlers, waiting.

`WebSocket` keeps one private attribute, `_nwebsocket`, and no private methods: whatever a subclass calls its own
attributes, nothing clashes.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload

from ._connection.parts import Parts
from ._connection.phase import ReadyState
from ._connection.sender import message_of
from ._protocol.payload import TEXT
from ._protocol.response import Response
from ._protocol.url import parse_protocols, parse_url
from ._threads import the_loop
from .close_codes import check_close
from .events import (
    EVENT_TYPES,
    HANDLER_NAMES,
    WITH_ARGUMENT,
    CloseEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    check_handler,
)
from .exceptions import ConnectionClosed, InvalidArgument, WaitTimeout
from .options import Options, WebSocketOptions, check_names, check_timeout, with_options_shown

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self, Unpack

    class Array(Protocol):
        """NumPy's is a Buffer for type checkers only since Python 3.12."""

        def __len__(self) -> int: ...
        def tobytes(self) -> bytes: ...

    Data = str | Buffer | Array
    Fragments = Sequence[Data] | Iterator[Data]  # not Iterable: a dict of str is one


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of one connection so far.

    ``bytes_...`` are those on the wire: handshake, framing and TLS included.
    """

    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    inbox: int  # messages received that nobody has taken yet


Init = TypeVar("Init", bound=Callable[..., None])


def _counting(init: Init) -> Init:
    """`init` wrapped so that callbacks are held until the outermost ``__init__`` has returned.

    The methods are wrapped at the first instantiation, not by a metaclass, which would clash with those of Qt, of
    Protocol and of others, and not in __init_subclass__, which runs before @dataclass makes its __init__.
    """

    @functools.wraps(init)
    def __init__(self: WebSocket, *args: Any, **kwargs: Any) -> None:
        parts = self._nwebsocket
        started_before = parts.started
        parts.enter_init()
        try:
            init(self, *args, **kwargs)
        except BaseException:
            if parts.started and not started_before:
                parts.bridge.close(1001, "")
            raise
        finally:
            parts.leave_init()

    vars(__init__)["_nwebsocket_counting"] = True
    return cast("Init", __init__)


class _Reading:
    """A read-only attribute that a subclass may shadow with one of its own: a property without the setter's veto."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else self._function(instance)


if TYPE_CHECKING:
    reading = property
else:
    reading = _Reading


class WebSocket:
    """A WebSocket as in the browser, for synchronous Python (WHATWG WebSockets; RFC 6455).

    Returns at once in CONNECTING; the connection is made in the background. Give it handlers by overriding
    `onopen`, `onmessage`, `onerror` and `onclose`, by assigning them, or with addEventListener(); or pull messages
    with recv() or iteration. Every method may be called from any thread.

    ``url``        ws:// or wss:// (http:// and https:// mean the same); ``user:password@`` goes as Basic authentication
    ``protocols``  the sub-protocols to offer, a str or several

    The options, all by keyword, with their units and defaults, are those of `nwebsocket.WebSocketOptions`.

    Raises InvalidURL, InvalidArgument (both ValueError) or TypeError for a bad argument, and nothing else: whatever
    happens to the connection is told by `onerror`, by wait_open(), and by every method that needs the connection.
    """

    CONNECTING = ReadyState.CONNECTING
    OPEN = ReadyState.OPEN
    CLOSING = ReadyState.CLOSING
    CLOSED = ReadyState.CLOSED

    _nwebsocket: Parts

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if not getattr(cls.__init__, "_nwebsocket_counting", False):
            cls.__init__ = _counting(cls.__init__)  # type: ignore[method-assign]
        self = super().__new__(cls)
        object.__setattr__(self, "_nwebsocket", Parts(_EMPTY_HANDLERS))
        return self

    @_counting
    @with_options_shown(WebSocketOptions)
    def __init__(self, url: str, protocols: str | Iterable[str] = (), **options: Unpack[WebSocketOptions]) -> None:
        parts = self._nwebsocket
        parts.check_may_start(self)
        check_names("WebSocket.__init__", options, WebSocketOptions.__optional_keys__)
        checked = Options(**options)  # type: ignore[arg-type]  # `headers`, of which it makes pairs
        parts.start(self, parse_url(url), parse_protocols(protocols), checked)

    # ---- the browser's surface

    @reading
    def url(self) -> str:
        """The URL, serialized, without user and password."""
        return self._nwebsocket.url.href

    @property
    def readyState(self) -> ReadyState:
        """CONNECTING (0), OPEN (1), CLOSING (2) or CLOSED (3). In a handler: the state of its event."""
        return self._nwebsocket.callbacks.visible_state()

    @property
    def protocol(self) -> str:
        """The sub-protocol that the server has chosen; "" if none, and before the connection is open."""
        return self._nwebsocket.session.subprotocol

    @property
    def extensions(self) -> str:
        """The extensions in use, as the server named them; "" if none, and before the connection is open."""
        return self._nwebsocket.session.extensions

    @property
    def bufferedAmount(self) -> int:
        """Bytes of payload that send() has accepted and the operating system has not taken yet; text as UTF-8.

        What could not be sent before the connection ended stays in the count, as in the browser.
        """
        return self._nwebsocket.bridge.outgoing.buffered

    @property
    def binaryType(self) -> str:
        """ "blob" or "arraybuffer", as in the browser; binary messages are ``bytes`` with both."""
        return self._nwebsocket.binary_type

    @binaryType.setter
    def binaryType(self, value: str) -> None:
        if value not in ("blob", "arraybuffer"):
            raise InvalidArgument(f"binaryType must be 'blob' or 'arraybuffer' (both give bytes), not {value!r}")
        self._nwebsocket.take_binary_as(value)

    if TYPE_CHECKING:
        # For a type checker attributes, so that they may be assigned as well as overridden by methods of any signature.
        onopen: Any
        onmessage: Any
        onerror: Any
        onclose: Any
    else:

        def onopen(self) -> None:
            """The connection is open. May be written with a parameter, and then gets the Event."""

        def onmessage(self, message: Any) -> None:
            """A message has come: a str for text, bytes for binary."""

        def onerror(self, error: Any) -> None:
            """The connection has failed; `error` is the exception that says why. onclose() follows."""

        def onclose(self) -> None:
            """The connection has ended, exactly once. May be written with a parameter, and then gets the CloseEvent."""

        def __setattr__(self, name, value):
            if name not in HANDLER_NAMES:
                object.__setattr__(self, name, value)
                return
            if value is not None:
                check_handler(name, value, always_with_argument=name in WITH_ARGUMENT)
            object.__setattr__(self, name, value)
            if self._nwebsocket.started:
                self._nwebsocket.callbacks.attribute_set(name)

    @overload
    def addEventListener(self, type: Literal["open"], fn: Callable[[Event], Any], once: bool = ...) -> None: ...
    @overload
    def addEventListener(
        self, type: Literal["message"], fn: Callable[[MessageEvent], Any], once: bool = ...
    ) -> None: ...
    @overload
    def addEventListener(self, type: Literal["error"], fn: Callable[[ErrorEvent], Any], once: bool = ...) -> None: ...
    @overload
    def addEventListener(self, type: Literal["close"], fn: Callable[[CloseEvent], Any], once: bool = ...) -> None: ...

    def addEventListener(self, type: str, fn: Callable[[Any], Any], once: bool = False) -> None:
        """Have `fn` called with the event object at each event of `type`: "open", "message", "error" or "close".

        ``once``  only at the first one. Listeners run in the order in which they were added; adding one again does
        nothing.
        """
        _check_event_type(type)
        check_handler(f"the {type} listener", fn, always_with_argument=True)
        self._nwebsocket.callbacks.add(type, fn, once)

    def removeEventListener(self, type: str, fn: Callable[[Any], Any]) -> None:
        """Undo addEventListener(); at once, also inside a listener. A function that was never added is no error."""
        _check_event_type(type)
        self._nwebsocket.callbacks.remove(type, fn)

    def send(self, data: Data | Fragments) -> None:
        """Send a message: str as text; bytes, or anything with a buffer (a NumPy array), as binary.

        A list, a tuple or an iterator of either goes out as one message, an item a fragment; it is read to its end
        first. The data is copied: it may be changed afterwards. Waits while `bufferedAmount`, and 128 bytes for each
        message in it, is over `write_limit`.

        Raises InvalidStateError in CONNECTING and ConnectionClosed in CLOSING and CLOSED (both ConnectionError),
        TypeError for anything else than the above, UnicodeEncodeError (ValueError) for a lone surrogate: then nothing
        has been sent. From any thread; on the loop thread it never waits.
        """
        bridge, message = self._nwebsocket.bridge, message_of(data)
        bridge.sender.send(message)
        if bridge.trace.on:
            bridge.trace(">", f"a message of {message[2]:,} {'text' if message[0] == TEXT else 'binary'} bytes")

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Begin the closing handshake, after the messages accepted so far. Never waits; a second call does nothing.

        ``code``    1000 or 3000-4999; None: a Close frame without a code
        ``reason``  at most 123 bytes of UTF-8; without a code it goes with 1000

        Raises InvalidClose (ValueError), and the connection goes on.
        """
        check_close(code, reason)
        self._nwebsocket.bridge.close(1000 if code is None and reason else code, reason)

    # ---- what Python adds

    def wait_open(self, timeout: float | None = None) -> Self:
        """Wait until the connection is open, and return the socket; also if it has ended since, so that nothing that
        came in between is lost.

        Raises what went wrong if it could not be opened (ConnectionFailed and its kinds), WaitTimeout after `timeout`
        seconds, and RuntimeError on the loop thread.
        """
        timeout = check_timeout(timeout)
        parts = self._nwebsocket
        bridge = parts.bridge
        if not bridge.life.was_open and bridge.life.ending is None:
            parts.check_may_wait("wait_open()", in_callback=True)
        if not bridge.wait(lambda: bridge.life.was_open or bridge.life.ending is not None, timeout):
            raise WaitTimeout(f"{parts.url.shown} is not open after {timeout:g} s{bridge.why_not_open()}")
        if bridge.life.was_open or bridge.life.ending is None:  # or it has been lost since, and will come back
            return self
        raise bridge.life.opening_error()

    def wait_closed(self, timeout: float | None = None) -> CloseEvent:
        """Wait until the connection has ended and its handlers have heard everything; return the CloseEvent.

        Raises WaitTimeout after `timeout` seconds, and RuntimeError on the loop thread and in a callback of this
        socket, which it would wait for. It does not close the connection: that is close()'s.
        """
        timeout = check_timeout(timeout)
        parts = self._nwebsocket
        parts.check_may_wait("wait_closed()", in_callback=False)
        bridge = parts.bridge
        if not parts.wait_settled(timeout):
            raise WaitTimeout(f"{parts.url.shown} has not ended and been heard of by its handlers after {timeout:g} s")
        ending = bridge.life.ending
        assert ending is not None
        return CloseEvent("close", self, ending.code, ending.reason, ending.clean)

    def recv(self, timeout: float | None = None) -> str | bytes:
        """The next message. After the end: first what is still in the inbox, then ConnectionClosed.

        Raises WaitTimeout after `timeout` seconds, ConnectionClosed also if the connection could not be opened (its
        ``__cause__`` says why), and RuntimeError while messages go to a handler, or on the loop thread.
        """
        if timeout is not None:
            timeout = check_timeout(timeout)
        parts = self._nwebsocket
        bridge, hears_messages = parts.bridge, parts.callbacks.handlers.hear_messages
        if get_ident() == bridge.loop_ident and not hears_messages():
            parts.check_may_wait("recv()", in_callback=True)
        message = bridge.recv(timeout, hears_messages)
        if message is None:
            raise WaitTimeout(f"no message from {parts.url.shown} within {timeout:g} s")
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        """The messages as they come; ends quietly after a clean close, and raises ConnectionClosed otherwise."""
        while True:
            try:
                message = self.recv()
            except ConnectionClosed:
                ending = self._nwebsocket.bridge.life.ending
                if ending is not None and ending.clean:
                    return
                raise
            yield message

    def ping(self, timeout: float | None = 10.0) -> float:
        """Send a ping, wait for its pong, and return the time between, in seconds.

        Raises WaitTimeout, InvalidStateError or ConnectionClosed, and RuntimeError on the loop thread.
        """
        timeout = check_timeout(timeout)
        parts = self._nwebsocket
        parts.check_may_wait("ping()", in_callback=True)
        bridge = parts.bridge
        bridge.life.require_open("ping()")
        answer: list[float] = []

        async def command() -> None:
            await parts.session.ping(answer)

        session = parts.session
        bridge.post(command)
        if not bridge.wait(lambda: answer or bridge.life.ending is not None or parts.session is not session, timeout):
            raise WaitTimeout(f"no pong from {parts.url.shown} within {timeout:g} s")
        if not answer:
            raise bridge.life.closed_error()
        return answer[0]

    @reading
    def latency(self) -> float | None:
        """Seconds between the last answered ping, keepalive's or ping()'s, and its pong; None before the first."""
        return self._nwebsocket.session.keepalive.latency

    @reading
    def stats(self) -> Stats:
        """Counts so far, a snapshot."""
        bridge = self._nwebsocket.bridge
        bytes_sent, bytes_received = bridge.bytes_on_wire()
        return Stats(
            messages_sent=bridge.outgoing.accepted_messages,
            messages_received=bridge.inbox.received,
            bytes_sent=bytes_sent,
            bytes_received=bytes_received,
            inbox=len(bridge.inbox.messages),
        )

    @reading
    def response(self) -> Response | None:
        """The server's answer to the handshake (status, headers); None before the connection is open."""
        return self._nwebsocket.session.response

    def __enter__(self) -> Self:
        try:
            return self.wait_open()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        parts = self._nwebsocket
        if not parts.callbacks.is_current() and not the_loop.is_loop_thread():
            self.wait_closed()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles would share, or lack, the connection."""
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: it is a connection; make another one")

    def __repr__(self) -> str:
        parts: Parts | None = self.__dict__.get("_nwebsocket")
        name = type(self).__name__
        if parts is None or not parts.started:
            return f"<{name} never opened>"
        bridge = parts.bridge
        counts = f"sent {bridge.outgoing.accepted_messages}, received {bridge.inbox.received}"
        ending = f", {bridge.life.ending.code}" if bridge.life.ending is not None else ""
        return f"<{name} {parts.callbacks.visible_state().name}{ending} {parts.url.shown} {counts}>"

    def _repr_html_(self) -> str:
        """What a notebook shows where this is the last line of a cell."""
        from ._notebook.card import card

        return card(type(self).__name__, self.__dict__.get("_nwebsocket"))

    def __del__(self) -> None:
        parts: Parts | None = self.__dict__.get("_nwebsocket")
        if parts is None or not parts.started:
            return
        if not parts.ended():
            dropped = not parts.bridge.life.closed_locally
            parts.bridge.close(1001, "")  # first: with -W error, to warn is to raise
            if dropped:
                warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)


def _check_event_type(event_type: Any) -> None:
    if event_type not in EVENT_TYPES:
        raise InvalidArgument(f"the events of a WebSocket are {', '.join(EVENT_TYPES)}; there is no {event_type!r}")


_EMPTY_HANDLERS: dict[str, Any] = {name: WebSocket.__dict__[name] for name in HANDLER_NAMES}
# What help() and notebooks show for a class without an __init__ of its own: they look at __new__ first.
vars(WebSocket.__new__)["__signature__"] = inspect.signature(WebSocket.__init__)


@with_options_shown(WebSocketOptions)
def connect(url: str, protocols: str | Iterable[str] = (), **options: Unpack[WebSocketOptions]) -> WebSocket:
    """`WebSocket(url, protocols, **options)`, once it is open. Raises what went wrong (see WebSocket.wait_open)."""
    ws = WebSocket(url, protocols, **options)
    try:
        return ws.wait_open()
    except BaseException:
        ws.close()
        raise
