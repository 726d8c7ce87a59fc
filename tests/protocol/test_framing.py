"""Messages to frames: what an independent parser reads back, and the keys that mask it (RFC 6455 section 5)."""

from __future__ import annotations

import itertools
import os
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import BINARY, CONTINUATION, TEXT

from nwebsocket._protocol import found_numpy, framing
from nwebsocket._protocol.framing import frame_of, frames_of
from nwebsocket._protocol.payload import Buffer, Message

Way = Callable[[Sequence[Message]], Buffer]

SIZES = [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 510, 511, 512, 513, 4094, 4095, 4096, 4097, 4098, 4099, 65535, 65536]


class Masked(NamedTuple):
    """A frame as it was parsed: its payload is unmasked with its key."""

    fin: bool
    opcode: int
    payload: bytes
    key: bytes


def parse(data: bytes) -> Iterator[Masked]:
    """Read frames by the letter of RFC 6455 section 5.2; anything a client may not send is an AssertionError."""
    while data:
        assert data[0] & 0x70 == 0, "a reserved bit is set"
        assert data[1] & 0x80, "the frame is not masked"
        length, start = data[1] & 0x7F, 2
        if length == 126:
            (length,), start = struct.unpack_from("!H", data, 2), 4
            assert length > 125, "the length is not minimal"
        elif length == 127:
            (length,), start = struct.unpack_from("!Q", data, 2), 10
            assert length > 0xFFFF, "the length is not minimal"
        key, end = data[start : start + 4], start + 4 + length
        assert len(data) >= end, "the frame is cut"
        yield Masked(bool(data[0] & 0x80), data[0] & 0xF, unmasked(data[start + 4 : end], key), key)
        data = data[end:]


def unmasked(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")


def message(opcode: int, *fragments: bytes) -> Message:
    """A message whose payload is in fragments if there are several."""
    return opcode, fragments[0] if len(fragments) == 1 else fragments, sum(map(len, fragments))


def expected(sent: Sequence[Message]) -> list[tuple[bool, int, bytes]]:
    """FIN, opcode and payload of the frames of the messages."""
    frames = []
    for opcode, payload, _ in sent:
        fragments = payload if isinstance(payload, tuple) else (payload,)
        for index, fragment in enumerate(fragments):
            frames.append((index == len(fragments) - 1, CONTINUATION if index else opcode, fragment))
    return frames


def check(data: Buffer, sent: Sequence[Message]) -> list[bytes]:
    """Check that the frames are those of the messages; return their keys."""
    assert memoryview(data).nbytes == len(data)  # the transport counts by len()
    frames = list(parse(bytes(data)))
    assert [frame[:3] for frame in frames] == expected(sent)
    return [frame.key for frame in frames]


@pytest.fixture(params=["numpy", "no numpy"], scope="class")  # not "function": hypothesis minds
def masker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Large payloads are masked by NumPy, and without it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no numpy":
            patch.setattr(framing, "load_numpy", lambda: None)
        yield


sizes = st.one_of(st.sampled_from(SIZES), st.integers(0, 700))
payloads = st.builds(lambda size, seed: random.Random(seed).randbytes(size), sizes, st.integers(0, 255))
fragments = st.lists(payloads, min_size=1, max_size=4)
messages = st.builds(lambda opcode, parts: message(opcode, *parts), st.sampled_from([TEXT, BINARY]), fragments)
generously = settings(
    max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.usefixtures("masker")
@generously
@given(st.lists(messages, min_size=1, max_size=6))
def test_what_was_framed_together_is_read_back(sent: list[Message]) -> None:
    keys = check(frames_of(sent), sent)
    assert all(key != following for key, following in itertools.pairwise(keys))


@pytest.mark.usefixtures("masker")
@generously
@given(messages)
def test_what_was_framed_alone_is_read_back(sent: Message) -> None:
    keys = check(frame_of(sent), [sent])
    assert all(key != following for key, following in itertools.pairwise(keys))


@pytest.mark.usefixtures("masker")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [*SIZES, 65537, 65538, 65539, 2**20, 2**20 + 1, 2**20 + 2, 2**20 + 3])
def test_every_length_and_every_remainder(size: int, opcode: int) -> None:
    sent = message(opcode, random.Random(size).randbytes(size))
    check(frame_of(sent), [sent])
    check(frames_of([sent]), [sent])
    check(frames_of([sent, message(TEXT, b"next")]), [sent, message(TEXT, b"next")])


def test_one_fragment_is_a_whole_message() -> None:
    assert [frame[:3] for frame in parse(bytes(frame_of((TEXT, (b"alone",), 5))))] == [(True, TEXT, b"alone")]


def framed_one_by_one(sent: Sequence[Message]) -> bytes:
    return b"".join(map(frame_of, sent))


@pytest.mark.parametrize("way", [frames_of, framed_one_by_one])
@pytest.mark.parametrize("sent", [message(TEXT, b""), message(BINARY, b"x" * 200), message(TEXT, b"", b"")])
def test_keys_differ_in_all_their_bytes(way: Way, sent: Message) -> None:
    keys = check(way([sent] * 1000), [sent] * 1000)
    assert len(set(keys)) > 0.99 * len(keys)
    assert len({key[:2] for key in keys}) > 950
    assert len({key[2:] for key in keys}) > 950
    assert all(len({key[place] for key in keys}) > 200 for place in range(4))


@pytest.mark.parametrize("way", [frames_of, framed_one_by_one])
@pytest.mark.parametrize("size", [0, 200, 600, 5000])
def test_keys_are_the_systems_random_bytes(monkeypatch: pytest.MonkeyPatch, way: Way, size: int) -> None:
    urandom, given_bytes = os.urandom, bytearray()

    def noting(count: int) -> bytes:
        given_bytes.extend(random_bytes := urandom(count))
        return random_bytes

    monkeypatch.setattr(os, "urandom", noting)
    monkeypatch.setattr(framing, "_keys", [])
    sent = [message(BINARY, bytes(size))] * 300
    keys = check(way(sent), sent)
    drawn = [bytes(given_bytes[start : start + 4]) for start in range(0, len(given_bytes), 4)]
    assert not Counter(keys) - Counter(drawn)


def test_without_numpy_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.setattr(found_numpy, "_imported", [])
    assert found_numpy.load_numpy() is None
    sent = [message(BINARY, random.Random(size).randbytes(size)) for size in (4096, 4097, 100_003)]
    check(frames_of(sent), sent)
