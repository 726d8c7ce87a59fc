"""A server of the soak: python -m soaking.server PORT TLS_PORT CERTIFICATE RATE LIFE

Reports each message that comes before it answers a ping or a Close frame that comes after it: so an answered ping says
all that it can say. Sends numbered messages of its own, at RATE per second and connection, and closes one now and then
(each after LIFE seconds or so), as it closes all at SIGTERM: the reason then says how many messages it has sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import ssl
import sys
from typing import ClassVar

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from soaking.plan import AT_SERVER, DAMAGED, PUSHED, READY, Reporter, message, of_path, profile, read_message

reporter = Reporter()


class Connection(asyncio.Protocol):
    """One client."""

    open: ClassVar[set[Connection]] = set()

    def __init__(self, rate: float, life: float) -> None:
        self._rate = rate
        self._closes_with = 1 / (rate * life) if life else 0.0
        self._protocol = ServerProtocol(extensions=[ServerPerMessageDeflateFactory()], max_size=None)
        self._key = self._attempt = self._number = 0
        self._may_push = True
        self._fragments: list[Frame] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.open.discard(self)
        self._may_push = False

    def pause_writing(self) -> None:
        self._may_push = False

    def resume_writing(self) -> None:
        self._may_push = True

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._accept(event)
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._fragments.append(event)
                if event.fin:
                    self._received()
        if isinstance(self._protocol.parser_exc, (ProtocolError, PayloadTooBig, UnicodeDecodeError)):
            print("the server found fault:", repr(self._protocol.parser_exc), file=sys.stderr)
            reporter.note(DAMAGED, self._key, self._attempt)
        reporter.flush()
        self._write()

    def _accept(self, request: Request) -> None:
        self._key, self._attempt = of_path(request.path)
        self._profile = profile(self._key)
        self._protocol.send_response(self._protocol.accept(request))
        self._push_later()

    def _received(self) -> None:
        frames, self._fragments = self._fragments, []
        raw = b"".join(frame.data for frame in frames)
        try:
            data = raw.decode() if frames[0].opcode is Opcode.TEXT else raw
            if isinstance(data, str) and data.startswith("{"):
                self._answer(json.loads(data))
            elif self._attempt:  # else the client warms up
                self._note(AT_SERVER, read_message(data)[0])
        except ValueError as error:
            print("the server:", error, file=sys.stderr)
            reporter.note(DAMAGED, self._key, self._attempt)

    def _note(self, kind: bytes, number: int) -> None:
        if self._attempt:
            reporter.note(kind, self._key, self._attempt, number)

    def _answer(self, query: dict[str, int]) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(json.dumps({"id": query["id"], "double": 2 * query["n"]}).encode())

    def _push_later(self) -> None:
        asyncio.get_running_loop().call_later(random.expovariate(self._rate / 2), self._push)

    def _push(self) -> None:
        if self._protocol.state is not State.OPEN or self._transport.is_closing():
            return
        if self._may_push:
            if self._attempt and random.random() < 2 * self._closes_with:
                self.close(4000)
                return
            for _ in range(random.choice((1, 1, 1, 1, 6))):
                self._push_one()
            self._write()
        self._push_later()

    def _push_one(self) -> None:
        tells_attempt = self._profile.mode != "recv" or not self._profile.reconnecting
        data = message(self._number, self._attempt, may_be_empty=tells_attempt)
        self._note(PUSHED, self._number)
        self._number += 1
        if isinstance(data, str):
            self._protocol.send_text(data.encode())
        else:
            self._protocol.send_binary(data)

    def close(self, code: int) -> None:
        """Begin the closing handshake, if the connection is open."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, str(self._number))
            self._write()

    def _write(self) -> None:
        reporter.flush()
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()


async def close_all() -> None:
    """Say goodbye to everybody, and wait a moment for their answers."""
    for connection in list(Connection.open):
        connection.close(1001)
    deadline = asyncio.get_running_loop().time() + 2
    while Connection.open and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)


async def serve(port: int, tls_port: int, certificate: str, rate: float, life: float) -> None:
    loop, terminated = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for listen_on, tls in ((port, None), (tls_port, context)):
        await loop.create_server(lambda: Connection(rate, life), "127.0.0.1", listen_on, ssl=tls, backlog=512)
    reporter.note(READY)
    reporter.flush()
    await terminated.wait()
    await close_all()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), float(sys.argv[5])))
