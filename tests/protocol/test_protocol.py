"""The sans-I/O core against a wsproto server and against bytes made by hand. Nothing here opens a socket."""

from __future__ import annotations

import itertools
import re
import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection, events
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import generate_accept_token

from nwebsocket._protocol.connection import Protocol, Request
from nwebsocket._protocol.frame_guard import MAX_FRAGMENTS
from nwebsocket._protocol.handshake import MAX_BODY_BYTES
from nwebsocket._protocol.http import MAX_HEAD_BYTES
from nwebsocket._protocol.received import Received
from nwebsocket.close_codes import MAX_REASON_BYTES, CloseCode, check_close
from nwebsocket.exceptions import (
    ConnectionClosed,
    HandshakeError,
    InvalidArgument,
    InvalidClose,
    InvalidStateError,
    MessageTooBig,
    ProtocolError,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
REQUEST = Request(host="example.org", target="/chat?room=1")
PLAIN = replace(REQUEST, compression=None)
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def frame(opcode: int, payload: bytes = b"", *, first: int = FIN, announced: int | None = None) -> bytes:
    """A server's frame; ``first`` holds the flags."""
    size = len(payload) if announced is None else announced
    if size < 126:
        return bytes([first | opcode, size]) + payload
    if size < 65_536:
        return struct.pack("!BBH", first | opcode, 126, size) + payload
    return struct.pack("!BBQ", first | opcode, 127, size) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


def deflated(payload: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def accept_of(request: bytes) -> str:
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert key is not None
    return generate_accept_token(key[1]).decode()


def answer(protocol: Protocol, *headers: str, drop: str = "") -> bytes:
    """The 101 that fits the protocol's request, with more headers and without the one called ``drop``."""
    standard = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_of(protocol.handshake())}",
    ]
    kept = [header for header in standard if header.partition(":")[0] != drop]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *kept, *headers, "", ""]).encode("latin-1")


def opened(request: Request = PLAIN, *headers: str) -> Protocol:
    protocol = Protocol(request)
    assert protocol.receive_response(answer(protocol, *headers))
    assert protocol.receive(b"") == Received([], [])
    return protocol


def receive_all(protocol: Protocol, *pieces: bytes) -> None:
    for piece in pieces:
        protocol.receive_response(piece)


def fed(protocol: Protocol, data: bytes, cuts: list[int] | None = None) -> Received:
    """Everything that the data brings, fed in pieces: one byte each, or cut where ``cuts`` says."""
    edges = sorted({0, len(data), *(range(len(data)) if cuts is None else (cut % (len(data) + 1) for cut in cuts))})
    total = Received([], [])
    for start, end in itertools.pairwise(edges):
        part = protocol.receive(data[start:end])
        total.messages += part.messages
        total.pongs += part.pongs
        total.replies = (total.replies or []) + (part.replies or [])
        total.close_frame += part.close_frame
        total.close = total.close or part.close
        total.failure = total.failure or part.failure
    return total


def both_ways(data: bytes, request: Request = PLAIN, *headers: str) -> Received:
    """Feed a stream at once and byte by byte: both must come to the same."""
    whole = opened(request, *headers).receive(data)
    bytewise = fed(opened(request, *headers), data)
    assert (whole.messages, whole.pongs, whole.close) == (bytewise.messages, bytewise.pongs, bytewise.close)
    assert type(whole.failure) is type(bytewise.failure)
    return whole


class Server:
    """A wsproto server that has accepted the protocol's request."""

    def __init__(self, protocol: Protocol, *extensions: PerMessageDeflate, subprotocol: str | None = None) -> None:
        self.connection = WSConnection(ConnectionType.SERVER)
        self.connection.receive_data(protocol.handshake())
        (self.request,) = self.connection.events()
        accept = events.AcceptConnection(subprotocol=subprotocol, extensions=list(extensions))
        self.answer = self.connection.send(accept)

    def receive(self, data: bytes) -> list[events.Event]:
        self.connection.receive_data(data)
        return list(self.connection.events())


def connected(request: Request = REQUEST, *extensions: PerMessageDeflate) -> tuple[Protocol, Server]:
    protocol = Protocol(request)
    server = Server(protocol, *extensions)
    assert protocol.receive_response(server.answer)
    return protocol, server


def parsed_close(answer_bytes: bytes) -> tuple[int, str]:
    """Code and reason of the masked Close frame that ends the answer."""
    server = connected(PLAIN)[1]
    last = server.receive(answer_bytes)[-1]
    assert isinstance(last, events.CloseConnection)
    return int(last.code), last.reason or ""


class TestRequest:
    def test_carries_target_headers_and_offers(self) -> None:
        request = replace(REQUEST, headers=(("X-Name", "Zoë"),), protocols=("chat", "Chat"))
        lines = Protocol(request).handshake().decode("latin-1").split("\r\n")
        assert lines[0] == "GET /chat?room=1 HTTP/1.1"
        assert lines[-2:] == ["", ""]
        for line in (
            "Host: example.org",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: chat, Chat",
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
            "X-Name: Zoë",
        ):
            assert line in lines

    @pytest.mark.parametrize("host", ["[::1]:9000", "127.0.0.1", "example.org.:8080", "a" * 63 + ":8080"])
    def test_sends_the_host_as_it_is(self, host: str) -> None:
        assert f"\r\nHost: {host}\r\n".encode() in Protocol(replace(REQUEST, host=host)).handshake()

    def test_offers_no_compression_when_told_so(self) -> None:
        assert b"Extensions" not in Protocol(PLAIN).handshake()

    @pytest.mark.parametrize(
        "bad",
        [
            {"headers": (("X", "a\r\nY: b"),)},
            {"headers": (("X", "€"),)},
            {"headers": (("Content-Length", "x"),)},
            {"host": "bücher.example"},
            {"target": "/ü"},
        ],
    )
    def test_that_cannot_be_sent_is_an_invalid_argument(self, bad: dict[str, object]) -> None:
        with pytest.raises(InvalidArgument, match="cannot be sent"):
            Protocol(replace(REQUEST, **bad)).handshake()  # type: ignore[arg-type]


class TestAcceptedAnswer:
    def test_opens_the_connection(self) -> None:
        protocol = Protocol(replace(REQUEST, protocols=("a", "b")))
        server = Server(protocol, PerMessageDeflate(), subprotocol="b")
        assert not protocol.can_send
        assert protocol.receive_response(server.answer)
        assert protocol.can_send
        assert protocol.subprotocol == "b"
        assert protocol.extensions.startswith("permessage-deflate")
        assert protocol.response is not None
        assert protocol.response.status == 101
        assert protocol.response.get("UPGRADE") == "websocket"
        assert protocol.response.get("X-None", "-") == "-"
        assert protocol.refusal() is None

    def test_comes_byte_by_byte(self) -> None:
        protocol = Protocol(PLAIN)
        data = answer(protocol, "X-Name: Zoë")
        assert not any(protocol.receive_response(data[i : i + 1]) for i in range(len(data) - 1))
        assert protocol.receive_response(data[-1:])
        assert protocol.response is not None
        assert ("X-Name", "Zoë") in protocol.response.headers

    @pytest.mark.parametrize(
        ("drop", "headers"),
        [
            ("Upgrade", ["upgrade: WebSocket"]),
            ("Connection", ["Connection: keep-alive, UPGRADE"]),
            ("Connection", ["Connection: Upgrade", "Connection: keep-alive"]),
            ("", ["Sec-WebSocket-Extensions: permessage-deflate", "X-Empty:"]),
        ],
    )
    def test_may_be_written_in_many_ways(self, drop: str, headers: list[str]) -> None:
        protocol = Protocol(REQUEST)
        assert protocol.receive_response(answer(protocol, *headers, drop=drop))

    def test_keeps_all_headers_as_they_came(self) -> None:
        protocol = Protocol(REQUEST)
        data = answer(protocol, "Connection: keep-alive", DEFLATE, "Set-Cookie: a=1", "Set-Cookie: b=2")
        assert protocol.receive_response(data)
        assert protocol.response is not None
        written = [f"{name}: {value}" for name, value in protocol.response.headers]
        assert written == data.decode().split("\r\n")[1:-2]
        assert protocol.extensions == "permessage-deflate"

    def test_may_have_another_reason_phrase_or_none_and_bare_line_feeds(self) -> None:
        for line in (b"HTTP/1.1 101\r\n", b"HTTP/1.1 101 \r\n", b"HTTP/1.1 101 Va bene\r\n"):
            protocol = Protocol(PLAIN)
            assert protocol.receive_response(answer(protocol).replace(b"HTTP/1.1 101 Switching Protocols\r\n", line))
        protocol = Protocol(PLAIN)
        assert protocol.receive_response(answer(protocol).replace(b"\r\n", b"\n"))

    def test_trap_6_frames_in_the_same_packet_are_delivered(self) -> None:
        protocol = Protocol(PLAIN)
        assert protocol.receive_response(answer(protocol) + frame(TEXT, b"first") + frame(TEXT, b"second")[:4])
        assert protocol.receive(b"").messages == ["first"]
        assert protocol.receive(frame(TEXT, b"second")[4:]).messages == ["second"]

    def test_trap_7_interim_answers_are_skipped(self) -> None:
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n"
        for size in (1, 1000):
            protocol = Protocol(PLAIN)
            data = interim + answer(protocol)
            pieces = [data[i : i + size] for i in range(0, len(data), size)]
            assert [protocol.receive_response(piece) for piece in pieces][-1]
            assert protocol.response is not None
            assert protocol.response.status == 101

    def test_followed_by_many_frames_does_not_count_them_as_headers(self) -> None:
        protocol = Protocol(PLAIN)
        assert protocol.receive_response(answer(protocol) + frame(BINARY, bytes(MAX_HEAD_BYTES)))
        assert protocol.receive(b"").messages == [bytes(MAX_HEAD_BYTES)]


class TestWrongAnswer:
    @pytest.mark.parametrize(
        ("drop", "headers", "error"),
        [
            ("Upgrade", [], "Upgrade header is missing; 'websocket' was expected"),
            ("Upgrade", ["Upgrade: h2c"], "Upgrade header is 'h2c'"),
            ("", ["Upgrade: websocket"], "2 headers Upgrade"),
            ("Connection", [], "Connection header is missing; 'Upgrade' was expected"),
            ("Connection", ["Connection: close", "Connection: upgraded"], "'close, upgraded'"),
            ("Sec-WebSocket-Accept", [], "Accept header is missing; '[^']{28}' was expected"),
            ("Sec-WebSocket-Accept", ["Sec-WebSocket-Accept: no"], "Accept header is 'no'; '[^']{28}' was expected"),
            ("", ["Sec-WebSocket-Accept: no"], "2 headers Sec-WebSocket-Accept"),
            ("", ["Sec-WebSocket-Protocol: chat"], "'chat'; none had been offered"),
            ("", ["Sec-WebSocket-Extensions: x-other; a=1"], "extension 'x-other'; .*'permessage-deflate'.* offered"),
            ("", ["Sec-WebSocket-Extensions:"], "extension ''"),
            ("", [DEFLATE, DEFLATE], "extension permessage-deflate 2 times; once was expected"),
            ("", ["Sec-WebSocket-Extensions: permessage-deflate,permessage-deflate"], "2 times"),
            ("", [DEFLATE + "; server_max_window_bits=16"], "server_max_window_bits .*'16'.* 8 to 15 was expected"),
            ("", [DEFLATE + "; client_max_window_bits"], "client_max_window_bits .*no value"),
            ("", [DEFLATE + "; client_max_window_bits=ü"], "client_max_window_bits|codec"),
            ("", ["X-Bad: a\x00b"], "Bad HTTP message"),
            ("", ["Bad Name: a"], "Bad HTTP message"),
        ],
    )
    def test_is_refused_with_a_clear_error(self, drop: str, headers: list[str], error: str) -> None:
        protocol = Protocol(REQUEST)
        with pytest.raises(HandshakeError, match=error) as caught:
            protocol.receive_response(answer(protocol, *headers, drop=drop))
        assert caught.value.status == 101
        assert ("Upgrade" in dict(caught.value.headers)) == (drop != "Upgrade" or "Upgrade: h2c" in headers)
        assert not protocol.can_send

    @pytest.mark.parametrize(
        ("headers", "error"),
        [
            ([], r"no sub-protocol; one of 'chat'"),
            (["Sec-WebSocket-Protocol: Chat"], r"'Chat'; 'chat' had been offered"),
            (["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"], "2 headers Sec-WebSocket-Protocol"),
        ],
    )
    def test_about_the_sub_protocol_is_refused(self, headers: list[str], error: str) -> None:
        protocol = Protocol(replace(REQUEST, protocols=("chat",)))
        with pytest.raises(HandshakeError, match=error):
            protocol.receive_response(answer(protocol, *headers))

    def test_shows_no_token_that_stands_for_a_sub_protocol(self) -> None:
        protocol = Protocol(replace(REQUEST, protocols=("bearer.token.s3s4me.s3s4me", "chat")))
        with pytest.raises(HandshakeError, match=r"one of 'bearer\.\.\.', 'chat'") as caught:
            protocol.receive_response(answer(protocol))
        assert "s3s4me" not in str(caught.value)

    def test_with_compression_that_was_not_offered_is_refused(self) -> None:
        protocol = Protocol(PLAIN)
        with pytest.raises(HandshakeError, match="'permessage-deflate'; none had been offered"):
            protocol.receive_response(answer(protocol, DEFLATE))

    @pytest.mark.parametrize("beginning", [b"SSH-2.0-x", b"\x15\x03\x01", b"H2", b"HTTP/2 101", b"\r\n", b"<html>"])
    def test_that_is_not_http_is_refused_at_once(self, beginning: bytes) -> None:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        with pytest.raises(HandshakeError, match=re.escape(repr(beginning))) as caught:
            protocol.receive_response(beginning)
        assert caught.value.status is None

    @pytest.mark.parametrize(
        ("data", "error"),
        [
            (b"HTTP/1.1 abc\r\n\r\n", "no HTTP status line"),
            (b"HTTP/1.1 200 \x1b[31m\r\n\r\n", "no HTTP status line"),
            (b"HTTP/1.1 101 OK\r\nUpgrade\r\n\r\n", "malformed header line: 'Upgrade'"),
            (b"HTTP/1.1 101 OK\r\nA: b\r\n folded: c\r\n\r\n", "malformed header line"),
        ],
    )
    def test_that_is_bad_http_is_refused(self, data: bytes, error: str) -> None:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        with pytest.raises(HandshakeError, match=error):
            protocol.receive_response(data)

    @pytest.mark.parametrize("line", [b"X: " + b"a" * 8000 + b"\r\n", b"\r\nHTTP/1.1 100 Continue\r\n"])
    def test_without_an_end_is_refused(self, line: bytes) -> None:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        protocol.receive_response(b"HTTP/1.1 100 Continue\r\n")
        with pytest.raises(HandshakeError, match="longer than 65,536 bytes"):
            receive_all(protocol, *[line] * (MAX_HEAD_BYTES // len(line) + 2))

    @pytest.mark.parametrize("data", [b"H", b"HTTP/1.1 101 \r\n", b"HTTP/1.1 100 \r\n\r\n"])
    def test_that_is_cut_off_is_refused(self, data: bytes) -> None:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        with pytest.raises(HandshakeError, match="in the middle"):
            receive_all(protocol, data, b"")

    def test_may_be_missing(self) -> None:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        with pytest.raises(HandshakeError, match="without answering"):
            protocol.receive_response(b"")

    @given(st.binary(max_size=200), st.booleans())
    def test_of_random_bytes_is_a_handshake_error(self, garbage: bytes, http: bool) -> None:
        protocol = Protocol(PLAIN)
        head = answer(protocol)[:60] if http else b""
        with pytest.raises(HandshakeError):
            receive_all(protocol, head + garbage, b"")


class TestRefusal:
    def refused(self, *pieces: bytes) -> HandshakeError:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        for piece in pieces[:-1]:
            assert not protocol.receive_response(piece)
        with pytest.raises(HandshakeError, match=r"HTTP 403 Forbidden; 101 was expected$") as caught:
            protocol.receive_response(pieces[-1])
        assert caught.value.status == 403
        assert protocol.response is not None
        assert protocol.response.headers == caught.value.headers
        return caught.value

    def test_trap_7_comes_with_status_headers_and_body(self) -> None:
        data = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\nX-Why: name\r\n\r\nno way"
        for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
            error = self.refused(*pieces)
            assert error.headers == [("Content-Length", "6"), ("X-Why", "name")]
            assert error.body == b"no way"

    def test_may_be_chunked(self) -> None:
        head = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert self.refused(head, b"2\r\nno\r\n", b"0\r\n\r\n").body == b"no"

    def test_may_end_with_the_stream(self) -> None:
        assert self.refused(b"HTTP/1.0 403 Forbidden\r\n\r\nno", b" way", b"").body == b"no way"

    def test_stands_even_if_its_body_is_cut_off_or_broken(self) -> None:
        assert self.refused(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nno", b"").body == b"no"
        assert self.refused(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n").body == b""
        assert self.refused(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n").body == b""

    def test_is_raised_when_its_body_is_long_enough(self) -> None:
        body = b"x" * (MAX_BODY_BYTES // 2 + 1)
        assert self.refused(b"HTTP/1.1 403 Forbidden\r\n\r\n", body, body).body == b"x" * MAX_BODY_BYTES

    def test_is_raised_when_so_much_has_come_in_tiny_chunks(self) -> None:
        head = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"1\r\nx\r\n" * (MAX_BODY_BYTES // 6 + 1)
        assert self.refused(head, chunks).body.strip(b"x") == b""
        assert self.refused(head + chunks).body.strip(b"x") == b""

    def test_can_be_asked_for_while_its_body_dribbles(self) -> None:
        protocol = Protocol(PLAIN)
        protocol.handshake()
        protocol.receive_response(b"HTTP/1.1 503 Busy\r\n")
        assert protocol.refusal() is None
        protocol.receive_response(b"Content-Length: 9\r\nRetry-After: 3\r\n\r\nlat")
        error = protocol.refusal()
        assert error is not None
        assert (error.status, error.body) == (503, b"lat")
        assert ("Retry-After", "3") in error.headers


class TestMessages:
    @pytest.mark.parametrize("extensions", [(), (PerMessageDeflate(),)])
    def test_go_both_ways(self, extensions: tuple[PerMessageDeflate, ...]) -> None:
        protocol, server = connected(REQUEST, *extensions)
        for payload in ("", b"", "Zoë", "Zoë", b"\x00\xff", "x" * 125, b"x" * 126, b"x" * 65_535, "é" * 65_536, ""):
            (event,) = server.receive(protocol.message(payload))
            assert isinstance(event, events.Message)
            back = protocol.receive(server.connection.send(event))
            assert back.messages == [payload]
            assert type(back.messages[0]) is type(payload)

    def test_go_out_in_fragments(self) -> None:
        protocol, server = connected()
        data = protocol.message("a", fin=False) + protocol.message("", fin=False) + protocol.message("b")
        assert [(e.data, e.message_finished) for e in server.receive(data) if isinstance(e, events.TextMessage)] == [
            ("a", False),
            ("", False),
            ("b", True),
        ]

    def test_of_mixed_fragments_are_a_type_error(self) -> None:
        protocol = opened()
        protocol.message("a", fin=False)
        with pytest.raises(TypeError, match="type"):
            protocol.message(b"b")

    def test_with_a_lone_surrogate_are_refused_and_change_nothing(self) -> None:
        protocol, server = connected()
        with pytest.raises(UnicodeEncodeError):
            protocol.message("\ud800")
        assert server.receive(protocol.message(b"after")) == [events.BytesMessage(data=b"after")]

    def test_keep_their_line_ends(self) -> None:
        data = frame(TEXT, b"a\r\nb\r", first=0) + frame(CONTINUATION, b"\nc\n")
        assert both_ways(data).messages == ["a\r\nb\r\nc\n"]

    def test_cannot_go_before_the_handshake_nor_after_a_close(self) -> None:
        protocol = Protocol(PLAIN)
        with pytest.raises(InvalidStateError):
            protocol.message("early")
        with pytest.raises(InvalidStateError):
            protocol.receive(frame(TEXT, b"early"))
        assert protocol.close(1000, "") == b""
        protocol = opened()
        protocol.close(1000, "")
        with pytest.raises(ConnectionClosed):
            protocol.message("late")
        with pytest.raises(ConnectionClosed):
            protocol.ping(b"")

    def test_in_one_burst_come_in_order_with_the_pongs(self) -> None:
        data = frame(TEXT, b"1") + frame(PONG, b"p") + frame(BINARY, b"2") + frame(PONG, b"q") + frame(TEXT, b"3")
        received = both_ways(data)
        assert received.messages == ["1", b"2", "3"]
        assert received.pongs == [b"p", b"q"]
        assert received.answer == b""


class TestPings:
    def test_are_answered_with_their_payload(self) -> None:
        protocol, server = connected()
        received = protocol.receive(server.connection.send(events.Ping(b"payload")))
        assert server.receive(received.answer) == [events.Pong(b"payload")]

    def test_in_a_flood_are_answered_one_by_one(self) -> None:
        protocol, server = connected()
        received = protocol.receive(b"".join(frame(PING, b"%d" % n) for n in range(1000)))
        assert server.receive(received.answer) == [events.Pong(b"%d" % n) for n in range(1000)]

    def test_before_a_close_in_the_same_packet_are_answered_too(self) -> None:
        protocol, server = connected()
        received = protocol.receive(frame(PING, b"p") + close_frame(1000))
        assert [type(event) for event in server.receive(received.answer)] == [events.Pong, events.CloseConnection]

    def test_of_ours_reach_the_server_and_have_a_limit(self) -> None:
        protocol, server = connected()
        assert server.receive(protocol.ping(b"x" * 125)) == [events.Ping(b"x" * 125)]
        with pytest.raises(InvalidArgument, match="at most 125 bytes, not 126"):
            protocol.ping(b"x" * 126)

    def test_trap_8_after_our_close_are_not_answered(self) -> None:
        protocol = opened()
        protocol.close(1000, "")
        assert protocol.receive(frame(PING, b"p") + frame(TEXT, b"still")).answer == b""


class TestClose:
    def test_by_us(self) -> None:
        protocol, server = connected()
        (close,) = server.receive(protocol.close(3001, "bye"))
        assert close == events.CloseConnection(3001, "bye")
        assert (protocol.close_sent, protocol.can_send) == (True, False)
        assert protocol.close(1000, "") == b""
        data = server.connection.send(close.response())
        received = protocol.receive(frame(TEXT, b"on the way") + data)
        assert received.messages == ["on the way"]
        assert received.close == (3001, "bye")
        assert received.answer == b""

    def test_without_a_code_is_empty_and_with_a_reason_alone_has_1000(self) -> None:
        for reason, code in (("", 1005), ("bye", 1000)):
            protocol, server = connected()
            assert server.receive(protocol.close(None, reason)) == [events.CloseConnection(code, reason)]

    @pytest.mark.parametrize("code", [1000, 1001, 1013, CloseCode.BAD_GATEWAY, 3000, 4999])
    def test_by_the_server_is_echoed(self, code: int) -> None:
        data = frame(TEXT, b"last") + close_frame(code, "Zoë")
        received = both_ways(data)
        assert received.messages == ["last"]
        assert received.close == (code, "Zoë")
        assert received.failure is None
        mask, payload = received.answer[2:6], received.answer[6:]
        assert received.answer[0] == FIN | CLOSE
        assert bytes(b ^ mask[i % 4] for i, b in enumerate(payload)) == close_frame(code, "Zoë")[2:]

    def test_without_a_code_by_the_server_is_1005(self) -> None:
        received = both_ways(frame(CLOSE))
        assert received.close == (1005, "")
        assert parsed_close(received.answer) == (1005, "")

    def test_trap_12_data_after_the_close_is_ignored(self) -> None:
        protocol = opened()
        assert protocol.receive(close_frame(1000) + frame(TEXT, b"late")).messages == []
        assert (protocol.close_sent, protocol.can_send) == (True, False)
        assert protocol.receive(frame(TEXT, b"later") + b"\xff\xff") == Received([], [])


class TestFailure:
    @pytest.mark.parametrize(
        ("data", "code", "error"),
        [
            (frame(TEXT, b"x", first=FIN | RSV1), 1002, "reserved bit"),
            (frame(TEXT, b"x", first=FIN | RSV2), 1002, "reserved bit"),
            (frame(PING, b"x", first=FIN | RSV3), 1002, "reserved bit"),
            (frame(3, b"x"), 1002, "reserved op-code 0x3"),
            (frame(PING, b"x", first=0), 1002, "control frame came in fragments"),
            (frame(CONTINUATION, b"x"), 1002, "no message to continue"),
            (frame(TEXT, b"x", first=0) + frame(TEXT, b"y"), 1002, "continuation was expected"),
            (b"\x81\x81mask\x00", 1002, "masked"),
            (b"\x82\x7e\x00\x01x", 1002, "in 2 bytes; 1 would do"),
            (frame(TEXT, b"\xff"), 1007, "not UTF-8"),
            (frame(TEXT, b"\xc3"), 1007, "not UTF-8"),
            (frame(TEXT, b"\xed\xa0\x80"), 1007, "not UTF-8"),
            (frame(CLOSE, b"x"), 1002, "1 byte"),
            (frame(CLOSE, b"\x03\xe8\xff"), 1007, "reason"),
            (frame(CLOSE, b"\x03\xf6\xff"), 1007, "reason"),
            (close_frame(999), 1002, "the code 999"),
            (close_frame(1005), 1002, "the code 1005"),
            (close_frame(2999), 1002, "the code 2999"),
        ],
    )
    def test_trap_4_is_told_from_a_close(self, data: bytes, code: int, error: str) -> None:
        received = both_ways(frame(TEXT, b"before") + data + frame(TEXT, b"after"))
        assert received.messages == ["before"]
        assert received.close is None
        assert type(received.failure) is ProtocolError
        assert received.failure.sent_code == code
        assert error in str(received.failure)
        assert parsed_close(received.answer)[0] == code

    def test_ends_everything(self) -> None:
        protocol = opened()
        protocol.receive(frame(3))
        assert (protocol.failed, protocol.can_send, protocol.close_sent) == (True, False, True)
        assert protocol.receive(frame(TEXT, b"after")) == Received([], [])
        assert protocol.close(1000, "") == b""

    def test_after_our_close_is_not_answered(self) -> None:
        protocol = opened()
        protocol.close(1000, "")
        received = protocol.receive(frame(3))
        assert received.failure is not None
        assert received.answer == b""

    @pytest.mark.slow
    @given(st.binary(max_size=120), st.lists(st.integers(0, 200)), st.booleans())
    def test_is_all_that_random_bytes_can_do(self, garbage: bytes, cuts: list[int], compressed: bool) -> None:
        request, headers = (REQUEST, [DEFLATE]) if compressed else (PLAIN, [])
        whole = opened(request, *headers).receive(garbage)
        cut = fed(opened(request, *headers), garbage, cuts)
        assert (whole.messages, whole.pongs, whole.close) == (cut.messages, cut.pongs, cut.close)
        assert (whole.failure and whole.failure.sent_code) == (cut.failure and cut.failure.sent_code)


class TestLimits:
    SMALL = replace(PLAIN, max_size=10)
    SMALL_DEFLATE = replace(REQUEST, max_size=10)

    def too_big(self, data: bytes, request: Request = SMALL, *headers: str) -> MessageTooBig:
        received = both_ways(data, request, *headers)
        assert isinstance(received.failure, MessageTooBig)
        assert "max_size" in str(received.failure)
        assert parsed_close(received.answer)[0] == 1009
        assert received.messages == []
        return received.failure

    @pytest.mark.parametrize("payload", [b"x" * 10, "ééééé".encode()])
    def test_are_inclusive(self, payload: bytes) -> None:
        assert both_ways(frame(TEXT, payload), self.SMALL).messages == [payload.decode()]
        data = frame(TEXT, deflated(payload), first=FIN | RSV1)
        assert both_ways(data * 2, self.SMALL_DEFLATE, DEFLATE).messages == [payload.decode()] * 2

    def test_trap_3_hold_for_the_sum_of_the_fragments(self) -> None:
        data = frame(TEXT, b"123456", first=0) + frame(PING, b"x" * 100) + frame(CONTINUATION, b"78901")
        assert "11 bytes" in str(self.too_big(data))
        data = frame(TEXT, b"123456", first=0) + frame(CONTINUATION, b"7890")
        assert both_ways(data * 3, self.SMALL).messages == ["1234567890"] * 3

    def test_trap_10_count_bytes_and_not_characters(self) -> None:
        self.too_big(frame(TEXT, "éééééé".encode()))
        self.too_big(frame(TEXT, deflated("éééééé".encode()), first=FIN | RSV1), self.SMALL_DEFLATE, DEFLATE)

    def test_hold_for_uncompressed_messages_of_a_compressed_connection(self) -> None:
        self.too_big(frame(BINARY, bytes(11)), self.SMALL_DEFLATE, DEFLATE)

    def test_are_enforced_as_soon_as_a_frame_announces_too_much(self) -> None:
        assert f"{2**62:,}" in str(self.too_big(frame(BINARY, announced=2**62)))

    def test_can_be_turned_off(self) -> None:
        unlimited = replace(REQUEST, max_size=None)
        payload = bytes(17 * 2**20)
        data = frame(BINARY, payload) + frame(BINARY, deflated(payload), first=FIN | RSV1)
        assert opened(unlimited, DEFLATE).receive(data).messages == [payload, payload]

    @pytest.mark.slow
    def test_trap_2_a_decompression_bomb_is_never_inflated(self) -> None:
        bomb = deflated(bytes(200 * 2**20))
        assert len(bomb) < 220_000
        protocol = opened(replace(REQUEST, max_size=2**20), DEFLATE)
        data = frame(BINARY, bomb, first=FIN | RSV1)
        tracemalloc.start()
        try:
            received = protocol.receive(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(received.failure, MessageTooBig)
        assert peak < 8 * 2**20

    @pytest.mark.slow
    def test_trap_10_fragments_are_capped_at_131_072(self) -> None:
        protocol = opened()
        more = frame(CONTINUATION, b"x", first=0)
        assert protocol.receive(frame(TEXT, b"x", first=0) + more * (MAX_FRAGMENTS - 2)) == Received([], [])
        whole = protocol.receive(frame(CONTINUATION, b"x"))
        assert [len(message) for message in whole.messages] == [MAX_FRAGMENTS]
        received = protocol.receive(frame(TEXT, first=0) + frame(CONTINUATION, first=0) * MAX_FRAGMENTS)
        assert isinstance(received.failure, MessageTooBig)
        assert "131,072 fragments" in str(received.failure)


class TestGeneratedStreams:
    MESSAGES = st.lists(
        st.tuples(
            st.one_of(st.text(max_size=60), st.binary(max_size=200)),
            st.lists(st.integers(0, 1000), max_size=4),  # where the payload is cut into fragments
            st.booleans(),  # compressed, if the connection is
            st.booleans(),  # with a ping after each fragment
        ),
        max_size=6,
    )

    @staticmethod
    def frames(
        payload: str | bytes, cuts: list[int], compressor: zlib._Compress | None, ping: bool
    ) -> bytes:
        data = payload.encode() if isinstance(payload, str) else payload
        if compressor is not None:
            data = (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        stream = b""
        for n, (start, end) in enumerate(itertools.pairwise(edges)):
            opcode = CONTINUATION if n else TEXT if isinstance(payload, str) else BINARY
            flags = (FIN if n == len(edges) - 2 else 0) | (RSV1 if compressor is not None and n == 0 else 0)
            stream += frame(opcode, data[start:end], first=flags) + (frame(PING, b"%d" % n) if ping else b"")
        return stream

    @pytest.mark.slow
    @given(MESSAGES, st.booleans(), st.lists(st.integers(0, 5000), max_size=8))
    @settings(suppress_health_check=[HealthCheck.too_slow])
    def test_trap_1_valid_messages_come_back_however_they_are_cut(
        self, messages: list[tuple[str | bytes, list[int], bool, bool]], compression: bool, cuts: list[int]
    ) -> None:
        request, headers = (REQUEST, [DEFLATE]) if compression else (PLAIN, [])
        compressor = zlib.compressobj(wbits=-15)
        stream = b"".join(
            self.frames(payload, where, compressor if compressed and compression else None, ping)
            for payload, where, compressed, ping in messages
        )
        received = fed(opened(request, *headers), stream, cuts)
        assert received.messages == [payload for payload, *_ in messages]
        assert received.failure is None
        assert both_ways(stream, request, *headers).messages == received.messages

    @pytest.mark.slow
    @given(st.lists(st.tuples(st.one_of(st.text(), st.binary()), st.booleans()), max_size=8))
    def test_what_we_send_is_what_the_server_gets(self, messages: list[tuple[str | bytes, bool]]) -> None:
        protocol, server = connected(REQUEST, PerMessageDeflate())
        for payload, split in messages:
            middle = len(payload) // 2 if split else 0
            data = protocol.message(payload[:middle], fin=False) if split else b""
            received = server.receive(data + protocol.message(payload[middle:]))
            parts = [event.data for event in received if isinstance(event, events.Message)]
            assert payload[:0].join(parts) == payload


class TestCheckClose:
    @pytest.mark.parametrize("code", [None, 1000, 3000, 4999, CloseCode.NORMAL_CLOSURE])
    def test_accepts_what_the_browser_accepts(self, code: int | None) -> None:
        check_close(code, "é" * 61 + "x")

    @pytest.mark.parametrize("code", [0, -1, 999, 1001, 1005, 1015, 2999, 5000, 65_536 + 1000])
    def test_refuses_other_codes(self, code: int) -> None:
        with pytest.raises(InvalidClose, match=f"1000 or 3000-4999, not {code}"):
            check_close(code, "")

    @pytest.mark.parametrize("code", [True, "1000", 1000.0, b"x"])
    def test_names_a_code_of_the_wrong_type(self, code: object) -> None:
        with pytest.raises(TypeError, match=re.escape(repr(code))):
            check_close(code, "")  # type: ignore[arg-type]

    def test_refuses_a_reason_that_cannot_be_sent(self) -> None:
        with pytest.raises(InvalidClose, match="124 bytes"):
            check_close(1000, "é" * 62)
        with pytest.raises(InvalidClose, match=r"surrogate at index 1, '\\ud800'"):
            check_close(1000, "a\ud800")
        with pytest.raises(TypeError, match="not None"):
            check_close(1000, None)  # type: ignore[arg-type]
        assert MAX_REASON_BYTES == 123
