"""A WebSocket that comes back by itself, and keeps what could not be sent.

What can be known about a message when its connection is lost:

- The operating system had not taken all of it: it cannot have arrived. It is sent again, in order, once.
- The operating system had taken it, and the server has answered a ping that was sent after it: it has reached the
  server, whose application may still have lost it, if it died at that moment.
- The operating system had taken it, no more: nobody can say. It is *at risk*, counted in `at_risk`, and not sent again,
  because it might arrive twice.

What must not be lost, the server's application has to acknowledge: use queries.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ._base.late import importing
from ._base.log import log
from ._base.numbers import count_of
from ._connection.life import Ending
from ._connection.outbox import NotKept, OutboxBridge
from ._connection.parts import make_default_tls_context
from ._connection.sender import message_of
from ._protocol.payload import TEXT, Message
from ._protocol.url import parse_protocols, parse_url
from .events import CloseEvent
from .exceptions import InvalidArgument
from .options import CommonOptions, Headers, Options, check_names, with_options_shown
from .websocket import WebSocket, reading

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._connection.supervisor import Target
    from .websocket import Data, Fragments

__all__ = ["Outbox", "ReconnectingOptions", "ReconnectingWebSocket"]

MAX_OUTBOX = 10_000

_UNKNOWN = parse_url("ws://not-known-yet/")


class Outbox:
    """What a ReconnectingWebSocket keeps for its next connection: ``len()``, iteration over the messages, clear()."""

    def __init__(self, bridge: OutboxBridge) -> None:
        self._bridge = bridge

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy would be of the connection, too."""
        raise TypeError("an outbox cannot be copied or pickled: take list(ws.outbox)")

    def __len__(self) -> int:
        return len(self._bridge.outgoing.kept)

    def __iter__(self) -> Iterator[str | bytes]:
        """The messages as they are now, the next to be sent first."""
        return map(_as_given, list(self._bridge.outgoing.kept))

    @property
    def bytes(self) -> int:
        """Bytes of payload of all messages together; text as UTF-8."""
        return self._bridge.outgoing.kept_bytes

    def clear(self) -> int:
        """Forget them; return how many they were."""
        return self._bridge.outgoing.clear_kept()

    def __repr__(self) -> str:
        return f"<Outbox {len(self)} messages, {self.bytes} bytes>"


def _as_given(message: Message) -> str | bytes:
    opcode, payload, _ = message
    whole = payload if isinstance(payload, bytes) else b"".join(payload)
    return whole.decode() if opcode == TEXT else whole


class ReconnectingOptions(CommonOptions, total=False):
    """What ReconnectingWebSocket() takes, all by keyword: the WebSocketOptions but for `sock`, and these.

    ``headers``     ()      as there, or a function that returns them; see ReconnectingWebSocket
    ``max_outbox``  10_000  messages kept at most
    """

    headers: Headers | Callable[[], Headers]
    max_outbox: int


_KNOWN = ReconnectingOptions.__optional_keys__ | {"sock"}  # which is refused with a reason


class ReconnectingWebSocket(WebSocket):
    """A WebSocket that connects again whenever its connection is lost, until close().

    While there is no connection `readyState` is CONNECTING, and what is sent is kept in the `outbox`. `onopen` is
    called at each new connection: what it sends goes before what was kept, so subscribe there. `onclose` is called at
    each loss, with a CloseEvent whose `retry_in` says in how many seconds the next attempt is made, None after the end
    for good; `onerror` at each failed attempt, too. recv() and iteration go on from one connection to the next.

    The delays are drawn at random: the first up to 3 s, then from 2.4 to 4.8 s, 3.8 to 7.7 s and so on to 30 to 60 s; a
    connection of 5 s or more begins anew; a Retry-After is heeded. It ends for good after close(), when
    should_reconnect() says so, when the server refuses with 4xx (but 408, 425, 429, and 401 if `url` or `headers` is a
    function), and when either side closes with 1002, 1003, 1007, 1008, 1009 or 1010.

    ``url``         or a function that returns it
    ``protocols``   or a function
    ``headers``     or a function. All are called before each attempt, on a thread of their own
    ``max_outbox``  messages kept at most; and at most ``write_limit`` bytes

    The other options are those of WebSocket, but for `sock`. Raises what WebSocket raises.
    """

    @with_options_shown(ReconnectingOptions, max_outbox=MAX_OUTBOX)
    def __init__(
        self,
        url: str | Callable[[], str],
        protocols: str | Iterable[str] | Callable[[], str | Iterable[str]] = (),
        **options: Unpack[ReconnectingOptions],
    ) -> None:
        with importing():
            from ._connection.opening import Opening
            from ._connection.session import Session
            from ._connection.supervisor import Supervisor, Target

        parts = self._nwebsocket
        parts.check_may_start(self)
        if options.get("sock") is not None:
            raise InvalidArgument("a ReconnectingWebSocket cannot use sock: there is no second one")
        check_names("ReconnectingWebSocket.__init__", options, _KNOWN)
        max_outbox = count_of("max_outbox", "messages", options.pop("max_outbox", MAX_OUTBOX))
        headers = options.pop("headers", ())
        others = cast("CommonOptions", options)
        fixed = Options(headers=() if callable(headers) else headers, **others)  # type: ignore[arg-type]
        first = _UNKNOWN if callable(url) else parse_url(url)
        names = () if callable(protocols) else parse_protocols(protocols)
        fixed.proxy_for(first)

        def ask() -> Target:
            target = parse_url(url()) if callable(url) else first
            chosen = parse_protocols(protocols()) if callable(protocols) else names
            now = replace(fixed, headers=headers()) if callable(headers) else fixed  # type: ignore[arg-type]
            parts.goes_to(target)
            make_default_tls_context(target, now.proxy_for(target), now)
            return Target(target, chosen, now)

        bridge = OutboxBridge(fixed, max_outbox)
        parts.prepare(self, bridge, first, fixed)
        never = Session(bridge, parts.callbacks, Opening(first, names, fixed, bridge.trace), fixed)
        supervisor = Supervisor(
            bridge,
            parts.callbacks,
            ask,
            asks_again=callable(url) or callable(headers),
            reconnects=_user_decides(weakref.ref(self)),
        )
        parts.supervise(self, never, supervisor)

    def should_reconnect(self, event: CloseEvent) -> bool:
        """Whether to connect again after this; to be overridden. Called on a thread of its own, before `onclose`.

        ``event``  its `retry_in` says when that would be
        """
        return True

    def send(self, data: Data | Fragments, keep: bool = True) -> None:
        """Send a message, as WebSocket.send() does; while there is no connection, keep it for the next one.

        ``keep``  False: not, and raise InvalidStateError then; if the connection is lost before the message has left,
                  it is forgotten

        Raises OutboxFull (BufferError) if there is no room, ConnectionClosed after the end for good.
        """
        bridge, message = self._nwebsocket.bridge, message_of(data)
        bridge.sender.send(message if keep else NotKept(message))
        if bridge.trace.on:
            bridge.trace(">", f"a message of {message[2]:,} {'text' if message[0] == TEXT else 'binary'} bytes")

    @reading
    def outbox(self) -> Outbox:
        """What waits for the next connection."""
        return Outbox(self._nwebsocket.supervisor.bridge)

    @reading
    def at_risk(self) -> int:
        """Messages that were on their way when a connection was lost: nobody can say whether they arrived."""
        return self._nwebsocket.supervisor.bridge.outgoing.at_risk

    @reading
    def retry_count(self) -> int:
        """Attempts since the last connection that lived for 5 s."""
        return self._nwebsocket.supervisor.backoff.retry_count


def _user_decides(owner: Callable[[], ReconnectingWebSocket | None]) -> Callable[[Ending, float], bool]:
    def decide(ending: Ending, seconds: float) -> bool:
        socket = owner()
        if socket is None:
            return False
        try:
            return bool(
                socket.should_reconnect(
                    CloseEvent("close", socket, ending.code, ending.reason, ending.clean, retry_in=seconds)
                )
            )
        except BaseException:
            log.exception("exception in should_reconnect() of %s: it goes on", type(socket).__name__)
            return True

    return decide
