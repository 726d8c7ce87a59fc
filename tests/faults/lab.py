"""The fault lab: a real server, and for each connection a relay that harms it.

    with Lab(authority) as lab:
        with lab.place(cell) as place:     # listens at place.url for one client
            ...                            # afterwards place.echoes are the messages that came back to the server

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
from collections.abc import AsyncIterator, Coroutine, Iterator
from hashlib import sha512
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from matrix import BEFORE, HARMLESS, MESSAGES, Cell, Stage
from peers import LIMIT, Authority
from relay import Relay
from websockets.asyncio.server import Server, ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from typing_extensions import Self

logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it logs every connection that fails

Message = str | bytes
T = TypeVar("T")

#: What the client is to answer with close().
PLEASE_CLOSE = "please close"

#: With what a message begins that the client is to send back in fragments of so many characters.
IN_FRAGMENTS, FRAGMENT = "fragments", 60

#: With what the phases of a sweep begin, which counts bytes from the first one of the connection.
SWEEP = "sweep"

#: Seconds for which the first packets of a client are not answered, at the "delay" of connecting.
LATE = 0.1


def _filler(size: int, seed: str) -> bytes:
    """Bytes without an order that compression could use."""
    return b"".join(sha512(f"{seed} {part}".encode()).digest() for part in range(size // 64 + 1))[:size]


def _text(seed: str, size: int = 60) -> str:
    return f"{seed} {_filler(size, seed).hex()}"[:size]


#: The message of each phase that has one; all others have the first.
OF_PHASE: dict[str, list[Message]] = {
    "text": [_text("text")],
    "binary": [_filler(60, "binary")],
    "large": [_filler(70_000, "large")],
    "fragments": [_text(IN_FRAGMENTS, 3 * FRAGMENT)],
    "two": [_text("one"), _text("two")],
}
for sweep in (f"{SWEEP}, our close", f"{SWEEP}, server's close"):
    OF_PHASE[sweep] = [_text("t", 12), _filler(12, "b"), "", _text(IN_FRAGMENTS, FRAGMENT + 12)]


def conversation(cell: Cell) -> list[Message]:
    """All that the server sends, in order."""
    warm_up = [_text(f"message {number}") for number in range(BEFORE)]
    of_phase = OF_PHASE.get(cell.stage.phase, OF_PHASE["text"])
    closing = [PLEASE_CLOSE] if is_closed_by_us(cell.stage) else []
    return [*warm_up, *of_phase, _text("last"), *closing]


def is_closed_by_us(stage: Stage) -> bool:
    """Whether the client closes, not the server."""
    return stage.phase.endswith("our close")


def is_fragmented(message: Message) -> bool:
    """Whether a message goes in fragments, both ways."""
    return isinstance(message, str) and message.startswith(IN_FRAGMENTS)


def fragments_of(message: str) -> list[str]:
    """A message in fragments."""
    return [message[start : start + FRAGMENT] for start in range(0, len(message), FRAGMENT)]


class Place:
    """Where the client of one cell connects, and what becomes of its connection.

    ``url``          for the client
    ``echoes``       what the server has received
    ``intact``       how many of these it had when the fault struck
    ``request_end``  how many bytes the client had sent up to the end of its request
    ``boundaries``   how many the server had sent up to the end of its answer, and of each message
    """

    def __init__(self, cell: Cell, number: int) -> None:
        self.cell = cell
        self.relay = Relay(cell.fault, cell.bit, on_strike=self._struck)
        self.echoes: list[Message] = []
        self.intact = 0
        self.boundaries: list[int] = []
        self.request_end = 0
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
        for sock in (self._listener, *self._fillers):
            sock.close()
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.relay.abort()

    def _struck(self) -> None:
        self.intact = len(self.echoes)

    # ---- the server's side

    def request_has_come(self) -> None:
        """The answer follows."""
        self.request_end = self.relay.up.taken
        if self.cell.stage.phase == "response":
            self.relay.arm("down", self.cell.offset)

    async def converse(self, connection: ServerConnection) -> None:
        """Say what there is to say, have it echoed, and close."""
        self._mark()
        messages = conversation(self.cell)
        for number, message in enumerate(messages):
            if number == BEFORE:
                await self._begin_stage(connection)
            elif number == len(messages) - 1 and message == PLEASE_CLOSE:
                self._arm_for_our_close()
            fragmented = is_fragmented(message)
            await connection.send(self._fragments(connection, str(message)) if fragmented else message)
            self._mark()
            if self.cell.stage.phase == "two" and number == BEFORE:
                self.relay.arm("down", self.cell.offset)
            elif message != PLEASE_CLOSE:
                await self._hear(connection, 2 if self.cell.stage.phase == "two" and number == BEFORE + 1 else 1)
        await self._close(connection)

    def _mark(self) -> None:
        self.relay.drain()
        self.boundaries.append(self.relay.down.taken)

    async def _hear(self, connection: ServerConnection, count: int) -> None:
        for _ in range(count):
            self.echoes.append(await connection.recv())

    async def _begin_stage(self, connection: ServerConnection) -> None:
        (phase, direction, place, *_), relay = self.cell.stage, self.relay
        if phase == "idle":
            relay.strike(direction)
            if self.cell.fault not in HARMLESS:
                await connection.wait_closed()
        elif phase in MESSAGES and (place != "between" or direction == "up"):
            relay.arm(direction, self.cell.offset)

    async def _fragments(self, connection: ServerConnection, message: str) -> AsyncIterator[str]:
        """A message in fragments; a ping within, unless the pong would be what the fault strikes."""
        first, *others = fragments_of(message)
        yield first
        phase, direction, place, *_ = self.cell.stage
        if (phase, direction) != ("fragments", "up"):
            await connection.ping()
        if (phase, direction, place) == ("fragments", "down", "between"):
            self.relay.arm("down", self.cell.offset)
        for fragment in others:
            yield fragment

    def _arm_for_our_close(self) -> None:
        """The client's Close frame is what comes next from it, and the server's answer follows that."""
        (phase, direction, *_), relay, offset = self.cell.stage, self.relay, self.cell.offset
        if phase == "our close" and direction == "up":
            relay.arm("up", offset)
        elif phase == "our close":
            relay.arm_answer("down", offset)

    async def _close(self, connection: ServerConnection) -> None:
        stage = self.cell.stage
        if is_closed_by_us(stage):
            await connection.wait_closed()
            return
        if stage.phase == "server's close":
            self.relay.arm(stage.direction, self.cell.offset)
        await connection.close(1000, "done")


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
    def place(self, cell: Cell) -> Iterator[Place]:
        """Be ready for the client of the cell."""
        number = next(self._numbers)
        place = self._places[f"/{number:06}"] = Place(cell, number)
        self._call(place.open(self._path(cell.secure)))
        try:
            yield place
        finally:
            self._call(place.close())

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
        place.request_has_come()
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        with contextlib.suppress(ConnectionClosed):
            await self._places[connection.request.path].converse(connection)
