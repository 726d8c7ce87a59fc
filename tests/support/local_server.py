"""A WebSocket server for the tests of your own subclasses: a real one, which does what the test tells it.

Copy this file to your tests as `conftest.py`, or into it. It needs `pip install pytest websockets`.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

LIMIT = 20.0  # seconds that a test waits at most; a client that comes back may take some


class LocalServer:
    """Listens on 127.0.0.1. What it does, it does to the latest connection, for which it waits if there is none.

    ``url``          where it listens; the same after a restart
    ``refuse_with``  the HTTP status for clients that come from now on; None: they are welcome
    """

    def __init__(self) -> None:
        self.refuse_with: int | None = None
        self._received: queue.SimpleQueue[str | bytes] = queue.SimpleQueue()
        self._open: list[ServerConnection] = []
        self._threads: list[threading.Thread] = []
        self._opened = threading.Condition()
        self._port = 0
        self.start()
        self.url = f"ws://127.0.0.1:{self._port}/"

    def recv(self) -> str | bytes:
        """The next message of any client."""
        try:
            return self._received.get(timeout=LIMIT)
        except queue.Empty:
            raise AssertionError(f"no message came within {LIMIT} s") from None

    def connection(self) -> ServerConnection:
        """The connection itself; ``request.path`` and ``request.headers`` say how the client asked for it."""
        with self._opened:
            assert self._opened.wait_for(lambda: self._open, LIMIT), f"nobody connected within {LIMIT} s"
            return self._open[-1]

    def send(self, message: str | bytes) -> None:
        self.connection().send(message)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close politely, and wait until the client has answered."""
        connection = self.connection()
        self._forget(connection)
        connection.close(code, reason)

    def drop(self) -> None:
        """Cut the connection, as a network that fails does."""
        self._cut(self.connection())

    def stop(self) -> None:
        """Cut all connections and stop listening, as a server that crashes does."""
        for connection in list(self._open):
            self._cut(connection)
        for thread in self._threads:
            thread.join(LIMIT)
        self._server.shutdown()
        self._acceptor.join()

    def start(self) -> None:
        """Listen again, after stop()."""
        self._server = serve(self._serve, "127.0.0.1", self._port, process_request=self._refuse)
        self._port = self._server.socket.getsockname()[1]
        self._acceptor = threading.Thread(target=self._server.serve_forever)
        self._acceptor.start()

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(HTTPStatus(self.refuse_with), "refused") if self.refuse_with else None

    def _serve(self, connection: ServerConnection) -> None:
        with self._opened:
            self._threads.append(threading.current_thread())
            self._open.append(connection)
            self._opened.notify_all()
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                self._received.put(message)
        self._forget(connection)

    def _cut(self, connection: ServerConnection) -> None:
        self._forget(connection)
        with contextlib.suppress(OSError):  # the client has just gone itself
            connection.socket.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: ServerConnection) -> None:
        with self._opened, contextlib.suppress(ValueError):
            self._open.remove(connection)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    local_server = LocalServer()
    yield local_server
    local_server.stop()
