"""Where the fuzzer starts: real conversations, made by code, in the form of the inputs of `fuzz_targets.py`."""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

from fuzz_targets import EXTENSIONS, PASSWORD, accepted
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.extensions import PerMessageDeflate

KEPT = Path(__file__).with_name("kept.txt")
"""What long runs have found that leads somewhere new: an input a line, its target and base64."""


def kept() -> list[tuple[str, bytes]]:
    """The inputs of `KEPT`, with the names of their targets."""
    lines = [line.split() for line in KEPT.read_text(encoding="ascii").splitlines()]
    return [(target, base64.b64decode(data)) for target, data in lines]


def seeds() -> list[tuple[str, bytes]]:
    """The inputs, with the names of their targets."""
    made = {"frames": _frames, "answer": _answers, "proxy": _proxies, "url": _urls, "connection": _connections}
    return [(target, data) for target, inputs in made.items() for data in inputs()]


# ---- what a server says once the connection is open

_EVENTS: tuple[tuple[TextMessage | BytesMessage | Ping | Pong | CloseConnection, ...], ...] = (
    (TextMessage("Zoë 漢字 🙂"), BytesMessage(b"\x00\xff" * 40), TextMessage("")),
    (Ping(b"p"), TextMessage("a"), Ping(b"q"), Pong(b"r"), Ping(b"")),
    (TextMessage("one ", message_finished=False), Ping(b"p"), TextMessage("two", message_finished=True)),
    (BytesMessage(b"1", message_finished=False), BytesMessage(b"", message_finished=False), BytesMessage(b"2")),
    (TextMessage("x" * 126), BytesMessage(bytes(130)), CloseConnection(1000, "bye")),
    (TextMessage("again " * 30), TextMessage("again " * 30), CloseConnection(3000)),
    (CloseConnection(1001, "é"),),
    (CloseConnection(1005),),
)
_BROKEN = (
    b"\x81\x02\xc3\x28",  # no UTF-8
    b"\x88\x01\x03",  # a Close frame of one byte
    b"\x88\x02\x03\xee",  # with 1006
    b"\x88\x02\x03\xf6",  # with 1014
    b"\x80\x00",  # a continuation of nothing
    b"\x01\x01a\x81\x01b",  # a message within a message
    b"\x89\x7e\x00\x7e",  # a long ping
    b"\x09\x00",  # a ping in fragments
    b"\x81\x81abcde",  # masked
    b"\x82\x7e\x00\x05hello",  # a length longer than needed
    b"\x82\x7f" + bytes(6) + b"\x40\x00",  # over the limit
    b"\x82\x7f\xff" + bytes(7),  # no length
    b"\xc1\x05\xff\xff\xff\xff\xff",  # no deflate
    b"\x91\x00",  # a reserved bit
    b"\x83\x00",  # a reserved op-code
)


def _conversations(extensions: str | None) -> Iterator[bytes]:
    for events in _EVENTS:
        deflate = []
        if extensions is not None:
            deflate = [PerMessageDeflate()]
            deflate[0].finalize(extensions)
        server = Connection(ConnectionType.SERVER, deflate)  # type: ignore[arg-type]
        yield b"".join(map(server.send, events))


def _deflated_anew() -> bytes:
    """A compressed message that ends its stream, and one that is a bomb."""
    end, bomb = zlib.compressobj(wbits=-15), zlib.compressobj(wbits=-15)
    first = end.compress(b"end") + end.flush() + b"\0"
    second = (bomb.compress(bytes(100_000)) + bomb.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return bytes([0xC2, len(first)]) + first + bytes([0xC2, len(second)]) + second


def _frames() -> Iterator[bytes]:
    for number, extensions in enumerate(EXTENSIONS):
        for index, data in enumerate(_conversations(extensions)):
            yield bytes([number | 4, index]) + data
    for index, data in enumerate((*_BROKEN, _deflated_anew())):
        yield bytes([1 | 4 * (index & 1), index]) + b"\x81\x01a" + data + b"\x82\x01b"


# ---- what it answers to the opening handshake


def _answers() -> Iterator[bytes]:
    bodies = {
        "length": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\nWWW-Authenticate: Basic\r\n\r\nbody",
        "chunks": b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\nRetry-After: 5\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "end": b"HTTP/1.0 404\r\nServer: x\r\n\r\nto the end",
        "redirect": b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a=b\r\n\r\n",
        "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + _accept("chat"),
        "other": b"SSH-2.0-OpenSSH_9.2\r\n",
        "lines": _accept("chat").replace(b"\r\n", b"\n"),
        "folded": _accept("chat").replace(b"Upgrade: ", b"X: a\r\n b\r\nUpgrade: "),
        "list": _accept("chat").replace(b"Connection: ", b"Connection: keep-alive, "),
        "wrong": _accept("chat").replace(b"{accept}", b"c2VjcmV0"),
        "late": _accept("other"),
        "twice": _accept("chat").replace(b"Upgrade: ", b"Upgrade: h2c\r\nupgrade: "),
    }
    for index, data in enumerate(bodies.values()):
        yield bytes([1, index]) + data
    for index, extensions in enumerate((*EXTENSIONS, "permessage-deflate; client_max_window_bits=8", "x-other; a=b")):
        for settings, protocol in ((1, "chat"), (0, None)):
            yield bytes([settings, index]) + _accept(protocol, extensions) + b"\x81\x05hello\x88\x00"


def _accept(protocol: str | None, extensions: str | None = None) -> bytes:
    head = accepted(extensions)
    return head if protocol is None else head[:-2] + f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()


# ---- what a proxy says

_ADDRESSES = (b"\x01\x7f\0\0\x01\0\x50", b"\x03\x04name\0\x50", b"\x04" + bytes(16) + b"\0\x50")


def _proxies() -> Iterator[bytes]:
    http = (
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\nearly",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 Bad Gateway\r\n\r\n<html>",
    )
    beginnings = (b"\x05\x00", b"\x05\x02\x01\x00")
    socks5 = [beginning + b"\x05\x00\x00" + address for beginning in beginnings for address in _ADDRESSES]
    socks5 += [b"\x05\xff", b"\x05\x02\x01\x01", b"\x05\x00\x05\x05\x00\x01\0", b"\x04\x5a"]
    socks4 = [b"\x00" + bytes([code]) + b"\0\x50\x7f\0\0\x01" for code in range(0x5A, 0x5F)]
    for scheme, answers in enumerate((http, socks5, socks4)):
        for answer, credentials in itertools.product(answers, (0, 12)):
            # 12 is a multiple of the number of schemes, and has the bit that asks for credentials.
            yield bytes([scheme + credentials, 1]) + answer


# ---- URLs


def _urls() -> Iterator[bytes]:
    texts = (
        f"ws://user:{PASSWORD}@example.org:8080/a/../b;c?d=e&f#",
        f"wss://{PASSWORD}@[::1%25eth0]:443/",
        f"ws://user:{PASSWORD}@@host:99999/",
        "wss://EXAMPLE.org./%2e%2e/./x%20y?q=ü ö'\"<>",
        "http://0x7f.1/",
        "ws://[::ffff:1.2.3.4]:80",
        "https://bücher.example\\path\\..\\file",
        "ws://faß。example/漢字?漢字",
        "  wss:example.org:0443/\t\r\n",
        "localhost:8080",
        "//other.example:1/x?y",
        "/absolute?query",
        "relative/../../up",
        "?query",
        "#fragment",
        "ws://a%00b/",
        "ws://xn--bcher-kva.example:",
    )
    for text, settings in itertools.product(texts, (0, 1)):
        yield bytes([settings]) + text.encode()


# ---- everything


def _connections() -> Iterator[bytes]:
    for number, extensions in enumerate(EXTENSIONS):
        for index, data in enumerate(_conversations(extensions)):
            yield bytes([number << 4 | index % 7 << 1, index]) + data
    for index, data in enumerate((*_BROKEN, _deflated_anew())):
        yield bytes([1 << 4 | index % 7 << 1, index]) + b"\x81\x01a" + data
    for data in _answers():
        yield bytes([1 | data[1] % 7 << 1]) + data[1:]


