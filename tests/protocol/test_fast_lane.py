"""The fast lane and wsproto alone, side by side: no difference but who was asked. Nothing here opens a socket."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise

import measure
import pytest
from compressed import short_ones_too  # noqa: F401 - used by all tests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_protocol import (
    BINARY,
    CONTINUATION,
    DEFLATE,
    FIN,
    PING,
    PLAIN,
    PONG,
    REQUEST,
    RSV1,
    TEXT,
    answer,
    close_frame,
    deflated,
    frame,
)
from wsproto.connection import Connection

from nwebsocket._protocol import fast_lane as fast_lane_module
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.handshake import Request
from nwebsocket._protocol.received import Received

SIZES = (0, 1, 2, 125, 126, 127, 1000, 65_535, 65_536, 70_000)
SHORT_TEXT = "\ufeffZoë 漢字 🙂"


def opened(fast_lane: bool, request: Request = PLAIN, beginning: bytes = b"") -> Protocol:
    """A protocol whose 101 came in one packet with the ``beginning`` of the frames."""
    protocol = Protocol(request, fast_lane=fast_lane)
    headers = [DEFLATE] if request.compression else []
    assert protocol.receive_response(answer(protocol, *headers) + beginning)
    return protocol


def unmasked(frames: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of our frames, which are short ones: the keys of their masks are random."""
    found = []
    while frames:
        first, size, mask, rest = frames[0], frames[1] & 0x7F, frames[2:6], frames[6:]
        found.append((first, bytes(byte ^ mask[i % 4] for i, byte in enumerate(rest[:size]))))
        frames = rest[size:]
    return found


def outcome(protocol: Protocol, received: Received) -> tuple[object, ...]:
    """All that a receive() has brought and changed, in a form that can be compared."""
    failure = received.failure
    return (
        received.messages,
        received.pongs,
        received.close,
        unmasked(received.answer),
        failure and (type(failure), str(failure), failure.sent_code, failure.code),
        (protocol.close_sent, protocol.failed, protocol.can_send),
    )


def assert_same(pieces: list[bytes], request: Request = PLAIN, *, close_before: int | None = None) -> Received:
    """Feed both ways and compare after each piece; the first comes with the handshake. Return what came in all."""
    lane, alone = opened(True, request, pieces[0]), opened(False, request, pieces[0])
    total = Received([], [])
    for number, piece in enumerate([b"", *pieces[1:]]):
        if number == close_before:
            assert unmasked(lane.close(1000, "")) == unmasked(alone.close(1000, ""))
        received = lane.receive(piece)
        assert outcome(lane, received) == outcome(alone, alone.receive(piece))
        total.messages += received.messages
        total.failure = total.failure or received.failure
    return total


def cut(data: bytes, cuts: set[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise([0, *sorted(c for c in cuts if 0 < c < len(data)), len(data)])]


# ---- streams of frames


def repeated(unit: bytes, size: int) -> bytes:
    return (unit * (size // len(unit) + 1))[:size] if unit else bytes(size)


def non_minimal(opcode: int, payload: bytes, wide: bool) -> bytes:
    length = struct.pack("!BQ", 127, len(payload)) if wide else struct.pack("!BH", 126, len(payload) & 0xFFFF)
    return bytes([FIN | opcode]) + length + payload


# Cut in the middle of a character, the larger ones may be no UTF-8.
payloads = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.builds(repeated, st.text(max_size=5).map(str.encode), st.sampled_from(SIZES)),
)
texts = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.builds(lambda unit, times: unit.encode() * times, st.text(min_size=1, max_size=3), st.sampled_from(SIZES)),
)
plain = st.one_of(st.builds(frame, st.just(TEXT), texts), st.builds(frame, st.just(BINARY), payloads))
control = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125))
compressed = st.builds(
    lambda opcode, payload: frame(opcode, deflated(payload), first=FIN | RSV1), st.sampled_from([TEXT, BINARY]), texts
)
closes = st.one_of(
    st.builds(close_frame, st.one_of(st.sampled_from([1000, 1005, 1014, 3000, 5000]), st.integers(0, 65_535))),
    st.builds(frame, st.just(8), st.binary(max_size=125)),
)
faults = st.one_of(
    closes,
    st.builds(frame, st.just(TEXT), st.binary(max_size=200)),
    st.builds(lambda text, bad: frame(TEXT, text + bad), texts, st.sampled_from([b"\xc3", b"\xff", b"\xf0\x9f\x99"])),
    st.builds(frame, st.just(TEXT), payloads),
    st.builds(frame, st.integers(0, 15), payloads, first=st.sampled_from(range(0, 256, 16))),
    st.builds(frame, st.integers(0, 10), st.binary(max_size=9), announced=st.sampled_from([5, 126, 70_000, 2**63])),
    st.builds(non_minimal, st.integers(0, 10), payloads, st.booleans()),
    st.binary(max_size=20),
)


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """A message in fragments, compressed or not, with control frames between them, and a data frame now and then."""
    parts = draw(st.lists(payloads, min_size=1, max_size=4))
    intruder = plain if draw(st.integers(0, 9)) == 9 else control
    first = draw(st.sampled_from([TEXT, BINARY, RSV1 | BINARY]))
    if first & RSV1:
        parts = cut(deflated(b"".join(parts)), {3, 9})
    stream = b""
    for number, part in enumerate(parts):
        flags = FIN if number == len(parts) - 1 else 0
        between = b"" if flags else draw(st.one_of(st.just(b""), control, control, intruder))
        stream += frame(CONTINUATION, part, first=flags | (0 if number else first)) + between
    return stream


def streams(compression: bool) -> st.SearchStrategy[list[bytes]]:
    """Frames of a server that may be wrong at one place."""
    good = st.lists(st.one_of(plain, plain, control, fragmented(), *([compressed] if compression else [])), max_size=6)
    wrong = st.one_of(st.just([]), st.just([]), st.lists(faults, min_size=1, max_size=1))
    return st.builds(lambda before, fault, after: before + fault + after, good, wrong, good)


class Pieces(list[bytes]):
    """What one receive() after the other gets; short in print."""

    def __repr__(self) -> str:
        return repr([piece if len(piece) < 80 else (piece[:40], len(piece), piece[-20:]) for piece in self])


@st.composite
def cut_streams(draw: st.DrawFn, compression: bool) -> Pieces:
    """A stream in the pieces that it comes in; the cuts are anywhere, but often near the edges of frames."""
    frames = draw(streams(compression))
    data = b"".join(frames)
    if data and draw(st.integers(0, 7)) == 7:
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + draw(st.binary(max_size=2)) + data[place + draw(st.integers(0, 2)) :]
    edges = [0, *accumulate(map(len, frames))]
    near = st.builds(int.__add__, st.sampled_from(edges), st.integers(-3, 14))
    return Pieces(cut(data, draw(st.sets(st.one_of(near, near, st.integers(0, len(data))), max_size=10))))


LIMITS = (*[None, 2**20] * 6, 0, 10, 125, 126, 1000, 65_536)
requests = st.builds(
    lambda request, size: replace(request, max_size=size), st.sampled_from([PLAIN, REQUEST]), st.sampled_from(LIMITS)
)


class TestNoDifference:
    @pytest.mark.slow
    @given(st.data(), requests, st.one_of(st.none(), st.none(), st.integers(0, 5)))
    @settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    def test_in_generated_streams_however_they_are_cut(
        self, data: st.DataObject, request: Request, close_before: int | None
    ) -> None:
        pieces = data.draw(cut_streams(request.compression))
        assert_same(pieces, request, close_before=close_before)

    @given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), requests)
    @example([b"\x81", b"\xff"], PLAIN)
    @example([b"\x88\x7e"], PLAIN)
    @example([b"\x01\x00\x83\x7e"], PLAIN)
    @example([b"\x82\x7f" + b"\xff" * 8], replace(PLAIN, max_size=None))
    @example([frame(BINARY, b"x", announced=2**63)], replace(PLAIN, max_size=None))
    @example([frame(BINARY, b"x", announced=2**63 - 1)], replace(PLAIN, max_size=None))
    def test_in_random_bytes_which_can_do_no_more_than_fail(self, pieces: list[bytes], request: Request) -> None:
        assert_same(pieces, request)

    @given(st.lists(plain, max_size=6), st.sets(st.integers(0, 2000), max_size=8))
    @settings(max_examples=measure.size(30, 100))
    def test_in_plain_messages_all_of_which_arrive(self, frames: list[bytes], cuts: set[int]) -> None:
        total = assert_same(cut(b"".join(frames), cuts))
        assert (len(total.messages), total.failure) == (len(frames), None)

    @pytest.mark.parametrize(
        "data",
        [
            frame(TEXT, SHORT_TEXT.encode()) + frame(PING, b"p") + frame(BINARY, bytes(130)) + close_frame(1000, "é"),
            frame(TEXT, b"a", first=0) + frame(PING, b"p") + frame(CONTINUATION, b"b") + frame(TEXT, b"c"),
            frame(TEXT, b"a", first=0) + frame(PING, b"p") + frame(BINARY, b"b" * 20) + frame(CONTINUATION, b"c"),
            frame(TEXT, b"a") + frame(TEXT, SHORT_TEXT.encode() + b"\xed\xa0\x80" + b"x" * 200) + frame(TEXT, b"b"),
            frame(TEXT, b"a") + frame(TEXT, b"b" * 130 + b"\xf0\x9f\x99") + frame(TEXT, b"c"),
            frame(BINARY, bytes(126)) + non_minimal(TEXT, b"x" * 125, False) + frame(TEXT, b"c"),
            frame(BINARY, bytes(126)) + non_minimal(BINARY, bytes(200), True),
            frame(TEXT, b"a") + b"\x82\xfe\x00\x80" + bytes(132),
            frame(PING, b"\x88\x00" * 3) + frame(TEXT, b"a"),
            frame(TEXT, b"\xff\x88\x00") + frame(TEXT, b"a"),
            frame(TEXT, b"a", first=0) + frame(CONTINUATION, b"\x88\x00") + frame(TEXT, b"b"),
        ],
    )
    def test_wherever_the_one_or_two_cuts_are(self, data: bytes) -> None:
        for place in range(1, len(data)):
            assert_same(cut(data, {place}))
            assert_same(cut(data, {place, place + 1, place + 7}))

    @pytest.mark.parametrize("before", [frame(BINARY, bytes(9)), frame(TEXT, deflated(b"x"), first=FIN | RSV1)])
    def test_in_a_continuation_of_nothing(self, before: bytes) -> None:
        data = before + frame(BINARY, bytes(9)) + frame(CONTINUATION, bytes(5))
        total = assert_same([data], replace(REQUEST, max_size=10))
        assert len(total.messages) == 2
        assert "no message to continue" in str(total.failure)

    @given(
        st.one_of(st.none(), st.integers(0, 5000), st.sampled_from([1000, 1001, 1005, 1014, 3000])),
        st.one_of(st.text(max_size=60), st.text("é", min_size=60, max_size=63)),
    )
    def test_in_our_close_frame(self, code: int | None, reason: str) -> None:
        lane, alone = opened(True), opened(False)
        assert unmasked(lane.close(code, reason)) == unmasked(alone.close(code, reason))
        assert (lane.close(code, reason), alone.close(code, reason)) == (b"", b"")

    @pytest.mark.parametrize("limit", [0, 125, 126, 65_535, 65_536, 70_000])
    @pytest.mark.parametrize("over", [0, 1])
    def test_at_the_limit_of_size(self, limit: int, over: int) -> None:
        data = frame(BINARY, b"") + frame(BINARY, bytes(limit + over))
        total = assert_same(cut(data, {40, 30_000}), replace(PLAIN, max_size=limit))
        assert (total.failure is None, len(total.messages)) == ((True, 2) if not over else (False, 1))


# ---- who was asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What wsproto is given from now on."""
    pieces: list[bytes] = []
    original = Connection.receive_data

    def receive_data(self: Connection, data: bytes) -> None:
        if data:
            pieces.append(data)
        original(self, data)

    monkeypatch.setattr(Connection, "receive_data", receive_data)
    return pieces


def plain_stream(largest: int) -> tuple[list[str | bytes], bytes]:
    """Text and bytes of all sizes up to that one, and their frames."""
    messages: list[str | bytes] = []
    for size in (size for size in SIZES if size <= largest):
        messages += [SHORT_TEXT * (size // 16) + "x" * (size % 16), bytes(size)]
    frames = [frame(TEXT, m.encode()) if isinstance(m, str) else frame(BINARY, m) for m in messages]
    return messages, b"".join(frames)


class TestWsprotoIsAsked:
    def test_nothing_about_plain_messages(self, asked: list[bytes]) -> None:
        messages, data = plain_stream(70_000)
        received = opened(True).receive(data)
        assert received.messages == messages
        assert asked == []

    @pytest.mark.parametrize("size", [1, 3, 1000, 4096, 65_536])
    def test_nothing_about_plain_messages_that_come_in_pieces(self, asked: list[bytes], size: int) -> None:
        messages, data = plain_stream(1000 * size)
        protocol = opened(True, PLAIN, data[:size])
        received = [protocol.receive(b"")]
        received += [protocol.receive(data[place : place + size]) for place in range(size, len(data), size)]
        assert [message for part in received for message in part.messages] == messages
        assert asked == []

    @pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x0b\xb8bye", b"\x0f\xa0" + bytes(123)])
    def test_nothing_about_a_plain_close(self, asked: list[bytes], payload: bytes) -> None:
        received = opened(True).receive(frame(TEXT, b"a") + frame(8, payload) + b"whatever")
        assert (received.messages, received.close is None) == (["a"], False)
        assert unmasked(received.answer) == [(0x88, payload)]
        assert asked == []

    @pytest.mark.parametrize("payload", [b"\x03", b"\x03\xed", b"\x03\xe8\xff", b"\x07\xd0", bytes(1000)])
    def test_about_a_close_that_is_not_plain(self, asked: list[bytes], payload: bytes) -> None:
        assert opened(True).receive(frame(8, payload)).failure is not None
        assert asked == [frame(8, payload)]

    def test_everything_when_the_lane_is_off(self, asked: list[bytes]) -> None:
        messages, data = plain_stream(70_000)
        assert opened(False).receive(data).messages == messages
        assert b"".join(asked) == data

    @pytest.mark.parametrize(
        "other",
        [
            frame(PING, b"p"),
            frame(PONG) * 3,
            frame(TEXT, b"1", first=0) + frame(PING, b"p") + frame(CONTINUATION, b"2"),
            frame(BINARY, b"1", first=0) + frame(CONTINUATION, first=0) + frame(CONTINUATION, bytes(300)),
            frame(TEXT, deflated(b"1"), first=RSV1) + frame(CONTINUATION),
        ],
    )
    @pytest.mark.parametrize("size", [1, 5, 100_000])
    def test_about_everything_else_and_the_lane_goes_on_behind_it(
        self, asked: list[bytes], other: bytes, size: int
    ) -> None:
        data = frame(TEXT, b"before") + other + frame(BINARY, b"between") + other + frame(TEXT, b"after")
        protocol = opened(True, REQUEST)
        received = [protocol.receive(data[place : place + size]) for place in range(0, len(data), size)]
        messages = [message for part in received for message in part.messages]
        assert [messages[0], messages[-1]] == ["before", "after"]
        assert b"between" in messages
        assert b"".join(asked) == other * 2

    def test_about_a_plain_frame_only_to_name_its_fault(self, asked: list[bytes]) -> None:
        bad = frame(TEXT, b"x" * 200 + b"\xff" + b"y" * 200)
        protocol = opened(True)
        assert protocol.receive(frame(TEXT, b"good") + bad[:100]).messages == ["good"]
        assert asked == []
        received = protocol.receive(bad[100:210])
        assert received.failure is not None
        assert received.failure.sent_code == 1007
        assert b"".join(asked) == bad[:210]


    def test_about_a_plain_frame_inside_a_fragmented_message(self, asked: list[bytes]) -> None:
        data = frame(TEXT, b"a", first=0) + frame(PING, b"p") + frame(TEXT, b"b")
        received = opened(True).receive(data)
        assert (received.messages, b"".join(asked)) == ([], data)
        assert "continuation was expected" in str(received.failure)


def test_order_is_kept_around_other_frames() -> None:
    protocol = opened(True)
    data = frame(TEXT, b"1") + frame(TEXT, b"2", first=0) + frame(CONTINUATION, b"3") + frame(BINARY, b"4")
    received = protocol.receive(data + frame(PING, b"p") + frame(TEXT, b"5") + close_frame(1000) + frame(TEXT, b"6"))
    assert received.messages == ["1", "23", b"4", "5"]
    assert received.close == (1000, "")
    assert unmasked(received.answer) == [(FIN | PONG, b"p"), (FIN | 8, b"\x03\xe8")]


def test_bad_text_fails_before_its_end_has_come() -> None:
    protocol = opened(True)
    received = protocol.receive(frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xf4\x90", announced=2**20))
    assert received.failure is not None
    assert received.failure.sent_code == 1007


@pytest.fixture
def memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize(("opcode", "size"), [(TEXT, 65_536), (BINARY, 65_536), (BINARY, 2)])
@pytest.mark.usefixtures("memory")
def test_a_message_that_comes_in_pieces_takes_memory_in_proportion_to_its_size(opcode: int, size: int) -> None:
    length = 2**18 if size == 2 else 2**22
    protocol = opened(True, PLAIN, frame(opcode, announced=length))
    protocol.receive(b"")
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(length // size - 1):
        assert protocol.receive(b"x" * size).messages == []
    (message,) = protocol.receive(b"y" * size).messages
    assert len(message) == length
    assert tracemalloc.get_traced_memory()[1] - before < 2.5 * length


@pytest.mark.parametrize(("value", "enabled"), [("0", False), ("1", True), (None, True)])
def test_the_environment_can_turn_it_off(value: str | None, enabled: bool) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "NWEBSOCKET_FAST_LANE"}
    if value is not None:
        environment["NWEBSOCKET_FAST_LANE"] = value
    script = "import nwebsocket._protocol.fast_lane as lane; print(lane.ENABLED)"
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(enabled)


def test_a_protocol_follows_the_switch(asked: list[bytes]) -> None:
    protocol = Protocol(PLAIN)
    assert protocol.receive_response(answer(protocol) + frame(TEXT, b"x"))
    assert protocol.receive(b"").messages == ["x"]
    assert asked == ([] if fast_lane_module.ENABLED else [frame(TEXT, b"x")])
