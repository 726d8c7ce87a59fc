"""What the fuzzer throws at the library: each target takes any bytes, and asserts what must hold whatever they are.

    frames      what a server sends once the connection is open: messages, the end, or a ProtocolError; the same with
                the fast lane and without, whole and cut
    answer      what it answers to the opening handshake: open, or a HandshakeError; the same in the same four ways
    proxy       what a proxy answers, by HTTP and SOCKS: through, or a ProxyError, which keeps the password to itself
    url         a URL and a redirect: an InvalidURL, or one that survives being written and stands well in a request
    connection  all that a server sends, through a socket pair and the public class: what `frames` and `answer` have
                found to be right comes out of it, and it ends; nothing in the log

The first two bytes of an input choose settings and where the rest is cut. In answers, the first b"{accept}" stands for
the token that the key of the request asks for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

from wsproto.utilities import generate_accept_token

from nwebsocket import WebSocket
from nwebsocket._network.proxies import Proxy
from nwebsocket._network.tunnel import _DIALOGUES, _Dialogue
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.handshake import Request
from nwebsocket._protocol.url import URL, parse_url
from nwebsocket.exceptions import (
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InvalidURL,
    ProtocolError,
    ProxyError,
)

Target = Callable[[bytes], None]

PASSWORD = "hunter2"

LIMIT = 5.0
"""No input takes longer than this (seconds)."""

_SIZES = (1, 2, 3, 5, 20, 100, 1000)
_KEY = re.compile(rb"Sec-WebSocket-Key: (\S+)")
_LARGEST = 10_000
_REQUEST = Request(host="example.org", target="/", protocols=("chat", "v2"), max_size=_LARGEST)
_ACCEPTED = b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"

EXTENSIONS = (
    None,
    "permessage-deflate",
    "permessage-deflate; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9",
)


def accepted(extensions: str | None) -> bytes:
    """A correct answer of a server, for an input."""
    line = b"" if extensions is None else f"Sec-WebSocket-Extensions: {extensions}\r\n".encode()
    return _ACCEPTED + line + b"\r\n"


def cut(data: bytes, seed: int) -> list[bytes]:
    """The pieces in which `data` comes."""
    dice, pieces, start = random.Random(seed), list[bytes](), 0
    while start < len(data):
        end = start + dice.choice(_SIZES)
        pieces.append(data[start:end])
        start = end
    return pieces


def _assert_same(first: tuple[Any, ...], *others: tuple[Any, ...]) -> None:
    for other in others:
        assert first == other, f"\n{first}\n{other}"


# ---- frames


def frames(data: bytes) -> None:
    """Messages, the end, or a ProtocolError; however it comes and whoever parses it."""
    if len(data) < 2:
        return
    extensions, stream = EXTENSIONS[data[0] % len(EXTENSIONS)], data[2:]
    request = replace(_REQUEST, protocols=(), max_size=_LARGEST if data[0] & 4 else 100)
    pieces = cut(stream, data[1])
    whole = _received(_opened(request, extensions, True), [stream])
    in_pieces = _received(_opened(request, extensions, True), pieces)
    _assert_same(whole, _received(_opened(request, extensions, False), [stream]))
    _assert_same(in_pieces, _received(_opened(request, extensions, False), pieces))
    # Of several faults in a compressed message, that is found first of which the bytes have come.
    _assert_same(*[_faultless(result) if extensions else result[:-1] for result in (whole, in_pieces)])


def _opened(request: Request, extensions: str | None, fast_lane: bool) -> Protocol:
    protocol = Protocol(request, fast_lane=fast_lane)
    assert protocol.receive_response(_with_token(protocol.handshake(), accepted(extensions)))
    return protocol


def _with_token(request: bytes, answer: bytes) -> bytes:
    key = _KEY.search(request)
    assert key is not None
    return answer.replace(b"{accept}", generate_accept_token(key[1]), 1)


def _received(protocol: Protocol, pieces: list[bytes]) -> tuple[Any, ...]:
    """Messages, pongs, how it ended, our Close frame; and, last, our Pongs, which depend on what came together."""
    messages, pongs, close, failure, answers = [], [], None, None, b""
    for piece in pieces:
        received = protocol.receive(piece)
        messages += received.messages
        pongs += received.pongs
        close = close or received.close
        failure = failure or received.failure
        answers += received.answer
    assert all(_size(message) <= _LARGEST for message in messages)
    assert failure is None or failure.sent_code in (1002, 1007, 1009)
    assert close is None or (1000 <= close.code < 5000 and _size(close.reason) <= 123)
    assert protocol.can_send == (close is None and failure is None)
    ours = unmasked(answers)
    return messages, pongs, close, _described(failure), [f for f in ours if f[0] == 0x88], ours


def _faultless(received: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same without what the fault was, but that there was one."""
    messages, pongs, close, failure, *_ = received
    return messages, pongs, close, failure is None


def _size(message: str | bytes) -> int:
    return len(message.encode() if isinstance(message, str) else message)


def _described(failure: ProtocolError | None) -> object:
    return failure and (type(failure), str(failure), failure.sent_code)


def unmasked(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of our control frames, with the random keys of their masks taken out."""
    found = []
    while data:
        first, size = data[0], data[1] & 0x7F
        assert first in (0x88, 0x8A)
        assert data[1] & 0x80
        assert size <= min(125, len(data) - 6)
        found.append((first, bytes(byte ^ data[2 + i % 4] for i, byte in enumerate(data[6 : 6 + size]))))
        data = data[6 + size :]
    return found


# ---- answer


def answer(data: bytes) -> None:
    """The connection is open, or there is a HandshakeError; however it comes and whoever parses it."""
    if len(data) < 2:
        return
    request = _REQUEST if data[0] & 1 else replace(_REQUEST, compression=None, protocols=())
    _assert_same(*[_answered(request, data[2:], seed, lane) for lane in (True, False) for seed in (None, data[1])])


def _answered(request: Request, template: bytes, seed: int | None, fast_lane: bool) -> tuple[Any, ...]:
    protocol = Protocol(request, fast_lane=fast_lane)
    with mock.patch.object(os, "urandom", bytes):  # all have the same key, to be comparable
        data = _with_token(protocol.handshake(), template)
    pieces = cut(data, seed) if seed is not None else [data] * bool(data)
    try:
        for number, piece in enumerate([*pieces, b""]):
            if protocol.receive_response(piece):
                end = _received(protocol, [b"", *pieces[number + 1 :]])
                assert protocol.subprotocol in ("", *request.protocols)
                return protocol.subprotocol, protocol.extensions, protocol.response, _faultless(end)
    except HandshakeError as error:
        refusal = error
    else:
        raise AssertionError("the end of the stream has not ended the handshake")
    assert not protocol.can_send
    assert len(refusal.body) <= 65_536
    return _but_beginning(refusal), refusal.status, refusal.headers, refusal.body


def _but_beginning(error: Exception) -> str:
    """What the error says, without what had come by then."""
    return str(error).partition(" begins ")[0]


# ---- proxy

_SCHEMES = ("http", "socks5h", "socks4a")


class _Line:
    """The stream to a proxy that says what it says, and ends."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent += data

    def flush(self) -> bool:
        return True

    async def receive(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def proxy(data: bytes) -> None:
    """The proxy has connected us, or there is a ProxyError; the password is nowhere in it."""
    if len(data) < 2:
        return
    scheme = _SCHEMES[data[0] % len(_SCHEMES)]
    password = "" if scheme == "socks4a" else PASSWORD
    credentials = f"user:{password}" if data[0] & 4 else None
    chosen = Proxy(scheme, "proxy", 1, credentials)
    whole, in_pieces = _tunnelled(chosen, [data[2:]]), _tunnelled(chosen, cut(data[2:], data[1]))
    assert PASSWORD not in whole
    # What follows the answer is told from what the server says only if it comes with the answer.
    assert whole == in_pieces or "sent what nobody asked for" in whole


def _tunnelled(chosen: Proxy, pieces: list[bytes]) -> str:
    dialogue = _Dialogue(_Line(pieces), chosen, "example.org", 443)  # type: ignore[arg-type]
    try:
        _run(_DIALOGUES[chosen.scheme](dialogue))
        dialogue.expect_silence()
    except ProxyError as error:
        return _but_beginning(error)
    return "connected"


def _run(coroutine: Any) -> None:
    """Run what never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


# ---- url

_BASE = parse_url("wss://user:password@example.org:8443/a/b/c?d")


def url(data: bytes) -> None:
    """An InvalidURL without the password, or a URL that survives being written, and stands well in a request."""
    if not data:
        return
    text = data[1:].decode("utf-8", "surrogateescape")
    try:
        parsed = _BASE.join(text) if data[0] & 1 else parse_url(text)
    except InvalidURL as error:
        _assert_hides_password(text, str(error))
        return
    assert _is_public(parsed) or PASSWORD not in parsed.shown + parsed.href + repr(parsed)
    assert parse_url(parsed.href) == replace(parsed, credentials=None)
    assert parsed.join("") == replace(parsed, credentials=None)
    _assert_stands_well(parsed)


def _assert_hides_password(text: str, message: str) -> None:
    before, _, after = text.rpartition("@")
    assert PASSWORD not in message or PASSWORD in after or not before.startswith(("ws://", "wss://"))


def _is_public(parsed: URL) -> bool:
    """Whether the password stands where everybody may see it, if it is there at all."""
    return PASSWORD not in (parsed.credentials or "") or PASSWORD in parsed.host + parsed.target


def _assert_stands_well(parsed: URL) -> None:
    authorization = parsed.authorization()
    headers = () if authorization is None else (("Authorization", authorization),)
    request = Protocol(Request(parsed.host_header, parsed.target, headers=headers)).handshake().decode("ascii")
    first, host, *_, empty, end = request.split("\r\n")
    assert first == f"GET {parsed.target} HTTP/1.1"
    assert host == f"Host: {parsed.host_header}"
    assert (empty, end) == ("", "")
    assert request.count("\r\n") == request.count("\r") == request.count("\n") == 8 + len(headers)


# ---- connection

class _Heard(logging.Handler):
    """What the library's log has of level ERROR."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


def connection(data: bytes) -> None:
    """It opens or does not, and ends, in a documented way, with the messages that the protocol alone finds."""
    if len(data) < 2:
        return
    settings, stream = data[0], data[2:]
    extensions = EXTENSIONS[settings >> 4 & 3]
    request = replace(_REQUEST, protocols=(), compression=_REQUEST.compression if extensions else None)
    template = stream if settings & 1 else accepted(extensions) + stream
    heard, logger = _Heard(), logging.getLogger("nwebsocket")
    logger.addHandler(heard)
    try:
        outcome = _Client(request, settings).outcome(template, data[1], abruptly=bool(settings & 2))
    finally:
        logger.removeHandler(heard)
    assert not heard.texts, heard.texts
    _assert_same(outcome, _expected(request, template))


class _Client:
    """A WebSocket at one end of a socket pair, and what is heard of it."""

    def __init__(self, request: Request, settings: int) -> None:
        ours, self._theirs = socket.socketpair()
        self._theirs.settimeout(LIMIT)
        self._messages: list[str | bytes] = []
        self._events: list[str] = []
        self._errors: list[Exception] = []
        self._ws = ws = WebSocket(
            "ws://example.org/",
            sock=ours,
            compression=None if request.compression is None else "deflate",
            max_size=request.max_size,
            callbacks="loop" if settings & 8 else "thread",
        )
        ws.onopen = lambda: self._events.append("open")
        ws.onerror = self._errors.append
        ws.onclose = lambda: self._events.append("close")
        if settings & 4:
            ws.onmessage = self._messages.append

    def outcome(self, template: bytes, seed: int, *, abruptly: bool) -> tuple[Any, ...]:
        """Serve it, wait for the end and return what has been heard: events, messages, close code, kind of error."""
        with self._theirs as theirs:
            answer = _with_token(theirs.recv(65_536), template)
            with contextlib.suppress(ConnectionError):
                for piece in cut(answer, seed):
                    theirs.sendall(piece)
                if not abruptly:
                    theirs.shutdown(socket.SHUT_WR)
                    while theirs.recv(65_536):
                        pass
        end = self._ws.wait_closed(LIMIT)
        with contextlib.suppress(ConnectionClosed):
            while self._ws.onmessage != self._messages.append:
                self._messages.append(self._ws.recv(LIMIT))
        kinds = [ProtocolError if isinstance(error, ProtocolError) else type(error) for error in self._errors]
        return self._events, self._messages, (end.code, end.reason), *kinds


def _expected(request: Request, template: bytes) -> tuple[Any, ...]:
    """The same, as the protocol alone has it."""
    protocol = Protocol(request)
    try:
        opened = protocol.receive_response(_with_token(protocol.handshake(), template))
        if not opened:
            protocol.receive_response(b"")
    except HandshakeError as error:
        return ["close"], [], (1006, ""), type(error)
    received = protocol.receive(b"")
    if received.close is not None:
        return ["open", "close"], received.messages, tuple(received.close)
    kind = ConnectionLost if received.failure is None else ProtocolError
    return ["open", "close"], received.messages, (1006, ""), kind


TARGETS: dict[str, Target] = {target.__name__: target for target in (frames, answer, proxy, url, connection)}
