"""No client, but the floor under all."""

from __future__ import annotations

import os
import re
import socket
import zlib
from typing import Any, TypeVar
from urllib.parse import urlsplit

from _client import Blocking
from _jobs import Echo, Job, Link, check_acknowledgement

T = TypeVar("T")


class RawSocket(Blocking):
    """No client, but the floor under all: frames prepared in advance, replies read by their length, nothing parsed.

    A burst is written with one call and read with as few as the system allows, so that its figure shows what the
    server can do. With default options it compresses, masks, reads and inflates each message (`RawMessages`): no client
    in Python that does so can take less.
    """

    package = ""
    offers = True

    def version(self) -> str:
        return ""

    def open(self, url: str, kind: str) -> Link:
        sock, _ = self._connect(url)
        return Link(sock.sendall, lambda: sock, lambda: _close(sock))  # type: ignore[arg-type, return-value]

    def open_default(self, url: str) -> Link:
        sock, answer = self._connect(url, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n")
        found = re.search(r"(?i)\r\nSec-WebSocket-Extensions: ([^\r]*)", answer)
        self.extensions = found.group(1) if found else ""
        messages = RawMessages(sock, self.extensions)
        return Link(messages.send, messages.recv, lambda: _close(sock))

    def _connect(self, url: str, headers: str = "") -> tuple[socket.socket, str]:
        """The socket, and the head of the server's answer."""
        parts = urlsplit(url)
        sock = socket.create_connection((parts.hostname, parts.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context := self.tls(url):
            sock = context.wrap_socket(sock, server_hostname=parts.hostname)
        request = (
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        )
        sock.sendall(request.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += _some(sock.recv(4096))
        return sock, answer.decode()

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        return RawEcho(self.open(url, kind), size, kind, in_flight)

    def receive_flood(self, url: str, size: int) -> Job:
        return RawReceiveFlood(self.open(url, "text"), size)

    def send_flood(self, url: str, size: int) -> Job:
        return RawSendFlood(self.open(url, "text"), size)


class RawMessages:
    """Texts as frames, compressed if the server has agreed to that: as much as is needed, and nothing checked."""

    def __init__(self, sock: socket.socket, extensions: str) -> None:
        self._sock, self._buffer = sock, b""
        self._bits = int((re.findall(r"client_max_window_bits=(\d+)", extensions) or [15])[0])
        self._keeps = "client_no_context_takeover" not in extensions, "server_no_context_takeover" not in extensions
        self._deflate: Any = None
        self._inflate: Any = None
        self._compresses = "permessage-deflate" in extensions
        if self._compresses:
            self._deflate, self._inflate = self._deflater(), zlib.decompressobj(-15)

    def _deflater(self) -> Any:
        return zlib.compressobj(6, zlib.DEFLATED, -self._bits, 5)

    def send(self, text: str) -> None:
        payload, first = text.encode(), 1
        if self._compresses:
            payload = (self._deflate.compress(payload) + self._deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
            first = 0x41
            if not self._keeps[0]:
                self._deflate = self._deflater()
        self._sock.sendall(_masked_frame(first, payload))

    def recv(self) -> str:
        while True:
            buffer = self._buffer
            if len(buffer) > 1:
                size, start = buffer[1], 2
                if size == 126:
                    size, start = int.from_bytes(buffer[2:4], "big"), 4
                if len(buffer) >= start + size:
                    self._buffer = buffer[start + size :]
                    return self._text(buffer[0], buffer[start : start + size])
            self._buffer = buffer + _some(self._sock.recv(65536))

    def _text(self, first: int, payload: bytes) -> str:
        if first & 0x40:
            payload = self._inflate.decompress(payload + b"\0\0\xff\xff")
            if not self._keeps[1]:
                self._inflate = zlib.decompressobj(-15)
        return payload.decode()


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


def _close(sock: socket.socket) -> None:
    sock.sendall(_masked_frame(8, b"\x03\xe8"))
    while sock.recv(4096):
        pass
    sock.close()


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
