"""The clients that are compared, each used as its own documentation says is fastest; compression is off in all.

A client has a method for each job that it can do, told the URL. It is imported when it is made, so that one that is
not installed is just left out. One process runs one client (see _worker.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import socket
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from time import perf_counter
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from _jobs import (
    Connect,
    Echo,
    Exchange,
    Job,
    Link,
    Message,
    ReceiveFlood,
    SendFlood,
    Spread,
    check_acknowledgement,
    check_size,
    message_of,
)

PATIENCE = 25.0
"""Seconds that a round with callbacks may take beyond its own length: less than what compare.py gives a client."""


Handler = Callable[[Any], object]
T = TypeVar("T")


class Client:
    """A client and what it can do.

    ``ca``  the file of the authority that has signed the server's certificate; None: one that the system knows
    """

    package: ClassVar[str] = "nwebsocket"

    def __init__(self, ca: str | None) -> None:
        self.ca = ca

    def version(self) -> str:
        return version(self.package)


class Blocking(Client):
    """A client with a blocking send and a blocking receive: all jobs follow from `open`."""

    def open(self, url: str, kind: str) -> Link:
        """Connect; `kind` is what will be sent and received, "text" or "bytes"."""
        raise NotImplementedError

    def tls(self, url: str) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.ca) if url.startswith("wss:") else None

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        return Echo(self.open(url, kind), message_of(size, kind), in_flight)

    def exchange(self, url: str, size: int, in_flight: int) -> Job:
        return Exchange(self.open(url, "text"), message_of(size, "text"), in_flight)

    def spread(self, url: str, size: int, connections: int) -> Job:
        return Spread([self.open(url, "text") for _ in range(connections)], message_of(size, "text"))

    def receive_flood(self, url: str, size: int) -> Job:
        return ReceiveFlood(self.open(url, "text"), size)

    def send_flood(self, url: str, size: int) -> Job:
        return SendFlood(self.open(url, "text"), message_of(size, "text"))

    def connect(self, url: str) -> Job:
        return Connect(lambda: self.open(url, "text"))

    def idle(self, url: str, number: int) -> list[Any]:
        """Open so many connections (each counts with its Link, about 0.3 KiB)."""
        return [self.open(url, "text") for _ in range(number)]


# --- This library


class Nwebsocket(Blocking):
    """Driven from the main thread with send() and recv()."""

    callbacks = "thread"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        from nwebsocket import WebSocket, connect

        logging.getLogger("nwebsocket").setLevel(logging.ERROR)  # it warns when a flood fills the inbox
        self.connected, self.websocket = connect, WebSocket

    def options(self, url: str) -> dict[str, Any]:
        return {"compression": None, "ssl": self.tls(url), "callbacks": self.callbacks}

    def open(self, url: str, kind: str) -> Link:
        return self.link(self.connected(url, **self.options(url)))

    def link(self, ws: Any) -> Link:
        def close() -> None:
            ws.close()
            ws.wait_closed()

        return Link(ws.send, ws.recv, close)


class NwebsocketCallbacks(Nwebsocket):
    """Driven by onmessage, on the socket's callback thread."""

    def handled(self, url: str, onmessage: Handler) -> Link:
        ws = self.websocket(url, **self.options(url))
        ws.onmessage = onmessage
        return self.link(ws.wait_open())

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        if in_flight != 1:
            raise NotImplementedError("callbacks are measured with one query at a time")
        return CallbackEcho(lambda handler: self.handled(url, handler), message_of(size, kind))

    def receive_flood(self, url: str, size: int) -> Job:
        return CallbackReceiveFlood(lambda handler: self.handled(url, handler), size)

    def idle(self, url: str, number: int) -> list[Any]:
        return [self.handled(url, print) for _ in range(number)]


class NwebsocketLoop(NwebsocketCallbacks):
    """Driven by onmessage, on the loop thread."""

    callbacks = "loop"


class NwebsocketQueries(Nwebsocket):
    """Driven from the main thread with query(), which takes the place of send()."""

    def open(self, url: str, kind: str) -> Link:
        from nwebsocket import QueryMixin

        class Asking(QueryMixin, self.websocket):  # type: ignore[misc, name-defined]
            """A socket that can query."""

        ws = Asking(url, **self.options(url)).wait_open()
        return self.link(ws)._replace(send=ws.query)


class NwebsocketWithoutNumpy(Nwebsocket):
    """As if NumPy were not installed: `import numpy` fails."""

    def __init__(self, ca: str | None) -> None:
        sys.modules["numpy"] = None  # type: ignore[assignment]
        super().__init__(ca)


class NwebsocketV1(Blocking):
    """The first release. It knows callbacks only, all on its loop thread; receiving is a queue that onmessage feeds."""

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        import nwebsocket

        if nwebsocket.__version__ != "1.0.0":
            raise ImportError(f"{nwebsocket.__file__} is nwebsocket {nwebsocket.__version__}")
        self.websocket = nwebsocket.WebSocket

    def version(self) -> str:
        return "1.0.0"

    def open(self, url: str, kind: str) -> Link:
        inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        return self.handled(url, inbox.put)._replace(recv=inbox.get)

    def handled(self, url: str, onmessage: Handler) -> Link:
        ws = self.websocket(url)
        ws.onmessage = onmessage
        while ws.readyState != ws.OPEN:  # as its README does
            time.sleep(1e-4)
        return Link(ws.send, _nothing, ws.close)


class NwebsocketV1Callbacks(NwebsocketV1):
    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        return CallbackEcho(lambda handler: self.handled(url, handler), message_of(size, kind))

    def receive_flood(self, url: str, size: int) -> Job:
        return CallbackReceiveFlood(lambda handler: self.handled(url, handler), size)


def _nothing() -> Message:
    raise NotImplementedError("messages go to onmessage")


class CallbackEcho:
    """Send the next query in onmessage, when the answer to the last one has come."""

    def __init__(self, connect: Callable[[Handler], Link], message: Message) -> None:
        self._message, self._size = message, len(message)
        self._done = threading.Event()
        self.seconds: list[float] = []  # of each query of the last round
        self._send, _, self.close = connect(self._received)

    def round(self, seconds: float) -> int:
        self._done.clear()
        self.seconds = []
        self._sent = perf_counter()
        self._until = self._sent + seconds
        self._send(self._message)
        _wait(self._done, seconds)
        return len(self.seconds)

    def _received(self, message: Message) -> None:
        if len(message) != self._size:
            check_size(message, self._size)  # the library logs it, and the round times out
        now = perf_counter()
        self.seconds.append(now - self._sent)
        self._sent = now
        if now < self._until:
            self._send(self._message)
        else:
            self._done.set()


class CallbackReceiveFlood:
    """Count what the server sends as fast as it can in onmessage."""

    def __init__(self, connect: Callable[[Handler], Link], size: int) -> None:
        self._size = size
        self._left = 0
        self._done = threading.Event()
        self._send, _, self.close = connect(self._received)

    def round(self, messages: float) -> int:
        number = self._left = int(messages)
        self._done.clear()
        self._send(str(number))
        _wait(self._done, 0)
        return number

    def _received(self, message: Message) -> None:
        if len(message) != self._size:
            check_size(message, self._size)
        self._left -= 1
        if not self._left:
            self._done.set()


def _wait(done: threading.Event, seconds: float) -> None:
    if not done.wait(seconds + PATIENCE):
        raise TimeoutError("the messages did not all come")


# --- The others


class Websockets(Blocking):
    package = "websockets"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        from websockets.sync.client import connect

        self.connected = connect

    def open(self, url: str, kind: str) -> Link:
        ws = self.connected(url, ssl=self.tls(url), compression=None)
        return Link(ws.send, ws.recv, ws.close)


class WebsocketClient(Blocking):
    """Its documentation recommends wsaccel for speed; it sets TCP_NODELAY itself."""

    package = "websocket-client"

    def __init__(self, ca: str | None) -> None:
        super().__init__(ca)
        import websocket

        self.create = websocket.create_connection

    def open(self, url: str, kind: str) -> Link:
        options = {"sslopt": {"context": context}} if (context := self.tls(url)) else {}
        ws = self.create(url, enable_multithread=False, **options)
        return Link(ws.send if kind == "text" else ws.send_binary, ws.recv, ws.close)


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
        ws = self.curl.WebSocket(autoclose=False).connect(url, verify=self.ca)

        def close() -> None:
            # Its close() frees the connection without waiting for the server's Close frame.
            ws.send(b"\x03\xe8", self.curl.CurlWsFlag.CLOSE)
            ws.recv()
            ws.terminate()

        if kind == "text":
            return Link(ws.send_str, ws.recv_str, close)
        return Link(ws.send_bytes, lambda: ws.recv()[0], close)


class RawSocket(Blocking):
    """No client, but the floor under all: frames prepared in advance, replies read by their length, nothing parsed.

    A burst is written with one call and read with as few as the system allows, so that its figure shows what the
    server can do.
    """

    package = ""

    def version(self) -> str:
        return ""

    def open(self, url: str, kind: str) -> Link:
        parts = urlsplit(url)
        sock = socket.create_connection((parts.hostname, parts.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context := self.tls(url):
            sock = context.wrap_socket(sock, server_hostname=parts.hostname)
        request = (
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        sock.sendall(request.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += _some(sock.recv(4096))

        def close() -> None:
            sock.sendall(_masked_frame(8, b"\x03\xe8"))
            while sock.recv(4096):
                pass
            sock.close()

        return Link(sock.sendall, lambda: sock, close)  # type: ignore[arg-type, return-value]

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        return RawEcho(self.open(url, kind), size, kind, in_flight)

    def receive_flood(self, url: str, size: int) -> Job:
        return RawReceiveFlood(self.open(url, "text"), size)

    def send_flood(self, url: str, size: int) -> Job:
        return RawSendFlood(self.open(url, "text"), size)


class RawEcho(Echo):
    def __init__(self, link: Link, size: int, kind: str, in_flight: int) -> None:
        super().__init__(link, "", in_flight)
        payload = b"x" * size
        self._sent = _masked_frame(1 if kind == "text" else 2, payload) * in_flight
        self._awaited = memoryview(bytearray(len(_header(1, size)) + size) * in_flight)
        self._sock: Any = link.recv()

    def burst(self) -> None:
        self.link.send(self._sent)
        _receive(self._sock, self._awaited)


class RawReceiveFlood:
    def __init__(self, link: Link, size: int) -> None:
        self._link, self._size = link, size
        self._buffer = memoryview(bytearray(2**18))
        self.close = link.close

    def round(self, messages: float) -> int:
        number = int(messages)
        sock: Any = self._link.recv()
        self._link.send(_masked_frame(1, str(number).encode()))
        left = number * (2 + self._size)
        while left:
            left -= _some(sock.recv_into(self._buffer[:left]))
        return number


class RawSendFlood:
    BLOCK = 1000

    def __init__(self, link: Link, size: int) -> None:
        self._link, self._size = link, size
        self._block = _masked_frame(1, b"x" * size) * self.BLOCK
        self.close = link.close

    def round(self, messages: float) -> int:
        blocks = int(messages) // self.BLOCK
        number = blocks * self.BLOCK
        self._link.send(_masked_frame(1, str(number).encode()))
        for _ in range(blocks):
            self._link.send(self._block)
        sock: Any = self._link.recv()
        check_acknowledgement(sock.recv(4096)[2:], number, self._size)
        return number


def _receive(sock: Any, buffer: memoryview) -> None:
    while buffer:
        buffer = buffer[_some(sock.recv_into(buffer)) :]


def _some(received: T) -> T:
    if not received:
        raise ConnectionError("the server has hung up")
    return received


def _header(opcode: int, size: int, mask: int = 0) -> bytes:
    """A frame's first bytes (RFC 6455 section 5.2); `mask` is 0x80 in what a client sends."""
    first = bytes([0x80 | opcode])
    if size < 126:
        return first + bytes([mask | size])
    if size < 2**16:
        return first + bytes([mask | 126]) + size.to_bytes(2, "big")
    return first + bytes([mask | 127]) + size.to_bytes(8, "big")


def _masked_frame(opcode: int, payload: bytes) -> bytes:
    key = os.urandom(4) * (len(payload) // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key[: len(payload)], "big")
    return _header(opcode, len(payload), 0x80) + key[:4] + masked.to_bytes(len(payload), "big")


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

    def job(self, url: str, work: Callable[[Any, float], Awaitable[int]]) -> Job:
        return AiohttpJob(self.loop, self.loop.run_until_complete(self.open(url)), work)

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        async def work(ws: Any, seconds: float) -> int:
            send = ws.send_str if kind == "text" else ws.send_bytes
            message, receive, count = message_of(size, kind), ws.receive, 0
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
            message = message_of(size, "text")
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
        return self._loop.run_until_complete(self._work(self._ws, amount))  # type: ignore[arg-type]

    def close(self) -> None:
        self._loop.run_until_complete(self._ws.close())


CLIENTS: dict[str, type[Client]] = {
    "nwebsocket": Nwebsocket,
    "nwebsocket, callbacks": NwebsocketCallbacks,
    "nwebsocket, loop": NwebsocketLoop,
    "nwebsocket, no NumPy": NwebsocketWithoutNumpy,
    "nwebsocket 1.0.0": NwebsocketV1,
    "nwebsocket 1.0.0, callbacks": NwebsocketV1Callbacks,
    "websockets": Websockets,
    "websocket-client": WebsocketClient,
    "simple-websocket": SimpleWebsocket,
    "curl_cffi": CurlCffi,
    "aiohttp": Aiohttp,
    "raw socket": RawSocket,
}
