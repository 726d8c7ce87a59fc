"""nwebsocket, in all the ways that it is used, and its first release."""

from __future__ import annotations

import logging
import queue
import sys
import time
from itertools import repeat
from typing import Any, ClassVar

from _callback_jobs import CallbackEcho, CallbackEchoTexts, CallbackReceiveFlood, CallbackReceiveTicks
from _client import Blocking, Handler
from _jobs import Job, Link
from _messages import TEXTS, Message, filler
from _text_jobs import Queried


class Nwebsocket(Blocking):
    """Driven from the main thread with send() and recv().

    ``compression``  where the options are not the default ones
    """

    offers = True
    settings: ClassVar[dict[str, Any]] = {}
    """What makes the way of using it, with default options too."""

    def __init__(self, ca: str | None, compression: str | None = None) -> None:
        super().__init__(ca)
        import nwebsocket

        logging.getLogger("nwebsocket").setLevel(logging.ERROR)  # it warns when a flood fills the inbox
        self.compression = compression
        self.module, self.websocket = nwebsocket, self.socket_class(nwebsocket)

    def socket_class(self, module: Any) -> Any:
        return module.WebSocket

    def version(self) -> str:
        return str(self.module.__version__)

    def file(self) -> str:
        return str(self.module.__file__)

    def open(self, url: str, kind: str) -> Link:
        return self.link(self.made(url).wait_open())

    def open_default(self, url: str) -> Link:
        return self.link(self.opened_default(self.websocket(url, **self.settings)))

    def made(self, url: str) -> Any:
        return self.websocket(url, compression=self.compression, ssl=self.tls(url), **self.settings)

    def opened_default(self, ws: Any) -> Any:
        ws.wait_open()
        self.extensions = ws.extensions
        return ws

    def link(self, ws: Any) -> Link:
        def close() -> None:
            ws.close()
            ws.wait_closed()

        return Link(ws.send, ws.recv, close)


class NwebsocketCallbacks(Nwebsocket):
    """Driven by onmessage, on the socket's callback thread."""

    def handled(self, url: str, onmessage: Handler) -> Link:
        ws = self.made(url)
        ws.onmessage = onmessage
        return self.link(ws.wait_open())

    def handled_default(self, url: str, onmessage: Handler) -> Link:
        ws = self.websocket(url, **self.settings)
        ws.onmessage = onmessage
        return self.link(self.opened_default(ws))

    def echo_texts(self, url: str, texts: str, in_flight: int) -> Job:
        return CallbackEchoTexts(lambda handler: self.handled_default(url, handler), TEXTS[texts](), in_flight)

    def receive_ticks(self, url: str) -> Job:
        return CallbackReceiveTicks(lambda handler: self.handled_default(url, handler))

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        if in_flight != 1:
            raise NotImplementedError("callbacks are measured with one query at a time")
        return CallbackEcho(lambda handler: self.handled(url, handler), repeat(filler(size, kind)), size)

    def receive_flood(self, url: str, size: int) -> Job:
        return CallbackReceiveFlood(lambda handler: self.handled(url, handler), size)

    def idle(self, url: str, number: int) -> list[Any]:
        return [self.handled(url, print) for _ in range(number)]


class NwebsocketLoop(NwebsocketCallbacks):
    """Driven by onmessage, on the loop thread."""

    settings: ClassVar[dict[str, Any]] = {"callbacks": "loop"}


class NwebsocketReconnecting(Nwebsocket):
    """A ReconnectingWebSocket, driven from the main thread with send() and recv()."""

    def socket_class(self, module: Any) -> Any:
        return module.ReconnectingWebSocket


class NwebsocketReconnectingCallbacks(NwebsocketReconnecting, NwebsocketCallbacks):
    """A ReconnectingWebSocket, driven by onmessage, on the socket's callback thread."""


class NwebsocketQueries(Nwebsocket):
    """Driven from the main thread with query(), which takes the place of send()."""

    def socket_class(self, module: Any) -> Any:
        return type("Asking", (module.QueryMixin, module.WebSocket), {})

    def link(self, ws: Any) -> Link:
        return super().link(ws)._replace(send=ws.query)

    def tagged(self, url: str) -> Job:
        return Queried(self.open_default(url))


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
        return CallbackEcho(lambda handler: self.handled(url, handler), repeat(filler(size, kind)), size)

    def receive_flood(self, url: str, size: int) -> Job:
        return CallbackReceiveFlood(lambda handler: self.handled(url, handler), size)


def _nothing() -> Message:
    raise NotImplementedError("messages go to onmessage")
