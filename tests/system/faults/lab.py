"""The fault lab: a real server, and for each connection a relay that harms it.

    with Lab(authority) as lab:
        with lab.place(cell, on_strike) as place:   # listens at place.url for one client
            ...                                     # afterwards place.talk.echoes came back to the server

The server is that of the `websockets` package, once without TLS and once with it. It and all relays run on one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from matrix import Cell
from peers import LIMIT, Authority
from relay import Relay
from talk import SWEEP, Talk
from websockets.asyncio.server import Server, ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from typing_extensions import Self

logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it logs every connection that fails

T = TypeVar("T")

#: Seconds for which the first packets of a client are not answered, at the "delay" of connecting.
LATE = 0.1


class Place:
    """Where the client of one cell connects, and what becomes of its connection.

    ``url``     for the client
    ``struck``  the fault has struck
    ``intact``  how many echoes the server had then
    """

    def __init__(self, cell: Cell, number: int, on_strike: Callable[[], None]) -> None:
        self.cell = cell
        self._on_strike = on_strike
        self.struck = threading.Event()
        self.relay = Relay(cell.fault, cell.bit, on_strike=self._struck)
        self.talk = Talk(cell, self.relay)
        self.intact = 0
        self._fillers: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.setblocking(False)
        if not self._is_refused:
            self._listener.listen(0 if self._is_late else 1)
        host = f"{cell.fault}.test" if cell.stage.phase == "dns" else "127.0.0.1"
        self.url = f"{'wss' if cell.secure else 'ws'}://{host}:{self._listener.getsockname()[1]}/{number:06}"
        self._task: asyncio.Task[None] | None = None

    @property
    def will_be_struck(self) -> bool:
        """Whether there is a stream that could be."""
        return self.cell.stage.phase not in ("dns", "connect")

    @property
    def _is_refused(self) -> bool:
        return (self.cell.stage.phase, self.cell.fault) == ("connect", "reset")

    @property
    def _is_late(self) -> bool:
        """Whether the first packets of the client are dropped."""
        return self.cell.stage.phase == "connect" and not self._is_refused

    async def open(self, path: Path) -> None:
        """Begin to wait for the client."""
        if self._is_late:
            self._fill_backlog()
        self._task = asyncio.create_task(self._serve(path))

    def _fill_backlog(self) -> None:
        """Linux drops the packets of who connects, as long as the queue of a listener is full."""
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    async def _serve(self, path: Path) -> None:
        if self._is_refused or (self._is_late and self.cell.fault != "delay"):
            return
        if self._is_late:
            await self._empty_backlog()
        client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        self._arm_for_opening()
        await self.relay.join(client, str(path))

    async def _empty_backlog(self) -> None:
        await asyncio.sleep(LATE)
        for filler in self._fillers:
            filler.close()
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()

    def _arm_for_opening(self) -> None:
        """The client speaks first, and the server answers."""
        (phase, direction, *_), relay, offset = self.cell.stage, self.relay, self.cell.offset
        if phase == "tls hello":
            relay.arm(direction, offset)
        elif phase == "tls finished":
            relay.arm_answer("up", offset)
        elif phase == "request" and self.cell.secure:
            relay.up.arm_behind_handshake(offset)
        elif phase == "request" or phase.startswith(SWEEP):
            relay.arm(direction, offset)

    async def close(self) -> None:
        """End whatever is left."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for sock in (self._listener, *self._fillers):
            sock.close()
        self.relay.abort()

    def _struck(self) -> None:
        self.intact = len(self.talk.echoes)
        self.struck.set()
        self._on_strike()


class _TidyTLS(ssl.SSLObject):
    """TLS for the servers, which share a thread.

    Where OpenSSL meets a fatal alert in SSL_shutdown(), that succeeds and leaves an error in the queue of the thread:
    the next call that has to wait, of whatever connection, would be taken to have failed with it.
    """

    def unwrap(self) -> None:
        super().unwrap()
        with contextlib.suppress(ssl.SSLError):  # any error takes those in the queue along
            self.read(1)


class Lab:
    """The servers, and the thread on which they and all relays run."""

    def __init__(self, authority: Authority) -> None:
        self._context = authority.server("127.0.0.1", "delay.test")
        self._context.sslobject_class = _TidyTLS
        self._places: dict[str, Place] = {}
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault lab", daemon=True)

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        self._thread.start()
        plain, secure = (self._call(self._serve(context)) for context in (None, self._context))
        self._servers = {False: plain, True: secure}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.close()
            self._call(server.wait_closed())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()
        self._directory.cleanup()

    @contextlib.contextmanager
    def place(self, cell: Cell, on_strike: Callable[[], None]) -> Iterator[Place]:
        """Be ready for the client of the cell; call `on_strike` when the fault has struck."""
        number = next(self._numbers)
        place = self._places[f"/{number:06}"] = Place(cell, number, on_strike)
        self._call(place.open(self._path(cell.secure)))
        try:
            yield place
        finally:
            self._call(place.close())
            del self._places[f"/{number:06}"]

    def _path(self, secure: bool) -> Path:
        return Path(self._directory.name) / ("secure" if secure else "plain")

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT)

    async def _serve(self, context: ssl.SSLContext | None) -> Server:
        server: Server = await unix_serve(
            self._handle,
            str(self._path(context is not None)),
            ssl=context,
            process_request=self._process_request,
            ping_interval=None,
        )
        return server

    def _process_request(self, connection: ServerConnection, request: Any) -> Any:
        place = self._places.get(request.path)
        if place is None:
            return connection.respond(404, "no such place\n")
        place.talk.request_has_come()
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        with contextlib.suppress(ConnectionClosed):
            await self._places[connection.request.path].talk.converse(connection)
