"""Whole compressed messages, which pass wsproto by: no difference but the time, whatever comes and whatever interrupts.

Nothing here opens a socket. NWEBSOCKET_FULL=1 takes many times as many examples.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate, pairwise
from types import FrameType
from typing import Any, NamedTuple

import pytest
from compressed import short_ones_too  # noqa: F401 - used by all tests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from measure import FULL
from test_deflate import (
    ALL_SETTINGS,
    MESSAGES,
    SERVERS,
    TAIL,
    EchoProtocol,
    Sender,
    accepted,
    ended,
    fragment_of,
)
from test_fast_lane import outcome
from test_protocol import (
    BINARY,
    CONTINUATION,
    DEFLATE,
    FIN,
    PING,
    PLAIN,
    REQUEST,
    RSV1,
    RSV2,
    RSV3,
    TEXT,
    answer,
    frame,
)
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from nwebsocket import Deflate
from nwebsocket._connection.sender import message_of
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.fast_lane import MUCH, FastLane
from nwebsocket._protocol.handshake import Request
from nwebsocket._protocol.payload import Message
from nwebsocket._protocol.received import Received

NO_TAKEOVER = "; server_no_context_takeover"


def examples(moderate: int) -> settings:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=20 * moderate if FULL else moderate, deadline=None, suppress_health_check=health)


# ---- streams


class Peer:
    """A server's compressor that does whatever RFC 7692 allows, and more.

    What it makes by other means than `sync` and `full` begins a new history.
    """

    def __init__(self, bits: int, takeover: bool) -> None:
        self._bits, self._takeover = bits, takeover
        self._stream = self._new()

    def _new(self) -> zlib._Compress:
        return zlib.compressobj(wbits=-max(9, self._bits))

    def payload(self, way: str, content: bytes) -> bytes:
        payload: bytes = getattr(self, f"_{way}")(content)
        if way not in ("sync", "full") or not self._takeover:
            self._stream = self._new()
        return payload

    def _sync(self, content: bytes, mode: int = zlib.Z_SYNC_FLUSH) -> bytes:
        return (self._stream.compress(content) + self._stream.flush(mode))[:-4]

    def _full(self, content: bytes) -> bytes:
        return self._sync(content, zlib.Z_FULL_FLUSH)

    def _stored(self, content: bytes) -> bytes:
        stream = zlib.compressobj(0, wbits=-15)
        return (stream.compress(content) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def _nothing(self, content: bytes) -> bytes:
        return b""

    def _ended(self, content: bytes) -> bytes:
        return ended(content)

    def _ended_00(self, content: bytes) -> bytes:
        return ended(content) + b"\x00"

    def _streams(self, content: bytes) -> bytes:
        return ended(content[:3]) + ended(content[3:]) + ended(b"") + self._new_sync(b"more")

    def _new_sync(self, content: bytes) -> bytes:
        self._stream = self._new()
        return self._sync(content)

    def _many_streams(self, content: bytes) -> bytes:
        return ended(b"x") * 1200

    def _cut_in_the_tail(self, content: bytes) -> bytes:
        """A last block of plain bytes, some of which lack: it ends within the tail."""
        return stored_block(content[:40], lacking=1 + len(content) % 5, last=True)

    def _left_open(self, content: bytes) -> bytes:
        """The same, but what lacks is taken from the next message."""
        return stored_block(content[:40], lacking=6 + len(content) % 9, last=False)


def stored_block(content: bytes, *, lacking: int, last: bool) -> bytes:
    size = len(content) + lacking
    return bytes([last]) + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + content


SOUND = ("sync", "sync", "sync", "full", "stored", "ended", "ended_00", "streams")
ODD = (*SOUND, "nothing", "many_streams", "cut_in_the_tail", "left_open")


class Sent(NamedTuple):
    """What the server does for one message."""

    way: str  # a method of the peer's, or "plain"
    opcode: int
    content: bytes
    cuts: list[int]  # where it is cut into fragments
    pings: bool  # between fragments and after the message
    damage: tuple[int, int] | None  # place and value of a byte that is changed
    first: int  # bits changed in the first byte

    def frames(self, peer: Peer) -> Iterator[bytes]:
        payload = self.content if self.way == "plain" else peer.payload(self.way, self.content)
        if self.damage is not None and payload:
            place, value = self.damage
            place %= len(payload)
            payload = payload[:place] + bytes([payload[place] ^ value]) + payload[place + 1 :]
        edges = [0, *sorted(cut % (len(payload) + 1) for cut in self.cuts), len(payload)]
        for number, (start, end) in enumerate(pairwise(edges)):
            first = FIN if number == len(self.cuts) else 0
            if number == 0:
                first |= self.first ^ (0 if self.way == "plain" else RSV1)
            yield frame(CONTINUATION if number else self.opcode, payload[start:end], first=first)
            if self.pings:
                yield frame(PING, b"%d" % number)


json_like = st.integers(0, 9).map(lambda n: json.dumps([{"symbol": "BTC", "price": n, "bid": 0.5}] * (n % 3)).encode())
contents = st.one_of(
    json_like,
    json_like,
    st.text(max_size=30).map(str.encode),
    st.builds(lambda text, times: text.encode() * times, st.text(max_size=3), st.sampled_from([10, 1000, 9000])),
)
NOT_UTF8 = [b"\xff", b"\xc3", b"\xf0\x9f\x99", b"\xe2\x82x", b"\xed\xa0\x80"]
rarely = st.sampled_from([False] * 5 + [True])


@st.composite
def sent(draw: st.DrawFn, ways: Sequence[str], *, sound: bool) -> Sent:
    content = draw(contents)
    faulty = not sound and draw(rarely)
    fault = draw(st.sampled_from(["damage", "bits", "utf-8"])) if faulty else ""
    if fault == "utf-8":
        content = content[:40] + draw(st.sampled_from(NOT_UTF8)) + draw(st.sampled_from([b"", b"", b"x" * 300]))
    return Sent(
        draw(st.sampled_from([*ways, "plain"])),
        draw(st.sampled_from([TEXT, BINARY])),
        content,
        draw(st.lists(st.integers(0, 200), min_size=1, max_size=3)) if draw(rarely) else [],
        draw(rarely),
        (draw(st.integers(0, 60)), draw(st.integers(1, 255))) if fault == "damage" else None,
        draw(st.sampled_from([RSV1, RSV2, RSV3])) if fault == "bits" else 0,
    )


class Way(NamedTuple):
    """How the two sides have agreed."""

    bits: int
    takeover: bool
    max_size: int | None

    @property
    def parameters(self) -> str:
        bits = "" if self.bits == 15 else f"; server_max_window_bits={self.bits}"
        return DEFLATE + bits + ("" if self.takeover else NO_TAKEOVER)

    def opened(self, *, fast_lane: bool, beginning: bytes = b"") -> Protocol:
        protocol = Protocol(replace(REQUEST, max_size=self.max_size), fast_lane=fast_lane)
        assert protocol.receive_response(answer(protocol, self.parameters) + beginning)
        return protocol


agreed = st.builds(
    Way,
    st.sampled_from([15, 15, *range(8, 15)]),
    st.sampled_from([True, True, False]),
    st.sampled_from([None, 2**20, 2**20, 0, 1, 100, 126, 3000]),
)
ANY = Way(15, True, None)


@st.composite
def streams(draw: st.DrawFn, way: Way, ways: Sequence[str], *, sound: bool = False) -> list[bytes]:
    peer = Peer(way.bits, way.takeover)
    return [piece for message in draw(st.lists(sent(ways, sound=sound), max_size=6)) for piece in message.frames(peer)]


@st.composite
def cuts_of(draw: st.DrawFn, frames: list[bytes]) -> list[int]:
    edges = [0, *accumulate(map(len, frames))]
    near = st.builds(int.__add__, st.sampled_from(edges), st.integers(-3, 14))
    places = draw(st.sets(st.one_of(near, st.integers(0, edges[-1])), max_size=8))
    return sorted(place for place in places if 0 < place < edges[-1])


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *cuts, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# ---- both ways


def in_turns(protocol: Protocol, pieces: Sequence[bytes]) -> Received:
    """All that comes of the pieces by receive_some(), which is asked again before, or together with, the next one."""
    total = Received([], [], [])
    for number, piece in enumerate([*pieces, b""]):
        asked = False
        while not asked or (protocol.unfinished and (number % 2 or number == len(pieces))):
            received = protocol.receive_some(b"" if asked else piece)
            asked = True
            total.messages += received.messages
            total.pongs += received.pongs
            total.replies = [*(total.replies or ()), *(received.replies or ())]
            total.close_frame += received.close_frame
            total.close = total.close or received.close
            if received.failure is not None:
                total.failure = received.failure
                total.close_frame += protocol.fail()
    return total


def assert_same_after_each(way: Way, pieces: Sequence[bytes]) -> None:
    lane, alone = way.opened(fast_lane=True, beginning=pieces[0]), way.opened(fast_lane=False, beginning=pieces[0])
    for piece in [b"", *pieces[1:]]:
        assert outcome(lane, lane.receive(piece)) == outcome(alone, alone.receive(piece))


def assert_same(way: Way, pieces: Sequence[bytes]) -> Received:
    assert_same_after_each(way, pieces)
    lane, alone = way.opened(fast_lane=True), way.opened(fast_lane=False)
    received = in_turns(lane, pieces)
    assert outcome(lane, received) == outcome(alone, in_turns(alone, pieces))
    return received


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))] or [b""]


class TestNoDifference:
    @given(st.data(), agreed)
    @examples(80)
    def test_in_generated_streams_whole_in_pieces_and_byte_by_byte(self, data: st.DataObject, way: Way) -> None:
        frames = data.draw(streams(way, ODD))
        stream = b"".join(frames)
        assert_same(way, [stream])
        assert_same(way, pieces_of(stream, data.draw(cuts_of(frames))))
        if len(stream) < 600:
            assert_same(way, bytewise(stream))

    @given(st.data(), agreed)
    @examples(40)
    def test_in_sound_streams_all_of_which_arrive(self, data: st.DataObject, way: Way) -> None:
        way = way._replace(max_size=None)
        frames = data.draw(streams(way, SOUND, sound=True))
        received = assert_same(way, pieces_of(b"".join(frames), data.draw(cuts_of(frames))))
        assert received.failure is None
        assert len(received.messages) == sum(part[0] & FIN != 0 and part[0] & 0xF != PING for part in frames)

    @pytest.mark.parametrize("takeover", [True, False])
    @pytest.mark.parametrize(
        "payloads",
        [
            [ended(b"one"), Sender()(b"two"), ended(b"three") + b"\x00", Sender()(b"four")],
            [ended(b"one") + ended(b"two") + Sender()(b"three"), Sender()(b"four")],
            [ended(b"one") + b"\xff" * 9, Sender()(b"two")],
            [stored_block(b"one", lacking=3, last=True), Sender()(b"two")],
            [stored_block(b"one", lacking=2, last=True), Sender()(b"two")],
            [stored_block(b"one", lacking=1, last=True), Sender()(b"two")],
            [stored_block(b"one", lacking=9, last=False), b"", Sender()(b"two")],
            [b"", b"\x00", b"\x01", b"", Sender()(b"two")],
            [Sender()(b"\xe6\xbc\xa2" * 9 + b"\xe6\xbc"), Sender()(b"two")],
            [Sender()(b"one" * 5)[:-3], Sender()(b"two")],
        ],
    )
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_wherever_the_cut_is(self, payloads: list[bytes], opcode: int, takeover: bool) -> None:
        data = b"".join(frame(opcode, payload, first=FIN | RSV1) for payload in payloads)
        way = Way(15, takeover, 1000)
        assert_same(way, bytewise(data))
        for place in range(1, len(data)):
            assert_same(way, pieces_of(data, [place]))

    @pytest.mark.parametrize("over", [0, 1, 100_000])
    @pytest.mark.parametrize("limit", [0, 1, 125, 70_000])
    @pytest.mark.parametrize("pattern", [b"x", bytes(range(128))])
    @pytest.mark.parametrize("stored", [False, True])
    def test_at_the_limit_of_size(self, limit: int, over: int, pattern: bytes, stored: bool) -> None:
        content = (pattern * (limit + over))[: limit + over]
        payload = Peer(15, True).payload("stored" if stored else "sync", content)
        data = frame(BINARY, b"") + frame(TEXT, payload, first=FIN | RSV1) + frame(TEXT)
        for cuts in ([], [9], [len(data) - 1], range(1, len(data), max(1, len(data) // 20))):
            received = assert_same(Way(15, True, limit), pieces_of(data, cuts))
            assert (received.failure is None, len(received.messages)) == ((True, 3) if not over else (False, 1))

    @pytest.mark.parametrize("bad", ["mask", "2", "8", "rsv1 on a ping", "rsv1 on a continuation", "declined"])
    def test_in_what_a_frame_must_not_be(self, bad: str) -> None:
        payload = Sender()(b"one")
        frames = {
            "mask": bytes([FIN | RSV1 | TEXT, 0x80 | len(payload)]) + bytes(4) + payload,
            "2": bytes([FIN | RSV1 | TEXT, 126, 0, len(payload)]) + payload,
            "8": bytes([FIN | RSV1 | TEXT, 127, *bytes(7), len(payload)]) + payload,
            "rsv1 on a ping": frame(PING, payload, first=FIN | RSV1),
            "rsv1 on a continuation": frame(TEXT, payload, first=RSV1) + frame(CONTINUATION, first=FIN | RSV1),
            "declined": frame(TEXT, payload, first=FIN | RSV1),
        }
        data = frame(TEXT, b"plain") + frames[bad] + frame(TEXT, b"plain")
        for cuts in ([], *([place] for place in range(1, len(data)))):
            if bad == "declined":
                protocols = [Protocol(PLAIN, fast_lane=fast_lane) for fast_lane in (True, False)]
                assert all(protocol.receive_response(answer(protocol)) for protocol in protocols)
                lane, alone = (outcome(p, in_turns(p, pieces_of(data, cuts))) for p in protocols)
                assert lane == alone
            else:
                assert assert_same(ANY, pieces_of(data, cuts)).failure is not None

    @pytest.mark.parametrize("fault", ["damage", "utf-8", "size"])
    def test_in_a_fault_that_shows_before_the_end_has_come(self, fault: str) -> None:
        content = {"damage": b"x", "utf-8": b"x\xff", "size": bytes(2000)}[fault]
        payload = Sender()(content)[:-1] + (b"\xff" * 9 if fault == "damage" else b"")
        data = frame(TEXT, payload + bytes(50), announced=len(payload) + 9000, first=FIN | RSV1)
        for cuts in ([], range(1, len(data))):
            assert assert_same(Way(15, True, 10_000 if fault != "size" else 1000), pieces_of(data, cuts)).failure


# ---- how much at once


@pytest.mark.parametrize("between", ["nothing", "pings", "fragments", "plain"])
@pytest.mark.parametrize("size", [100_000, MUCH - 1, 2 * MUCH])
@pytest.mark.parametrize("fast_lane", [True, False])
def test_one_call_inflates_no_more_than_much_and_one_message(between: str, size: int, fast_lane: bool) -> None:
    payload = Sender()(bytes(size))
    frames = {
        "nothing": b"",
        "pings": frame(PING),
        "fragments": frame(BINARY, payload, first=RSV1) + frame(CONTINUATION),
        "plain": frame(BINARY, b""),
    }
    data = (frame(BINARY, payload, first=FIN | RSV1) + frames[between]) * 12
    for pieces in ([data], [data[:5000], data[5000:]]):
        protocol = Way(15, False, None).opened(fast_lane=fast_lane)
        sizes = []
        for piece in pieces:
            sizes.append(sum(map(len, protocol.receive_some(piece).messages)))
            while protocol.unfinished:
                sizes.append(sum(map(len, protocol.receive_some(b"").messages)))
        # Most of one may have been inflated by the call before.
        carried = 0 if fast_lane and pieces == [data] and between != "fragments" else size
        assert max(sizes) < MUCH + size + carried
        assert sum(sizes) == size * (24 if between == "fragments" else 12)


# ---- interruptions


OURS = {f"nwebsocket._protocol.{name}" for name in ("fast_lane", "deflate", "framing")}


class Interrupted(BaseException):
    pass


def interrupted(call: Callable[[], Any], number: int) -> bool:
    """Make the call, and raise at that event in our code: a line, a return, the begin or the end of a call of C.

    In a thread: an exception that a tracing function raises in an except clause stays the thread's, as the context of
    all that follow.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_interrupted, call, number).result()


def _interrupted(call: Callable[[], Any], number: int) -> bool:
    left = number
    tracing, profiling = sys.gettrace(), sys.getprofile()

    def count(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal left
        if frame.f_globals["__name__"] not in OURS:
            return None
        left -= 1
        if left == 0:
            raise Interrupted
        return count

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event.startswith("c_"):
            count(frame, event, arg)

    try:
        sys.setprofile(profile)
        sys.settrace(count)
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
        sys.setprofile(profiling)
        sys.settrace(tracing)
    return False


def taken(protocol: Protocol, data: bytes, position: int) -> tuple[list[str | bytes], int]:
    """What take_whole() gives, taken over as a thread does it."""
    lane, deflate = protocol.lane, protocol.deflate
    assert lane is not None
    messages: list[str | bytes] = []
    position = lane.take_whole(data, position, len(data) - 1, messages)
    deflate.forget(lane.deflated)
    return messages, position


def stream_to_interrupt(end: str, takeover: bool) -> bytes:
    """Messages of all kinds, the last of which is for wsproto."""
    first = Sender()
    second = first if takeover else Sender()
    compressed = [(TEXT, first(b'{"a": 1}')), (BINARY, second(b'{"a": 1}')), (TEXT, b""), (TEXT, ended(b"x" * 200))]
    if end == "damage":
        compressed.append((TEXT, Sender()(b"two") + b"\xff\xff\xff"))
    elif end == "utf-8":
        compressed.append((TEXT, Sender()(b"two\xff")))
    elif end == "size":
        compressed.append((TEXT, Sender()(bytes(1001))))
    elif end == "stream":
        compressed.append((TEXT, ended(b"two") + Sender()(b"more")))
        compressed.append((TEXT, Sender()(b"three")))
    frames = [frame(opcode, payload, first=FIN | RSV1) for opcode, payload in compressed]
    frames.insert(2, frame(TEXT, b"plain"))
    return b"".join(frames) + frame(PING) + frame(TEXT, b"last")


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize("end", ["sound", "damage", "utf-8", "size", "stream"])
class TestInterruptedInTakeWhole:
    def test_the_same_call_gives_the_same(self, end: str, takeover: bool) -> None:
        data, way = stream_to_interrupt(end, takeover), Way(15, takeover, 1000)
        undisturbed = way.opened(fast_lane=True)
        messages, position = taken(undisturbed, data, 0)
        rest = outcome(undisturbed, undisturbed.receive(data[position:]))
        assert len(messages) == 5
        for number in range(1, 10_000):
            protocol = way.opened(fast_lane=True)
            lane = protocol.lane
            assert lane is not None
            going_on = interrupted(lambda lane=lane: lane.take_whole(data, 0, len(data) - 1, []), number)  # type: ignore[misc]
            assert taken(protocol, data, 0) == (messages, position)
            assert outcome(protocol, protocol.receive(data[position:])) == rest
            if not going_on:
                return

    def test_twice(self, end: str, takeover: bool) -> None:
        data, way = stream_to_interrupt(end, takeover), Way(15, takeover, 1000)
        messages, position = taken(way.opened(fast_lane=True), data, 0)
        for number in range(3, 250, 7):
            for second in range(2, 250, 23):
                protocol = way.opened(fast_lane=True)
                lane = protocol.lane
                assert lane is not None
                for place in (number, second):
                    interrupted(lambda lane=lane: lane.take_whole(data, 0, len(data) - 1, []), place)  # type: ignore[misc]
                assert taken(protocol, data, 0) == (messages, position)

    def test_the_loop_goes_on_with_what_has_been_inflated(self, end: str, takeover: bool) -> None:
        data, way = stream_to_interrupt(end, takeover), Way(15, takeover, 1000)
        alone = way.opened(fast_lane=False)
        expected = outcome(alone, in_turns(alone, [data]))
        for number in range(1, 10_000):
            going_on = True
            cuts = range(1, len(data)) if FULL else [1 + 13 * number % (len(data) - 1)]
            for cut in (None, *cuts):
                protocol = way.opened(fast_lane=True)
                lane = protocol.lane
                assert lane is not None
                going_on = interrupted(lambda lane=lane: lane.take_whole(data, 0, len(data) - 1, []), number)  # type: ignore[misc]
                pieces = [data] if cut is None else pieces_of(data, [cut])
                assert outcome(protocol, in_turns(protocol, pieces)) == expected
                assert protocol.deflate.inflated == []
            if not going_on:
                return


@given(st.data(), agreed, st.integers(1, 400))
@examples(60)
def test_whatever_is_interrupted_in_generated_streams_the_loop_goes_on(
    data: st.DataObject, way: Way, number: int
) -> None:
    frames = data.draw(streams(way, ODD))
    stream = b"".join(frames) or frame(TEXT)
    alone, protocol = way.opened(fast_lane=False), way.opened(fast_lane=True)
    expected = in_turns(alone, [stream])
    lane = protocol.lane
    assert lane is not None
    interrupted(lambda: lane.take_whole(stream, 0, len(stream) - 1, []), number)
    before: list[str | bytes] = []
    position = 0
    if data.draw(st.booleans()):
        before, position = taken(protocol, stream, 0)
    cuts = [cut - position for cut in data.draw(cuts_of(frames)) if cut > position] if frames else []
    received = in_turns(protocol, pieces_of(stream[position:], cuts))
    received.messages = before + received.messages
    if expected.failure is None:
        assert outcome(protocol, received) == outcome(alone, expected)
    else:  # of several faults in one message, another cut may show another one first
        assert (received.messages, received.pongs) == (expected.messages, expected.pongs)
        assert received.failure is not None


# ---- the way out


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of our frames of any size."""
    found = []
    while data:
        first, size, start = data[0], data[1] & 0x7F, 2
        assert data[1] & 0x80
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        mask, masked = data[start : start + 4], data[start + 4 : start + 4 + size]
        keys = (mask * (size // 4 + 1))[:size]
        plain = int.from_bytes(masked, "big") ^ int.from_bytes(keys, "big")
        found.append((first, plain.to_bytes(size, "big")))
        data = data[start + 4 + size :]
    return found


def wire(protocol: Protocol, messages: Sequence[Message]) -> list[tuple[int, bytes]]:
    """What frames_of() gives, sent as a caller does it."""
    buffers = protocol.deflate.frames_of(messages)
    protocol.deflate.keep_context()
    assert len(buffers) == len(messages)
    return frames_in(b"".join(buffers))


def old_way(protocol: Protocol, message: Message) -> list[tuple[int, bytes]]:
    opcode, payload, _ = message
    parts = (payload,) if isinstance(payload, bytes) else payload
    data = b""
    for number, part in enumerate(parts, 1):
        data += protocol.message(part.decode() if opcode == TEXT else part, fin=number == len(parts))
    return frames_in(data)


def understood(frames: Sequence[tuple[int, bytes]], *, takeover: bool) -> list[bytes]:
    """The messages, as a peer's inflater reads them."""
    stream, messages, payload = zlib.decompressobj(-15), [], b""
    for number, (first, part) in enumerate(frames):
        begins = number == 0 or frames[number - 1][0] & FIN != 0
        assert (first & RSV1 != 0, first & 0xF != CONTINUATION) == (begins, begins)
        payload += part
        if first & FIN:
            messages.append(stream.decompress(payload + TAIL))
            payload = b""
            if not takeover:
                stream = zlib.decompressobj(-15)
    return messages


def content_of(message: Message) -> bytes:
    return message[1] if isinstance(message[1], bytes) else b"".join(message[1])


OUTGOING = [
    message_of(data)
    for data in ('{"a": 1}', '{"a": 1}', b"", ["a", "", "漢字"], [b"x" * 5000], "", '{"a": 1}')
]


@pytest.mark.parametrize("takeover", [True, False])
class TestInterruptedInFramesOf:
    def opened(self, takeover: bool) -> Protocol:
        protocol = Protocol(replace(REQUEST, compression=Deflate(client_no_context_takeover=not takeover)))
        assert protocol.receive_response(answer(protocol, DEFLATE))
        return protocol

    def test_what_follows_refers_only_to_what_was_sent(self, takeover: bool) -> None:
        """The server, which has never had the frames of the interrupted call, understands all others."""
        said = [content_of(message) for message in OUTGOING]
        for number in range(1, 10_000, 1 if FULL else 5):
            protocol = self.opened(takeover)
            deflate, going_on, frames = protocol.deflate, False, wire(protocol, OUTGOING)
            for place in (number, number // 2 + 1):
                going_on |= interrupted(lambda deflate=deflate: deflate.frames_of(OUTGOING[::-1]), place)  # type: ignore[misc]
                frames += wire(protocol, OUTGOING)
            deflate.frames_of(OUTGOING[::-1])  # and nothing of it is sent
            frames += wire(protocol, OUTGOING)
            going_on |= interrupted(deflate.keep_context, number)
            frames += wire(protocol, OUTGOING)
            assert understood(frames, takeover=takeover) == said * 5
            if not going_on:
                return

    def test_it_may_take_turns_with_the_old_way(self, takeover: bool) -> None:
        both, old = self.opened(takeover), self.opened(takeover)
        for turn in range(3):
            for message in OUTGOING[turn:]:
                assert wire(both, [message]) == old_way(old, message)
                assert old_way(both, message) == old_way(old, message)


def messages_of(drawn: list[tuple[Any, list[tuple[int, int]]]]) -> list[Any]:
    found = []
    for kind, parts in drawn:
        fragments = [fragment_of(kind, *part) for part in parts]
        found.append(fragments[0] if len(fragments) == 1 else fragments)
    return found


@given(ALL_SETTINGS, SERVERS, st.lists(MESSAGES, max_size=6), st.integers(1, 6))
@example(Deflate(), ServerPerMessageDeflateFactory(), [(bytes, [(5_000_000, 40_000)]), (str, [(0, 1)])], 2)
@examples(25)
def test_frames_are_those_of_the_old_way_and_a_server_understands_them(
    ours: Deflate, factory: ServerPerMessageDeflateFactory, drawn: list[Any], at_once: int
) -> None:
    request = Request("localhost", "/", compression=ours, max_size=None)
    client, server = Protocol(request), EchoProtocol(factory)
    assert client.receive_response(server.accept(client.handshake()))
    old = Protocol(request)
    bits = client.deflate.client_max_window_bits
    parameters = f"; client_max_window_bits={bits}" + (
        "; client_no_context_takeover" if client.deflate.client_no_context_takeover else ""
    )
    old.deflate.client_max_window_bits = bits
    wishes = f"; server_max_window_bits={ours.server_max_window_bits}" if ours.server_max_window_bits else ""
    wishes += NO_TAKEOVER if ours.server_no_context_takeover else ""
    assert old.receive_response(answer(old, DEFLATE + parameters + wishes))
    data = messages_of(drawn)
    messages = [message_of(item) for item in data]
    for start in range(0, len(messages), at_once):
        some = messages[start : start + at_once]
        buffers = client.deflate.frames_of(some)
        client.deflate.keep_context()
        assert frames_in(b"".join(buffers)) == [part for message in some for part in old_way(old, message)]
        received = client.receive(server.echo(b"".join(buffers)))
        assert received.failure is None
        joined = [type(item[0])().join(item) if isinstance(item, list) else item for item in data]
        assert received.messages == joined[start : start + at_once]


def test_nothing_is_kept_between_messages_without_context_takeover() -> None:
    deflate = accepted("; client_no_context_takeover" + NO_TAKEOVER)
    deflate.frames_of(OUTGOING)
    assert deflate._compressor is None
    lane = FastLane(None, b"", deflate)
    data = frame(TEXT, Sender()(b"one"), first=FIN | RSV1) * 2
    messages: list[str | bytes] = []
    assert lane.take(data, 0, messages) == len(data)
    assert messages == ["one", "one"]
    assert (deflate._stream, deflate.inflated) == (None, [])


@pytest.mark.parametrize("cut", [150_000, 250_000])
def test_a_frame_of_thousands_of_streams_is_inflated_in_steps(cut: int) -> None:
    """Each of them takes microseconds: the loop has others to see to."""
    protocol = Protocol(REQUEST)
    assert protocol.receive_response(answer(protocol, DEFLATE))
    data = frame(BINARY, b"\x03\x00" * 100_000, first=FIN | RSV1) + frame(TEXT, b"after")
    steps, messages = 0, list[str | bytes]()
    for part in (data[:cut], data[cut:]):
        messages += protocol.receive_some(part).messages
        while protocol.unfinished:
            steps += 1
            messages += protocol.receive_some(b"").messages
    assert messages == [b"", "after"]
    assert steps >= 10
