"""A server as users run it, with default options, in a process of its own; see SERVERS.

    /echo    every message back
    /ticks   "40000": so many ticks (see _messages.py), one by one

    python _real_server.py NAME [DIRECTORY]    prints its ports as JSON; ends when its standard input does

With a DIRECTORY, for the certificate, it listens with TLS too, and takes larger messages (`websockets` only).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from _messages import ticks
from _server import MAX_FRAME, certificate, end_with_stdin

BACKLOG = 1024


def serve_websockets(directory: str = "") -> None:
    """The asyncio server of `websockets`."""
    from websockets.asyncio.server import ServerConnection, serve

    async def converse(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/echo":
            async for message in connection:
                await connection.send(message)
        else:
            async for message in connection:
                for tick in islice(cycle(ticks()), int(message)):
                    await connection.send(tick)

    async def run() -> None:
        context, ca = certificate(Path(directory)) if directory else (None, "")
        size: Any = {"max_size": MAX_FRAME} if directory else {}  # costs nothing
        contexts = [None, context] if context else [None]
        servers = [await serve(converse, "127.0.0.1", 0, ssl=tls, **size) for tls in contexts]
        ports = [next(iter(server.sockets)).getsockname()[1] for server in servers]
        announce(ports, f"websockets {version('websockets')}, asyncio", ca)
        await asyncio.gather(*(server.serve_forever() for server in servers))

    asyncio.run(run())


def serve_aiohttp() -> None:
    """aiohttp's web server."""
    from aiohttp import WSMsgType, web

    async def echo(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws

    app = web.Application()
    app.add_routes([web.get("/echo", echo)])
    sock = listener()
    announce([sock.getsockname()[1]], f"aiohttp {version('aiohttp')}")
    web.run_app(app, sock=sock, print=None)


def serve_uvicorn() -> None:
    """uvicorn with the loop and the WebSocket implementation that it chooses by itself."""
    import uvicorn

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            kind = "bytes" if event.get("text") is None else "text"
            await send({"type": "websocket.send", kind: event[kind]})

    config = uvicorn.Config(app, log_level="warning")  # or each connection is logged
    config.load()
    loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    protocol: Any = config.ws_protocol_class
    sock = listener()
    announce([sock.getsockname()[1]], f"uvicorn {version('uvicorn')}, {protocol.__name__}, {loop}")
    uvicorn.Server(config).run(sockets=[sock])


SERVERS: dict[str, Callable[..., None]] = {
    "websockets": serve_websockets,
    "aiohttp": serve_aiohttp,
    "uvicorn": serve_uvicorn,
}


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)


def announce(ports: list[int], about: str, ca: str = "") -> None:
    print(json.dumps({"ports": ports, "about": about, "ca": ca}), flush=True)
    with open(os.devnull, "w") as nowhere:  # nobody reads what else it may say
        os.dup2(nowhere.fileno(), 1)


def main(name: str, *directory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that measures; it ends us
    threading.Thread(target=end_with_stdin, daemon=True).start()
    SERVERS[name](*directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
