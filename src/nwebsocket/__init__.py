"""A WebSocket client for synchronous Python: the browser's class, with callbacks, and no async.

The rooms; each imports from those below it only:

    _cli                               the command, made of public names
    _notebook                          what a notebook shows of a socket
    websocket, queries, reconnecting   what users import
    _connection                        one connection's life: the threads, the loop's task, handlers, coming back
    options                            what may be set, and checked
    _network                           names to byte streams: TCP, TLS, proxies
    _protocol, _threads                bytes to messages, without I/O; the loop thread, without WebSockets
    _base, events, exceptions, close_codes
"""

from typing import TYPE_CHECKING, Any

from ._connection.phase import ReadyState
from ._connection.sockets import close_all, open_sockets
from ._protocol.compression import Deflate
from ._protocol.response import Response
from .close_codes import CloseCode
from .events import CloseEvent, ErrorEvent, Event, MessageEvent
from .exceptions import (
    Cancelled,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionLost,
    HandshakeError,
    InvalidArgument,
    InvalidClose,
    InvalidStateError,
    InvalidURL,
    KeepaliveTimeout,
    MessageTooBig,
    OpenTimeout,
    OutboxFull,
    ProtocolError,
    ProxyError,
    QueryTimeout,
    TLSError,
    WaitTimeout,
    WebSocketError,
)
from .options import Options, WebSocketOptions
from .websocket import Stats, WebSocket, connect

if TYPE_CHECKING:
    from .queries import Query, QueryMixin, QueryStats
    from .reconnecting import Outbox, ReconnectingOptions, ReconnectingWebSocket

__version__ = "2.0.0"

__all__ = [
    "Cancelled",
    "CloseCode",
    "CloseEvent",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionLost",
    "Deflate",
    "ErrorEvent",
    "Event",
    "HandshakeError",
    "InvalidArgument",
    "InvalidClose",
    "InvalidStateError",
    "InvalidURL",
    "KeepaliveTimeout",
    "MessageEvent",
    "MessageTooBig",
    "OpenTimeout",
    "Options",
    "Outbox",
    "OutboxFull",
    "ProtocolError",
    "ProxyError",
    "Query",
    "QueryMixin",
    "QueryStats",
    "QueryTimeout",
    "ReadyState",
    "ReconnectingOptions",
    "ReconnectingWebSocket",
    "Response",
    "Stats",
    "TLSError",
    "WaitTimeout",
    "WebSocket",
    "WebSocketError",
    "WebSocketOptions",
    "__version__",
    "close_all",
    "connect",
    "open_sockets",
]

# What few need is imported when it is asked for.
_LATER = {
    "Outbox": "reconnecting",
    "Query": "queries",
    "QueryMixin": "queries",
    "QueryStats": "queries",
    "ReconnectingOptions": "reconnecting",
    "ReconnectingWebSocket": "reconnecting",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)
