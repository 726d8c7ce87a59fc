"""The plain handshake and wsproto's, side by side: no difference but who was asked. Nothing here opens a socket."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fast_lane import cut, outcome, unmasked
from test_protocol import BINARY, FIN, PLAIN, REQUEST, RSV1, TEXT, accept_of, close_frame, deflated, frame
from wsproto.handshake import H11Handshake

from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.handshake import Request
from nwebsocket.exceptions import HandshakeError, InvalidArgument

STANDARD = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"]


class Side:
    """One protocol and what becomes of it. Its request always has the same key; another one that wsproto may make for
    itself later on has not.
    """

    def __init__(self, request: Request, fast_lane: bool) -> None:
        self.protocol = Protocol(request, fast_lane=fast_lane)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "urandom", bytes)
            self.request = self.protocol.handshake()

    def receive(self, template: bytes) -> tuple[object, ...]:
        """What one receive_response() does."""
        protocol = self.protocol
        result: object
        try:
            result = protocol.receive_response(template.replace(b"{accept}", accept_of(self.request).encode()))
        except HandshakeError as error:
            result = type(error), str(error), error.status, error.headers, error.body
        refusal = protocol.refusal()
        state = (protocol.subprotocol, protocol.extensions, protocol.can_send, refusal and str(refusal))
        return result, protocol.response, state

    def goes_on(self) -> tuple[object, ...]:
        """What the frames after the handshake bring, and one of ours."""
        return outcome(self.protocol, self.protocol.receive(b"")), unmasked(self.protocol.close(1000, "x"))


def assert_same(request: Request, pieces: list[bytes]) -> Side:
    """Feed both; return that with the lane."""
    lane, alone = Side(request, True), Side(request, False)
    assert lane.request == alone.request
    for piece in pieces:
        seen = lane.receive(piece)
        assert seen == alone.receive(piece)
        if seen[0] is True:
            assert lane.goes_on() == alone.goes_on()
        if seen[0] is not False:
            break
    return lane


def answer(*headers: str, status: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    return "\r\n".join([status, *headers, "", ""]).encode("latin-1")


# ---- generated


names = st.sampled_from(
    ["Server", "Date", "X-1", "Set-Cookie", "SERVER", "Content-Length", "Transfer-Encoding", "", "ü"]
)
values = st.one_of(
    st.sampled_from(["picows", "a  b", "a\tb", " a", "a ", "", "ä", "0", "chunked", "a: b", "\x00", "a\x7f", "a,b"]),
    st.text(st.characters(max_codepoint=255, blacklist_characters="\r\n"), max_size=6),
)
others = st.builds("{}{}{}".format, names, st.sampled_from([": ", ": ", ":", " : ", ""]), values)
upgrades = st.sampled_from(["Upgrade: websocket", "upgrade: WebSocket", "Upgrade: h2c", "Upgrade: websocket, h2c"])
connections = st.sampled_from(
    ["Connection: Upgrade", "connection: upgrade", "Connection: keep-alive, Upgrade", "Connection: close"]
)
accepts = st.sampled_from(
    ["Sec-WebSocket-Accept: {accept}"] * 5 + ["sec-websocket-accept: x", "Sec-WebSocket-Accept: "]
)
chosen = st.sampled_from(["a", "b", "c", "A", "", "a, b"]).map("Sec-WebSocket-Protocol: {}".format)
extensions = st.sampled_from(
    [
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate;server_max_window_bits=8",
        "permessage-deflate ; client_max_window_bits=10",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; unknown",
        "permessage-deflate, permessage-deflate",
        "permessage-deflate; client_max_window_bits=10, permessage-deflate; server_max_window_bits=9",
        "frame guard",
        "x-other",
    ]
).map("Sec-WebSocket-Extensions: {}".format)
statuses = st.sampled_from(
    ["HTTP/1.1 101 Switching Protocols"] * 8
    + [
        "HTTP/1.1 101",
        "HTTP/1.1 101 ",
        "HTTP/1.0 101 Yes",
        "HTTP/1.1 101  a  b",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 103 Early",
    ]
)
ends = st.sampled_from(
    [b"", frame(TEXT, b"first"), close_frame(1000), frame(BINARY, deflated(b"x"), first=FIN | RSV1), b"\x81"]
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A head that is most often good, with a header too many or too few, or wrong at a place, now and then."""
    headers = [draw(upgrades), draw(connections), draw(accepts)] if draw(st.integers(0, 1)) else list(STANDARD)
    for more, often in ((chosen, 3), (extensions, 3), (others, 2), (others, 2)):
        if draw(st.integers(0, often)) == 0:
            headers.insert(draw(st.integers(0, len(headers))), draw(more))
    if draw(st.integers(0, 9)) == 0:
        headers.pop(draw(st.integers(0, len(headers) - 1)))
    data = answer(*headers, status=draw(statuses))
    if draw(st.integers(0, 9)) == 0:
        data = data.replace(b"\r\n", b"\n", draw(st.integers(1, 5)))
    return data + draw(ends)


requests = st.builds(
    lambda request, protocols, headers: replace(request, protocols=protocols, headers=headers),
    st.sampled_from([PLAIN, REQUEST]),
    st.sampled_from([(), (), ("a",), ("a", "b")]),
    st.sampled_from(
        [(), (), (("Origin", "https://example.org"), ("Cookie", "a=1; b=2")), (("X", "Zoë"),), (("X", ""),)]
    ),
)


class TestNoDifference:
    @pytest.mark.slow
    @given(requests, answers(), st.sets(st.integers(0, 200), max_size=3))
    @settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
    def test_in_generated_answers_however_they_are_cut(self, request: Request, data: bytes, cuts: set[int]) -> None:
        assert_same(request, [*cut(data, cuts), b""])

    @pytest.mark.slow
    @given(requests, answers(), st.integers(0, 300), st.binary(max_size=2))
    @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    def test_in_answers_with_a_wrong_byte(self, request: Request, data: bytes, place: int, other: bytes) -> None:
        assert_same(request, [data[:place] + other + data[place + 1 :], b""])

    @pytest.mark.parametrize(
        "header",
        [
            "Content-Length: x",
            "content-length: 5",
            "Transfer-Encoding: gzip",
            "TRANSFER-ENCODING: chunked",
            "X: a\x0bb",
            "Sec-WebSocket-Protocol: a",
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=10, permessage-deflate",
            "Sec-WebSocket-Accept: {accept}",
            "X: " + 4096 * "y",
        ],
    )
    def test_in_answers_that_are_not_plain_by_one_header(self, header: str) -> None:
        for request in (PLAIN, REQUEST):
            assert_same(request, [answer(*STANDARD, header) + frame(TEXT, b"first"), b""])

    @pytest.mark.parametrize(
        "headers", [(("X", "a\r\nY: b"),), (("Content-Length", "x"),), (("X", " a"),), (("Ü", "a"),)]
    )
    def test_in_requests_that_cannot_be_sent(self, headers: tuple[tuple[str, str], ...]) -> None:
        for fast_lane in (True, False):
            with pytest.raises(InvalidArgument, match="cannot be sent"):
                Side(replace(PLAIN, headers=headers), fast_lane)

    @given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
    def test_in_what_may_be_sent(self, host: str, target: str, name: str, value: str) -> None:
        request = replace(PLAIN, host=f"h{host}", target=f"/{target}", headers=((f"X{name}", value),))
        try:
            expected = Side(request, False)
        except InvalidArgument as error:
            with pytest.raises(InvalidArgument, match=re.escape(str(error))):
                Side(request, True)
        else:
            assert Side(request, True).request == expected.request


# ---- who was asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What wsproto is asked to do from now on."""
    calls: list[str] = []
    for name in ("send", "receive_data"):
        original = getattr(H11Handshake, name)

        def spy(self: H11Handshake, argument: object, name: str = name, original: object = original) -> object:
            calls.append(name)
            return original(self, argument)  # type: ignore[operator]

        monkeypatch.setattr(H11Handshake, name, spy)
    return calls


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        (PLAIN, [*STANDARD, "Server: picows"]),
        (REQUEST, [*STANDARD]),
        (REQUEST, [*STANDARD, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=12"]),
        (
            replace(REQUEST, protocols=("a", "b"), headers=(("Cookie", "a=1; b=2"),)),
            [*STANDARD, "sec-websocket-protocol: b"],
        ),
    ],
)
def test_wsproto_is_not_asked_about_a_plain_handshake(asked: list[str], request_: Request, headers: list[str]) -> None:
    side = Side(request_, True)
    assert side.receive(answer(*headers) + frame(TEXT, b"first"))[0] is True
    assert asked == []
    assert side.protocol.receive(b"").messages == ["first"]


@pytest.mark.parametrize(
    "headers", [[*STANDARD, "X: ü"], [*STANDARD, "Set-Cookie: a=1", "Set-Cookie: b=2"], [*STANDARD, "X:"]]
)
def test_wsproto_is_asked_about_everything_else(asked: list[str], headers: list[str]) -> None:
    side = Side(PLAIN, True)
    assert asked == []
    assert side.receive(answer(*headers))[0] is True
    assert asked == ["send", "receive_data"]


def test_wsproto_is_asked_about_everything_when_the_lane_is_off(asked: list[str]) -> None:
    assert Side(PLAIN, False).receive(answer(*STANDARD))[0] is True
    assert asked == ["send", "receive_data"]
