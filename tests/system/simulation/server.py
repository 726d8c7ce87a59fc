"""The model of a server: it knows what it has heard and said, and says it in pieces that the strategy cuts."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable

from wsproto import ConnectionType, WSConnection, events
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .scheduler import Scheduler

Answer = Callable[["Server", str], None]


def echo(server: Server, message: str) -> None:
    """Send each message back."""
    server.say(message)


class Listener:
    """Accepts one connection after another at a Unix socket; each is served in its turn.

    ``servers``  those that there were
    """

    def __init__(self, scheduler: Scheduler, path: str, answer: Answer, *, compressed: bool = False) -> None:
        self.path = path
        self.servers: list[Server] = []
        self._scheduler = scheduler
        self._answer = answer
        self._compressed = compressed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        self._socket.listen()
        self._stopped = False

    def stop(self) -> None:
        """Accept no more."""
        self._stopped = True

    def run(self) -> None:
        """Serve until stop()."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while True:
            self._scheduler.wait("the server accepts", lambda: self._stopped or poll.poll(0), None)
            if self._stopped:
                break
            sock, _ = self._socket.accept()
            server = Server(self._scheduler, self._answer, compressed=self._compressed, sock=sock)
            self.servers.append(server)
            server.run()
        self._socket.close()


class Server:
    """One connection, served by a thread of the simulation.

    ``heard``   the messages that have come, in order
    ``closed``  the code of the client's Close frame
    ``order``   the same with the client's Pongs among them
    ``late``    the messages that had come when the server was cut off, and that nobody has heard
    """

    def __init__(
        self,
        scheduler: Scheduler,
        answer: Answer = echo,
        *,
        compressed: bool = False,
        first: tuple[str, ...] = (),
        sock: socket.socket | None = None,
    ) -> None:
        self.heard: list[str] = []
        self.order: list[str] = []
        self.closed: int | None = None
        self.lost = False
        self.late: list[str] = []
        self._scheduler = scheduler
        self._answer = answer
        self._extensions = [PerMessageDeflate()] if compressed else []
        self._first = first
        self._connection = WSConnection(ConnectionType.SERVER)
        self.client, self._socket = socket.socketpair() if sock is None else (None, sock)
        self._socket.setblocking(False)
        self._out = b""
        self._part: list[str] = []
        self._done = False

    def say(self, message: str) -> None:
        """Send a message."""
        self._out += self._connection.send(events.TextMessage(message))

    def ping(self, payload: bytes) -> None:
        """Send a Ping."""
        self._out += self._connection.send(events.Ping(payload))

    def close(self, code: int = 1000) -> None:
        """Begin to close."""
        self._out += self._connection.send(events.CloseConnection(code))

    def cut(self) -> None:
        """End the stream without a word."""
        self.lost = self._done = True

    def sleep(self) -> None:
        """Neither hear nor say anything any more, for a long time."""
        self._scheduler.wait("the server sleeps", lambda: False, 1000)

    def run(self) -> None:
        """Serve until the stream has ended."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not self._done:
            if not self._out:
                self._scheduler.wait("the server reads", lambda: poll.poll(0), None)
                self._read()
            else:
                self._scheduler.point("the server")
                if poll.poll(0) and self._scheduler.draw(1):
                    self._read()
                else:
                    self._write()
        if self.lost:
            self._take_the_rest()
        self._socket.close()

    def _take_the_rest(self) -> None:
        """What the system had taken, and nobody will hear, is in `late`."""
        data = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while more := self._socket.recv(65536):
                data += more
        with contextlib.suppress(RemoteProtocolError, LocalProtocolError):
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._note_late(event)

    def _note_late(self, event: events.Event) -> None:
        if isinstance(event, events.TextMessage):
            self._part.append(event.data)
            if event.message_finished:
                self.late.append("".join(self._part))
                self._part = []

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 + self._scheduler.draw(3) * 30 if self._scheduler.draw(1) else 65536)
        except ConnectionResetError:
            self.cut()
            return
        if not data:
            self._done = True
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            if self.lost:
                self._note_late(event)
            else:
                self._handle(event)

    def _handle(self, event: events.Event) -> None:
        if isinstance(event, events.Request):
            self._out += self._connection.send(events.AcceptConnection(extensions=self._extensions))
            for message in self._first:
                self.say(message)
        elif isinstance(event, events.TextMessage):
            self._part.append(event.data)
            if event.message_finished:
                message, self._part = "".join(self._part), []
                self.heard.append(message)
                self.order.append(message)
                self._answer(self, message)
        elif isinstance(event, events.Ping):
            self._out += self._connection.send(event.response())
        elif isinstance(event, events.Pong):
            self.order.append(f"pong {bytes(event.payload)!r}")
        elif isinstance(event, events.CloseConnection):
            self.closed = event.code
            if self._connection.state.name == "REMOTE_CLOSING":
                self._out += self._connection.send(event.response())

    def _write(self) -> None:
        size = 1 + self._scheduler.draw(7) * 5 if self._scheduler.draw(1) else len(self._out)
        try:
            sent = self._socket.send(self._out[:size])
        except (BrokenPipeError, ConnectionResetError):
            self.cut()
            return
        except BlockingIOError:
            self._scheduler.wait("the server writes", lambda: True, 0.001)
            return
        self._out = self._out[sent:]
        if not self._out and self.closed is not None:
            self._done = True
