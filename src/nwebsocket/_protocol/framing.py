"""Messages to masked frames (RFC 6455 section 5), uncompressed: the way out that needs no wsproto's state, so that any
thread may take it. Pure. What is masked how was measured:

    payload bytes   way                                      32 B      4 KiB     1 MiB
    under 512       the frame as one integer, one XOR        0.5 us
    under 4,096     wsproto's masker, by translation tables  1.8 us      8 us  1,790 us
    others          NumPy, if it is installed                2.4 us      2 us     50 us
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from wsproto.frame_protocol import XorMaskerSimple

from .found_numpy import load_numpy
from .payload import Buffer, Message

_CONTINUATION = 0x0
_CLOSE = 0x8
_PONG = 0xA
_FIN = 0x80
_RSV1 = 0x40
_MASKED = 0x80
_SMALL = 512
_LARGE = 4096
_PIECE = 64 * 1024  # bytes, a multiple of the key's
# _ONES[n] times a 32-bit key is the key n times in a row.
_ONES = tuple(((1 << 32 * n) - 1) // 0xFFFFFFFF for n in range((_SMALL + 8) // 4))


def frame_of(message: Message) -> Buffer:
    """The same as frames_of() for one message."""
    opcode, payload, size = message
    if isinstance(payload, tuple):
        return b"".join(_fragments(opcode, payload))
    return (_small_frame if size < _SMALL else _large_frame)(_FIN | opcode, payload, _new_key())


def close_frame(payload: bytes) -> bytes:
    """A Close frame with a payload of at most 125 bytes."""
    return _small_frame(_FIN | _CLOSE, payload, _new_key())


def compressed_frame(opcode: int, payload: bytes) -> Buffer:
    """The frame of a message that is compressed: RSV1 is set (RFC 7692 section 6)."""
    return (_small_frame if len(payload) < _SMALL else _large_frame)(_FIN | _RSV1 | opcode, payload, _new_key())


def compressed_fragment(opcode: int, payload: bytes, *, first: bool, last: bool) -> Buffer:
    """The same of one in several frames: RSV1 is set on the first one."""
    head = (_RSV1 | opcode) if first else _CONTINUATION
    return _frame(_FIN | head if last else head, payload, _new_key())


def pong_frame(payload: bytes) -> bytes:
    """A Pong frame with a payload of at most 125 bytes."""
    return _small_frame(_FIN | _PONG, payload, _new_key())


def frames_of(messages: Sequence[Message]) -> Buffer:
    """The frames of messages, in their order, with a fresh unpredictable key each (RFC 6455 section 5.3)."""
    frames: list[Buffer] = []
    from_bytes, ones = int.from_bytes, _ONES
    keys = memoryview(os.urandom(4 * len(messages))).cast("I")
    for (opcode, payload, size), key in zip(messages, keys, strict=True):
        if isinstance(payload, tuple):
            frames += _fragments(opcode, payload)
        elif size < 126:
            # The same as _frame(), without the calls: this line decides how fast a burst goes out.
            words = (size + 7) >> 2
            head = _FIN ^ opcode ^ (_MASKED ^ size) << 8
            frame = head ^ key * ones[words] << 16 ^ from_bytes(payload, "little") << 48
            frames.append(frame.to_bytes(2 + 4 * words, "little")[: 6 + size])
        else:
            frames.append(_frame(_FIN | opcode, payload, key))
    return frames[0] if len(frames) == 1 else b"".join(frames)


def _fragments(opcode: int, payloads: Sequence[bytes]) -> list[Buffer]:
    frames: list[Buffer] = []
    for index, payload in enumerate(payloads):
        first = (_FIN if index == len(payloads) - 1 else 0) | (_CONTINUATION if index else opcode)
        frames.append(_frame(first, payload, _new_key()))
    return frames


# Keys that no frame has had yet: one system call draws many.
_keys: list[int] = []


def _new_key() -> int:
    """A fresh unpredictable key (RFC 6455 section 5.3). From any thread."""
    try:
        return _keys.pop()
    except IndexError:
        _keys.extend(memoryview(os.urandom(4 * 256)).cast("I"))
        return _new_key()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keys.clear)


def _frame(first: int, payload: bytes, key: int) -> Buffer:
    if len(payload) < _SMALL:
        return _small_frame(first, payload, key)
    return _large_frame(first, payload, key)


def _small_frame(first: int, payload: bytes, key: int) -> bytes:
    """Header, key and masked payload as one little-endian integer: the key, repeated, covers its own place, too."""
    size = len(payload)
    words = (size + 7) >> 2
    body = key * _ONES[words] ^ int.from_bytes(payload, "little") << 32
    if size < 126:
        frame = first ^ (_MASKED ^ size) << 8 ^ body << 16
        return frame.to_bytes(2 + 4 * words, "little")[: 6 + size]
    frame = first ^ (_MASKED ^ 126) << 8 ^ size >> 8 << 16 ^ (size & 0xFF) << 24 ^ body << 32
    return frame.to_bytes(4 + 4 * words, "little")[: 8 + size]


def _large_frame(first: int, payload: bytes, key: int) -> Buffer:
    size, mask = len(payload), key.to_bytes(4, "little")
    if size < 1 << 16:
        head = bytes((first, _MASKED | 126)) + size.to_bytes(2, "big") + mask
    else:
        head = bytes((first, _MASKED | 127)) + size.to_bytes(8, "big") + mask
    numpy = load_numpy() if size >= _LARGE else None
    if numpy is None:
        return _masked_by_tables(head, payload, mask)
    return _masked_by_numpy(numpy, head, payload, mask)


def _masked_by_tables(head: bytes, payload: bytes, mask: bytes) -> memoryview:
    """The frame in one new buffer. wsproto's masker makes several copies of what it gets: those of small pieces need no
    memory that has to be mapped anew, which takes a quarter of the time for a large payload.
    """
    frame = memoryview(bytearray(len(head) + len(payload)))
    frame[: len(head)] = head
    for start in range(0, len(payload), _PIECE):
        piece = XorMaskerSimple(mask).process(payload[start : start + _PIECE])  # type: ignore[arg-type]
        frame[len(head) + start :][: len(piece)] = piece
    return frame


def _masked_by_numpy(numpy: Any, head: bytes, payload: bytes, mask: bytes) -> memoryview:
    """The frame in one new buffer: the payload is masked right into its place there."""
    start, whole = 16, len(payload) & ~3
    frame = numpy.empty(start + len(payload), numpy.uint8)
    words, key = numpy.frombuffer(payload, numpy.uint32, whole // 4), numpy.frombuffer(mask, numpy.uint32)
    numpy.bitwise_xor(words, key, out=frame[start : start + whole].view(numpy.uint32))
    view = memoryview(frame)[start - len(head) :]
    view[: len(head)] = head
    for index in range(whole, len(payload)):
        view[len(head) + index] = payload[index] ^ mask[index & 3]
    return view
