"""A WebSocket client for synchronous Python: the browser's class, with callbacks, and no async.

    USER THREADS                  LOOP THREAD: one curio kernel
    websocket.py --commands--> _bridge.py --> _session.py --> _protocol.py --bytes--> _transport.py --> server
         |                   (UniversalQueue)                 (wsproto)               (TCP, TLS)
         `----messages----> _writer.py --> _framing.py --frames--> _transport.py --> server      (on either thread)
    CALLBACK THREADS
    _callbacks.py <--events--- _bridge.py <-- _intake.py <--- _protocol.py <--bytes-- _transport.py <-- server
         ^                                                    (_fast_lane.py)
         `----messages----- _bridge.py <-- _reader.py <----------------------------- _transport.py <-- server
    USER THREADS in recv()

How a connection is opened, on the loop thread:
    _session.py --> _opening.py --> _tcp.py --> server    (by name or address, or a Unix socket; then TLS, `_tls.py`)
                         |--------> _tunnel.py --> proxy --> server                                (`_proxies.py`)
                         `--------> _protocol.py, _handshake.py   request and answer; `_cookies.py`; redirects
"""

from typing import TYPE_CHECKING, Any

from ._bridge import ReadyState
from ._compression import Deflate
from ._options import Options
from ._response import Response
from ._sockets import close_all, open_sockets
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
from .websocket import Stats, WebSocket, connect

if TYPE_CHECKING:
    from .queries import Query, QueryMixin, QueryStats
    from .reconnecting import Outbox, ReconnectingWebSocket

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
    "ReconnectingWebSocket",
    "Response",
    "Stats",
    "TLSError",
    "WaitTimeout",
    "WebSocket",
    "WebSocketError",
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
    "ReconnectingWebSocket": "reconnecting",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)
