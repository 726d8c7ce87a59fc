"""The peers that the tests run against: two real servers, one that lies, and addresses where nobody answers.

    echo_server()      the `websockets` package: the reference peer
    uvicorn_server()   uvicorn with wsproto: a second, independent one
    RawServer(script)  bytes under the test's control: it lies, stalls, splits and resets
    dead_address()     accepts no connection and never says so; refusing_address() says so at once
    tls_contexts()     a certificate authority for all of them

Every server listens on port 0, runs in threads of its own, and is a context manager. When it is left, the threads
and sockets are gone within about a second even if a client hangs, and what went wrong inside is raised in the test.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import logging
import os
import select
import selectors
import socket
import ssl as ssl_module
import struct
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import trustme
import uvicorn
import websockets.exceptions
import websockets.http11
import websockets.sync.server

if TYPE_CHECKING:
    from typing_extensions import Self

#: No operation of a peer blocks for longer than this (seconds).
LIMIT = 10.0

#: What is still running when a server is left has this long to end by itself before its sockets are cut (seconds).
GRACE = 0.5

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

# Both log the clients that vanish, which is what many tests are about.
logging.getLogger("websockets").setLevel(logging.CRITICAL)
logging.getLogger("uvicorn").setLevel(logging.CRITICAL)


# --- What the servers have in common

Host = str | socket.socket
"""Where to listen: an address, or a socket that listens, which the server closes."""


class Server:
    """A listening socket, the threads that serve it, and what went wrong in them.

    ``url``   where it listens, with a trailing slash: ``ws://127.0.0.1:port/``
    """

    def __init__(self, host: Host, ssl: ssl_module.SSLContext | None) -> None:
        self._listener = _listen(host) if isinstance(host, str) else host
        address: str = self._listener.getsockname()[0]
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'wss' if ssl else 'ws'}://{f'[{address}]' if ':' in address else address}:{self.port}/"
        self._failures: list[BaseException] = []

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        unraised = self._failures if error else self._failures[1:]
        for failure in unraised:
            traceback.print_exception(type(failure), failure, failure.__traceback__, file=sys.stderr)
        if self._failures and not error:
            raise self._failures[0]

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def _failures_noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._failures.append(error)
            raise

    @contextlib.contextmanager
    def _failures_kept(self) -> Iterator[None]:
        with contextlib.suppress(BaseException), self._failures_noted():
            yield

    def _expect_end(self, threads: Iterable[threading.Thread]) -> None:
        for thread in _join(threads, LIMIT / 2):
            self._failures.append(RuntimeError(f"{thread.name} does not end though its sockets are cut"))


def _listen(host: str) -> socket.socket:
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


_Thread = TypeVar("_Thread", bound=threading.Thread)


def _join(threads: Iterable[_Thread], seconds: float) -> list[_Thread]:
    """Wait for all threads, `seconds` in all; return those that are still alive."""
    deadline = time.monotonic() + seconds
    waited = list(threads)
    for thread in waited:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in waited if thread.is_alive()]


def _spawn(target: Callable[..., object], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=f"peer {target.__name__}", daemon=True)
    thread.start()
    return thread


def _cut(sock: socket.socket) -> None:
    """End whatever blocks on `sock` in another thread, which still has to close it."""
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown, which would pull the TLS object away from under the other thread.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _see_off(sock: socket.socket) -> None:
    """Let the client read what it was sent: a reset, for what we have not read of it, would overtake that."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while socket.socket.recv(sock, 65536):
            pass


# --- The websockets package

Connection = websockets.sync.server.ServerConnection


def echo(connection: Connection) -> None:
    """Send every message back as it came."""
    for message in connection:
        connection.send(message)


class EchoServer(Server):
    """See echo_server()."""

    def __init__(
        self, handler: Callable[[Connection], None], host: Host, ssl: ssl_module.SSLContext | None, **options: Any
    ) -> None:
        super().__init__(host, ssl)
        self.requests: list[websockets.http11.Request] = []
        self._handler = handler
        self._lock = threading.Lock()
        # All under the lock: every connection's thread and socket, and the connections that are in their handler.
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._open: set[Connection] = set()
        self._server = websockets.sync.server.serve(
            self._handle, sock=self._listener, ssl=ssl, process_request=self._record, **options
        )
        self._serve_socket = self._server.handler
        self._server.handler = self._track

    def _start(self) -> None:
        self._acceptor = _spawn(self._server.serve_forever)

    def _stop(self) -> None:
        # In a thread: since websockets 17 it waits for all handlers, before that for nothing.
        shutdown = _spawn(self._server.shutdown)
        self._expect_end([self._acceptor])
        with self._lock:
            going_away = [_spawn(connection.close, 1001) for connection in self._open]
            threads = dict(self._threads)
        for thread in _join(threads, GRACE):
            _cut(threads[thread])
        self._expect_end([*threads, *going_away, shutdown])
        for name in ("shutdown_watcher", "shutdown_notifier"):
            if isinstance(descriptor := getattr(self._server, name, None), int):  # websockets before 17
                os.close(descriptor)

    def _track(self, sock: socket.socket, address: object) -> None:
        with self._lock:
            self._threads[threading.current_thread()] = sock
        self._serve_socket(sock, address)

    def _record(self, connection: Connection, request: websockets.http11.Request) -> None:
        self.requests.append(request)

    def _handle(self, connection: Connection) -> None:
        with self._lock:
            self._open.add(connection)
        try:
            with self._failures_noted(), contextlib.suppress(websockets.exceptions.ConnectionClosed):
                self._handler(connection)
        finally:
            with self._lock:
                self._open.discard(connection)


def echo_server(
    *,
    handler: Callable[[Connection], None] = echo,
    host: Host = "127.0.0.1",
    ssl: ssl_module.SSLContext | None = None,
    compression: str | None = "deflate",
    subprotocols: Sequence[str] | None = None,
    max_size: int | None = None,
    ping_interval: float | None = None,
    **options: Any,
) -> EchoServer:
    """Return a server of the `websockets` package that runs `handler` in a thread for each connection.

    Its ``requests`` lists the opening requests (``path``, ``headers``). A handler that ends by ConnectionClosed has
    not failed. The other arguments are those of websockets.sync.server.serve(). Clients that are still there at
    the end get a Close frame with 1001.
    """
    return EchoServer(
        handler,
        host,
        ssl,
        compression=compression,
        subprotocols=subprotocols,
        max_size=max_size,
        ping_interval=ping_interval,
        **options,
    )


# --- uvicorn

_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_App = Callable[[_Event, _Receive, _Send], Awaitable[None]]


async def echo_app(scope: _Event, receive: _Receive, send: _Send) -> None:
    """Echo, as an ASGI application; the client's first sub-protocol is accepted."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})


class UvicornServer(Server):
    """See uvicorn_server()."""

    def __init__(self, app: _App) -> None:
        super().__init__("127.0.0.1", None)
        self._app = app
        self._running = threading.Event()
        config = uvicorn.Config(
            self._run_app,
            interface="asgi3",
            ws="wsproto",
            http="h11",
            lifespan="off",
            log_config=None,
            ws_max_size=sys.maxsize,
        )
        self._uvicorn = uvicorn.Server(config)

    def _start(self) -> None:
        self._thread = _spawn(self._run)
        if not self._running.wait(LIMIT):
            raise TimeoutError("uvicorn does not start")

    def _stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by an error, which is kept
            self._loop.call_soon_threadsafe(self._end)
        self._expect_end([self._thread])

    def _run(self) -> None:
        with self._failures_kept():
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running.set()
        with self._listener:
            await self._uvicorn.serve(sockets=[self._listener])

    def _end(self) -> None:
        self._uvicorn.should_exit = True
        self._loop.call_later(GRACE, self._abort)

    def _abort(self) -> None:
        self._uvicorn.force_exit = True  # or it would wait for an application that hangs
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()

    async def _run_app(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        with self._failures_noted():
            await self._app(scope, receive, send)


def uvicorn_server(app: _App = echo_app) -> UvicornServer:
    """Return a uvicorn server for an ASGI application; it speaks through wsproto, as uvicorn has it."""
    return UvicornServer(app)


# --- Bytes under the test's control


class Frame(NamedTuple):
    """A frame as it was received, unmasked. ``rsv`` has RSV1 in bit 2 and RSV3 in bit 0."""

    fin: bool
    rsv: int
    opcode: int
    payload: bytes
    masked: bool = True


def _mask(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """Return a frame (RFC 6455 section 5.2), as wrong as the arguments are.

    `rsv` has RSV1 in bit 2; `mask` is a key of four bytes, which no server may use; `length` lies about the length.
    """
    length = len(payload) if length is None else length
    masked = 0x80 if mask is not None else 0
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if length <= 125:
        head += struct.pack("!B", masked | length)
    elif length <= 0xFFFF:
        head += struct.pack("!BH", masked | 126, length)
    else:
        head += struct.pack("!BQ", masked | 127, length)
    return head + payload if mask is None else head + mask + _mask(payload, mask)


def text(message: str) -> bytes:
    """Return a whole text message."""
    return frame(TEXT, message.encode())


def binary(message: bytes) -> bytes:
    """Return a whole binary message."""
    return frame(BINARY, message)


def ping(payload: bytes = b"") -> bytes:
    """Return a ping."""
    return frame(PING, payload)


def pong(payload: bytes = b"") -> bytes:
    """Return a pong."""
    return frame(PONG, payload)


def close_frame(code: int | None = None, reason: str = "") -> bytes:
    """Return a Close frame, empty without a code."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


def accept_token(key: str) -> str:
    """Return the Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode())
    return base64.b64encode(digest.digest()).decode()


class ClientLeft(Exception):
    """The client went without having sent a byte, as one does that lost the race of RFC 8305: the script ends."""


class Peer:
    """The server's end of one connection. Nothing is read before the script asks for it.

    ``number``   how many connections the server had accepted before this one
    """

    def __init__(self, sock: socket.socket, number: int, stop: _Stop) -> None:
        self.number = number
        self._sock = sock
        self._stop = stop
        self._buffer = bytearray()

    @functools.cached_property
    def request(self) -> bytes:
        """The opening request, up to and with its empty line."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._receive():
                if not self._buffer:
                    raise ClientLeft
                raise EOFError(f"the client left within its request: {bytes(self._buffer)!r}")
        return self._take(end + 4)

    @functools.cached_property
    def path(self) -> str:
        """The target of the opening request: path and query."""
        return self.request.split(b" ", 2)[1].decode("ascii")

    @functools.cached_property
    def headers(self) -> dict[str, str]:
        """The headers of the opening request, names in lower case; repeated ones are joined with a comma."""
        headers: dict[str, str] = {}
        for line in self.request.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    def accept(
        self,
        extra_headers: Iterable[tuple[str, str]] = (),
        after: bytes = b"",
        protocol: str | None = None,
        extensions: str | None = None,
    ) -> None:
        """Send a correct 101, and `after` in the same segment."""
        headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_token(self.headers["sec-websocket-key"])),
            *([("Sec-WebSocket-Protocol", protocol)] if protocol is not None else []),
            *([("Sec-WebSocket-Extensions", extensions)] if extensions is not None else []),
            *extra_headers,
        ]
        lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in headers), "", ""]
        self.send("\r\n".join(lines).encode() + after)

    def send(self, data: bytes) -> None:
        """Send all of it, as frame() and its kin have made it."""
        self._sock.sendall(data)

    def send_slowly(self, data: bytes, chunk: int = 1) -> None:
        """Send it in segments of `chunk` bytes each."""
        for start in range(0, len(data), chunk):
            self.send(data[start : start + chunk])

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. EOFError if they do not come."""
        while len(self._buffer) < size:
            if not self._receive():
                raise EOFError(f"the client left after {bytes(self._buffer[:99])!r}, {size} bytes were to come")
        return self._take(size)

    def read_frame(self) -> Frame:
        """Return the next frame, unmasked. AssertionError if it was not masked, EOFError if there is none."""
        first, second = self.read(2)
        if not second & 0x80:
            raise AssertionError("a client's frame is not masked (RFC 6455 section 5.1)")
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.read(8))
        key = self.read(4)
        return Frame(bool(first & 0x80), first >> 4 & 7, first & 0xF, _mask(self.read(length), key))

    def read_until_close(self) -> list[Frame]:
        """Return all frames up to the client's Close frame, which is the last. EOFError if it does not come."""
        frames = [self.read_frame()]
        while frames[-1].opcode != CLOSE:
            frames.append(self.read_frame())
        return frames

    def read_eof(self) -> bytes:
        """Wait until the client has closed or reset TCP, and return what it still sent."""
        while self._receive():
            pass
        return self._take(len(self._buffer))

    def stall(self) -> None:
        """Do nothing, and read nothing, until the client has gone or the server is being stopped."""
        if not self._stop.wait(self._sock):
            raise TimeoutError(f"stalled for {LIMIT} s, and the client is still there")

    def hang(self) -> None:
        """Do nothing until the server is being stopped, even if the client has gone."""
        self._stop.wait_for_end()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def end(self) -> None:
        """End the stream towards the client, which may still write."""
        socket.socket.shutdown(self._sock, socket.SHUT_WR)

    def close(self) -> None:
        """Close TCP, without a Close frame. (The kernel makes it a reset if the client's bytes were left unread.)"""
        self._sock.close()

    def take_little(self) -> None:
        """Have the system hold little of what the script has not read: by itself it may take many MiB."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)

    def _receive(self) -> bool:
        """Add what comes to the buffer; False at the end of file, for which a reset counts as well."""
        try:
            data = self._sock.recv(65536)
        except (ConnectionError, ssl_module.SSLEOFError):
            data = b""
        if not data and self._stop.cut:
            raise AssertionError("the script was still reading when the test ended (use stall() if that is meant)")
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class _Stop:
    """Tells a RawServer's threads that the server is being stopped.

    ``receiver``   becomes readable then
    ``cut``        whether the sockets of the peers have been cut, too
    """

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.cut = False

    def set(self) -> None:
        self._sender.close()

    def wait_for_end(self) -> None:
        """Wait until the server is being stopped, LIMIT at most."""
        select.select([self.receiver], [], [], LIMIT)

    def wait(self, sock: socket.socket) -> bool:
        """Wait until the server is being stopped or the other end of `sock` has gone; False if LIMIT has passed."""
        if not hasattr(select, "POLLRDHUP"):  # only Linux tells that a client has gone without reading
            return bool(select.select([self.receiver], [], [], LIMIT)[0])
        poll = select.poll()
        poll.register(self.receiver, select.POLLIN)
        poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(LIMIT * 1000))


class RawServer(Server):
    """A server that does to each connection, in a thread of its own, what `script(peer)` does; then it closes TCP.

    An exception in a script fails the test, when the server is left: so does a script that still reads then.
    A client that refuses our certificate, or goes without having sent a byte, is none of the script's business.
    """

    def __init__(
        self, script: Callable[[Peer], object], *, ssl: ssl_module.SSLContext | None = None, host: Host = "127.0.0.1"
    ) -> None:
        super().__init__(host, ssl)
        self._script = script
        self._ssl = ssl
        self._stopping = _Stop()
        # Only the acceptor's, until it has been joined: the thread and the socket of every connection.
        self._threads: dict[threading.Thread, socket.socket] = {}

    def _start(self) -> None:
        self._acceptor = _spawn(self._accept_all)

    def _stop(self) -> None:
        self._stopping.set()
        self._expect_end([self._acceptor])
        still_busy = _join(self._threads, GRACE)
        self._stopping.cut = True
        for thread in still_busy:
            _cut(self._threads[thread])
        self._expect_end(self._threads)
        self._stopping.receiver.close()

    def _accept_all(self) -> None:
        with self._failures_kept(), self._listener, selectors.DefaultSelector() as selector:
            self._listener.setblocking(False)
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopping.receiver, selectors.EVENT_READ)
            stopping = False
            while not stopping:
                stopping = self._stopping.receiver in [key.fileobj for key, _ in selector.select()]
                # Once more after the end, lest a script is skipped whose client was quick.
                with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                    while True:
                        self._accept_one()

    def _accept_one(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(LIMIT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._ssl:
            sock = self._ssl.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._threads[_spawn(self._serve, sock, len(self._threads))] = sock

    def _serve(self, sock: socket.socket, number: int) -> None:
        with self._failures_kept(), sock:
            if isinstance(sock, ssl_module.SSLSocket):
                try:
                    sock.do_handshake()
                except (ssl_module.SSLError, ConnectionError):
                    _see_off(sock)
                    return
            with contextlib.suppress(ClientLeft):
                self._script(Peer(sock, number, self._stopping))


# --- TLS, and addresses where nobody answers


class Authority:
    """A certificate authority of our own: ``root`` is the trustme.CA."""

    def __init__(self) -> None:
        self.root = trustme.CA()

    def server(self, *names: str) -> ssl_module.SSLContext:
        """Return a server's context with a certificate for `names`; without any: localhost, 127.0.0.1 and ::1."""
        context = ssl_module.SSLContext(ssl_module.PROTOCOL_TLS_SERVER)
        self.root.issue_cert(*(names or ("localhost", "127.0.0.1", "::1"))).configure_cert(context)
        return context

    def client(self) -> ssl_module.SSLContext:
        """Return a client's context that trusts this authority alone, and is otherwise the default.

        To load the system's authorities, too, takes 50 ms, and there are hundreds of tests that ask for a context.
        """
        return ssl_module.create_default_context(cadata=self.root.cert_pem.bytes().decode())


def tls_contexts() -> Authority:
    """Return a new certificate authority, for servers and for clients that trust them."""
    return Authority()


@contextlib.contextmanager
def refusing_address() -> Iterator[tuple[str, int]]:
    """Give (host, port) of a port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@contextlib.contextmanager
def dead_address() -> Iterator[tuple[str, int]]:
    """Give (host, port) of a listener whose backlog is full: an attempt to connect is neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        connected = True
        while connected:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            connected = bool(select.select([], [filler], [], 0.1)[1])
        yield listener.getsockname()
