"""The other clients, each used as its own documentation says is fastest; and with no option at all."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from _client import Blocking, Client
from _jobs import Job, Link, check_acknowledgement, check_size
from _messages import TEXTS, TICK_SIZE, filler
from _text_jobs import bursts_of, check_same, last_tick


class Websockets(Blocking):
    package = "websockets"
    offers = True

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        from websockets.sync.client import connect

        self.connected = connect

    def open(self, url: str, kind: str) -> Link:
        ws = self.connected(url, ssl=self.tls(url), compression=None)
        return Link(ws.send, ws.recv, ws.close)

    def open_default(self, url: str) -> Link:
        ws = self.connected(url)
        assert ws.response is not None
        self.extensions = ws.response.headers.get("Sec-WebSocket-Extensions", "")
        return Link(ws.send, ws.recv, ws.close)


class WebsocketClient(Blocking):
    """Its documentation recommends wsaccel for speed; it sets TCP_NODELAY itself."""

    package = "websocket-client"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        import websocket

        self.create = websocket.create_connection

    def open(self, url: str, kind: str) -> Link:
        options: dict[str, Any] = {"sslopt": {"context": context}} if (context := self.tls(url)) else {}
        ws = self.create(url, enable_multithread=False, **options)
        return Link(ws.send if kind == "text" else ws.send_binary, ws.recv, ws.close)

    def open_default(self, url: str) -> Link:
        ws = self.create(url)
        self.extensions = ws.headers.get("sec-websocket-extensions", "")
        return Link(ws.send, ws.recv, ws.close)


class SimpleWebsocket(Blocking):
    package = "simple-websocket"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        import simple_websocket

        self.connected = simple_websocket.Client

    def open(self, url: str, kind: str) -> Link:
        # By default it reads 4 KiB at a time, which is slower.
        ws = self.connected(url, receive_bytes=2**16, ping_interval=None, ssl_context=self.tls(url))
        ws.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.link(ws)

    def open_default(self, url: str) -> Link:
        return self.link(self.connected(url))

    def link(self, ws: Any) -> Link:
        def close() -> None:
            ws.close()
            ws.thread.join()  # close() does not wait for the server's Close frame; its thread does

        return Link(ws.send, ws.receive, close)


class CurlCffi(Blocking):
    package = "curl_cffi"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        import curl_cffi

        self.curl = curl_cffi

    def open(self, url: str, kind: str) -> Link:
        link, ws = self.connected(self.curl.WebSocket(autoclose=False), url, verify=self.ca)
        return link if kind == "text" else link._replace(send=ws.send_bytes, recv=lambda: ws.recv()[0])

    def open_default(self, url: str) -> Link:
        return self.connected(self.curl.WebSocket(), url)[0]

    def connected(self, ws: Any, url: str, **options: Any) -> tuple[Link, Any]:
        ws = ws.connect(url, **options)

        def close() -> None:
            # Its close() frees the connection without waiting for the server's Close frame.
            ws.send(b"\x03\xe8", self.curl.CurlWsFlag.CLOSE)
            ws.recv()
            ws.terminate()

        return Link(ws.send_str, ws.recv_str, close), ws


class Aiohttp(Client):
    """Its own event loop in the main thread; each round is one coroutine."""

    package = "aiohttp"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        import aiohttp

        self.loop = asyncio.new_event_loop()

        async def session() -> Any:
            return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        self.session = self.loop.run_until_complete(session())

    async def open(self, url: str) -> Any:
        context = ssl.create_default_context(cafile=self.ca) if url.startswith("wss:") else True
        return await self.session.ws_connect(url, ssl=context, compress=0)

    async def open_default(self, url: str) -> Any:
        ws = await self.session.ws_connect(url)
        self.extensions = "permessage-deflate" if ws.compress else ""
        return ws

    def default_job(self, url: str, work: Callable[[Any, float], Awaitable[int]]) -> Job:
        return AiohttpJob(self.loop, self.loop.run_until_complete(self.open_default(url)), work)

    def echo_texts(self, url: str, texts: str, in_flight: int) -> Job:
        bursts = bursts_of(TEXTS[texts](), in_flight)

        async def work(ws: Any, seconds: float) -> int:
            send, receive, count = ws.send_str, ws.receive, 0
            until = perf_counter() + seconds
            while perf_counter() < until:
                burst = next(bursts)
                for text in burst:
                    await send(text)
                for text in burst:
                    if (reply := (await receive()).data) != text:
                        check_same(reply, text)
                count += in_flight
            return count

        return self.default_job(url, work)

    def receive_ticks(self, url: str) -> Job:
        async def work(ws: Any, messages: float) -> int:
            number, message = int(messages), ""
            await ws.send_str(str(number))
            for _ in range(number):
                if len(message := (await ws.receive()).data) != TICK_SIZE:
                    check_same(message, "a tick")
            check_same(message, last_tick(number))
            return number

        return self.default_job(url, work)

    def job(self, url: str, work: Callable[[Any, float], Awaitable[int]]) -> Job:
        return AiohttpJob(self.loop, self.loop.run_until_complete(self.open(url)), work)

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        async def work(ws: Any, seconds: float) -> int:
            send = ws.send_str if kind == "text" else ws.send_bytes
            message, receive, count = filler(size, kind), ws.receive, 0
            until = perf_counter() + seconds
            while perf_counter() < until:
                for _ in range(in_flight):
                    await send(message)
                for _ in range(in_flight):
                    if len(reply := (await receive()).data) != size:
                        check_size(reply, size)
                count += in_flight
            return count

        return self.job(url, work)

    def receive_flood(self, url: str, size: int) -> Job:
        async def work(ws: Any, messages: float) -> int:
            await ws.send_str(str(int(messages)))
            for _ in range(int(messages)):
                if len(message := (await ws.receive()).data) != size:
                    check_size(message, size)
            return int(messages)

        return self.job(url, work)

    def send_flood(self, url: str, size: int) -> Job:
        async def work(ws: Any, messages: float) -> int:
            message = filler(size, "text")
            await ws.send_str(str(int(messages)))
            for _ in range(int(messages)):
                await ws.send_str(message)
            check_acknowledgement((await ws.receive()).data, int(messages), size)
            return int(messages)

        return self.job(url, work)

    def connect(self, url: str) -> Job:
        async def work(ws: Any, seconds: float) -> int:
            until, count = perf_counter() + seconds, 0
            while perf_counter() < until:
                await (await self.open(url)).close()
                count += 1
            return count

        return self.job(url, work)

    def idle(self, url: str, number: int) -> list[Any]:
        return [self.loop.run_until_complete(self.open(url)) for _ in range(number)]


class AiohttpJob:
    def __init__(self, loop: asyncio.AbstractEventLoop, ws: Any, work: Callable[[Any, float], Awaitable[int]]) -> None:
        self._loop, self._ws, self._work = loop, ws, work

    def round(self, amount: float) -> int:
        return self._loop.run_until_complete(self._work(self._ws, amount))

    def close(self) -> None:
        self._loop.run_until_complete(self._ws.close())
