"""A server of aiohttp.

    python aiohttp_server.py PORT

    /                     echo; the sub-protocol "chat" is accepted
    /close                closes with 4001 and "enough" after the first message
    /closes               sends the next close code and reason that / hears of, if it has a reason
    /status/{status}      refuses
    /redirect/{status}    redirects to the query parameter "to"
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import WSMsgType, web

heard: asyncio.Queue[str] = asyncio.Queue()


async def accept(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=["chat"])
    await socket.prepare(request)
    return socket


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = await accept(request)
    while (message := await socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    if message.extra:
        heard.put_nowait(f"{message.data} {message.extra}")
    return socket


async def close(request: web.Request) -> web.WebSocketResponse:
    socket = await accept(request)
    await socket.receive()
    await socket.close(code=4001, message=b"enough")
    return socket


async def closes(request: web.Request) -> web.WebSocketResponse:
    socket = await accept(request)
    await socket.send_str(await heard.get())
    await socket.receive()
    return socket


async def status(request: web.Request) -> web.Response:
    code = int(request.match_info["status"])
    return web.Response(status=code, headers={"X-Why": "test"}, text=f"refused with {code}")


async def redirect(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), headers={"Location": request.query["to"]})


def main() -> None:
    app = web.Application()
    handlers = {"/": echo, "/close": close, "/closes": closes}
    refusals = {"/status/{status}": status, "/redirect/{status}": redirect}
    app.add_routes([web.get(path, handler) for path, handler in {**handlers, **refusals}.items()])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, shutdown_timeout=0.5)


main()
