"""The clients that are compared, by the names that they have in the rows.

A client has a method for each job that it can do, told the URL. What it is made of is imported when it is made, so that
one that is not installed is just left out. One process runs one client (see _worker.py).
"""

from __future__ import annotations

import _ours
import _peers
from _client import Client
from _raw import RawSocket

CLIENTS: dict[str, type[Client]] = {
    "nwebsocket": _ours.Nwebsocket,
    "nwebsocket, callbacks": _ours.NwebsocketCallbacks,
    "nwebsocket, loop": _ours.NwebsocketLoop,
    "nwebsocket, reconnecting": _ours.NwebsocketReconnecting,
    "nwebsocket, reconnecting, callbacks": _ours.NwebsocketReconnectingCallbacks,
    "nwebsocket, query": _ours.NwebsocketQueries,
    "nwebsocket, no NumPy": _ours.NwebsocketWithoutNumpy,
    "nwebsocket 1.0.0": _ours.NwebsocketV1,
    "nwebsocket 1.0.0, callbacks": _ours.NwebsocketV1Callbacks,
    "websockets": _peers.Websockets,
    "websocket-client": _peers.WebsocketClient,
    "simple-websocket": _peers.SimpleWebsocket,
    "curl_cffi": _peers.CurlCffi,
    "aiohttp": _peers.Aiohttp,
    "raw socket": RawSocket,
}
