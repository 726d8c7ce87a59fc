"""The fast lane past wsproto for what nearly all traffic is: whole messages, each in one frame. Pure.

    bytes ──> take() ──> str, bytes                  of data frames that are final and sound, plain or compressed
                └──────> leave() ──> bytes ──> wsproto      control frames, fragments, faults

1. wsproto is the authority. The lane takes only frames about which the two cannot differ, and never reports a fault:
   a frame that has one goes to wsproto, which finds the same fault in the same receive().
2. wsproto is given whole frames, or parts of one that the lane has noted as under way, so that both always know where
   a frame begins. A header that is cut off waits here until there is more of it.
3. Inside a fragmented message all frames are wsproto's: what a frame means there depends on those before it.
4. What a compressed frame holds can be inflated once only. So it is kept, until the message has been taken over:
   wsproto gets a faulty one back together with what has been inflated (`deflate.py`). One that comes in pieces is
   inflated piece by piece, for a fault must not wait for the end.

A large message is copied once after the read that brought it, into one buffer; text is decoded on the way there.
"""

from __future__ import annotations

import codecs
import io
from typing import Protocol

from .._base.shortcuts import taken

ENABLED = taken("fast_lane")
"""Whether wsproto is passed by."""

# First bytes of a frame: FIN, no reserved bit, the opcode (RFC 6455 section 5.2).
_TEXT = 0x81
_BINARY = 0x82
_PLAIN = (_TEXT, _BINARY)
_DEFLATED_TEXT = 0xC1  # with RSV1 (RFC 7692 section 6)
_DEFLATED = (_DEFLATED_TEXT, 0xC2)
_STEP = 16 * 1024
"""Bytes of a compressed frame that are inflated at once: two may be a whole DEFLATE stream, which takes 2 us."""

MUCH = 2**20  # bytes inflated in one go
_MAX_LEFT = 256  # frames that leave() hands out at once: a piece may hold 100,000
_CLOSE = 0x88

_FIN = 0x80
_OPCODE = 0x0F
_DATA_OPCODES = range(3)  # continuation, text, binary
_MASKED = 0x80
_LENGTH = 0x7F
_MAX_SHORT = 125
_MAX_MEDIUM = 2**16 - 1
_MAX_LENGTH = 2**63 - 1

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Inflating(Protocol):
    """What the lane asks of the connection's compression."""

    inflated: list[tuple[int, bytes]]

    def inflate_message(self, number: int, payload: bytes) -> bytes | None: ...

    def let_go(self, number: int) -> None: ...

    def forget(self, count: int) -> None: ...

    def begin_message(self) -> None: ...

    def inflate_part(self, data: bytes, *, last: bool) -> bytes | None: ...


class FastLane:
    """What stands in front of wsproto on one open connection.

    ``max_size``  the largest payload to take, in bytes, and the largest message; None for any
    ``held``      bytes that belong in front of the next ones: at first what came with the handshake, later the
                  beginning of a header
    ``deflate``   inflates compressed messages; None if the connection is without
    ``room``      how many bytes may still be inflated: take() and take_whole(), which are told, stop when none are left
    ``deflated``  how many compressed messages take_whole() has found
    """

    __slots__ = (
        "_deflate",
        "_first",
        "_fragmented",
        "_max_short",
        "_max_size",
        "_missing",
        "_takes",
        "_unfinished",
        "_withheld",
        "deflated",
        "held",
        "room",
    )

    def __init__(self, max_size: int | None, held: bytes, deflate: Inflating | None = None) -> None:
        self.held = held
        self.deflated = 0
        self.room = MUCH
        self._deflate = deflate
        self._first = 0
        self._takes = _PLAIN if deflate is None else _PLAIN + _DEFLATED
        self._max_size = _MAX_LENGTH if max_size is None else max_size
        self._max_short = min(_MAX_SHORT, self._max_size)
        self._unfinished: _Unfinished | None = None  # the lane's frame under way
        self._withheld = b""  # what has come of it, once it has turned out to be wsproto's
        self._missing = 0  # bytes to come of wsproto's frame under way
        self._fragmented = False  # is a fragmented message under way?

    def with_held(self, data: bytes) -> bytes:
        """Return what was held back, and ``data`` behind it; nothing is held any more."""
        data, self.held = self.held + data, b""
        return data

    def take(self, data: bytes, position: int, messages: list[str | bytes], room: int = MUCH) -> int:
        """Append to ``messages`` those that stand in ``data`` from ``position`` on, which is 0 or where `leave` said to
        go on. Return where something for wsproto begins, or the length of ``data``.
        """
        self.room = room
        if self._unfinished is not None:
            position = self._continue(self._unfinished, data, messages)
            if position < len(data) and self._unfinished is not None:
                return position
        if self._missing or self._fragmented:
            return position
        end = len(data)
        position = self.take_whole(data, position, end - 1, messages, 0, self.room)
        if self.deflated and self._deflate is not None:
            self._deflate.forget(self.deflated)
        return position if position == end or self.room <= 0 else self._take_part(data, position)

    def take_whole(
        self, data: bytes, position: int, stop: int, messages: list[str | bytes], first: int = 0, room: int = MUCH
    ) -> int:
        """Append to ``messages`` those of the lane's frames that begin before ``stop``, at most the last byte of
        ``data``, and are all there; return where the first thing begins that is not one.

        If the lane is `between_frames`, any thread may do it that holds `wire`. ``first`` is how many compressed ones
        were taken over since `deflate` was last told to forget() them; the same call gives the same messages again.
        """
        deflate = self._deflate
        if deflate is not None:
            self.room = room
            self._first = first
            self.deflated = 0
            if first:
                deflate.let_go(first)
        end, max_short, append = len(data), self._max_short, messages.append
        try:
            while position < stop:
                size = data[position + 1]
                after = position + 2 + size
                if size > max_short or after > end:
                    bounds = self.bounds(data, position)
                    if bounds is None or bounds[1] > end:
                        return position
                    start, after = bounds
                else:
                    start = position + 2
                first = data[position]
                if first == _TEXT:
                    append(data[start:after].decode())
                elif first == _BINARY:
                    append(data[start:after])
                elif not self._inflate(first, data[start:after], messages):
                    return position
                position = after
        except UnicodeDecodeError:
            pass  # wsproto's
        return position

    def _inflate(self, first: int, payload: bytes, messages: list[str | bytes]) -> bool:
        """Take the message of a frame that is compressed; False if it is wsproto's, or there is no room left."""
        deflate = self._deflate
        if first not in _DEFLATED or deflate is None or self.room <= 0:
            return False
        content = deflate.inflate_message(self._first + self.deflated, payload)
        if content is None or len(content) > self._max_size:
            return False
        messages.append(content.decode() if first == _DEFLATED_TEXT else content)
        self.deflated += 1
        self.room -= len(content)
        return True

    @property
    def between_frames(self) -> bool:
        """Whether the next byte begins a frame that may be the lane's."""
        return not (self.held or self._unfinished or self._missing or self._fragmented or self._withheld)

    def bounds(self, data: bytes, position: int) -> tuple[int, int] | None:
        """Where the payload of the frame at ``position`` begins and ends, if it is the lane's and its header is all
        there: it has no mask (section 5.1), the shortest header for its size (5.2) and is not too large.
        """
        bounds = _bounds(data, position) if data[position] in self._takes else None
        if bounds is None:
            return None
        start, after = bounds
        size = after - start
        header = 2 if size <= _MAX_SHORT else 4 if size <= _MAX_MEDIUM else 10
        if data[position + 1] & _MASKED or start - position != header or size > self._max_size:
            return None
        return bounds

    def close_payload(self, data: bytes, position: int) -> bytes | None:
        """The payload of the Close frame at ``position``, where `take` has stopped; None if there is another frame, or
        not all of this one.
        """
        if self._missing or self._fragmented or data[position] != _CLOSE or position + 1 == len(data):
            return None
        start, end = position + 2, position + 2 + data[position + 1]
        return data[start:end] if end <= min(len(data), start + _MAX_SHORT) else None

    def leave(self, data: bytes, position: int) -> tuple[bytes, int]:
        """Return what wsproto must have, beginning at ``position``, where `take` has stopped; and where to go on."""
        if self._withheld:
            withheld, self._withheld = self._withheld, b""
            return withheld, position
        end, left = position + self._missing, _MAX_LEFT
        while left and end < len(data) and (self._fragmented or data[end] not in self._takes):
            left -= 1
            bounds = _bounds(data, end)
            if bounds is None:
                return self._leave_before_header(data, position, end)
            if data[end] & _OPCODE in _DATA_OPCODES:
                self._fragmented = not data[end] & _FIN
            end = bounds[1]
        self._missing = max(0, end - len(data))
        return data[position:end], min(end, len(data))

    def _leave_before_header(self, data: bytes, position: int, end: int) -> tuple[bytes, int]:
        """The same for what ends with the beginning of a header, at ``end``."""
        self._missing = 0
        if len(data) - end > 1 and data[end] & _OPCODE not in _DATA_OPCODES:
            return data[position:], len(data)  # only data frames may have a long header: wsproto refuses it at once
        return data[position:end], self._hold(data, end)

    def _hold(self, data: bytes, position: int) -> int:
        """Keep the beginning of a header until there is more of it."""
        self.held = data[position:]
        return len(data)

    def _take_part(self, data: bytes, position: int) -> int:
        """Begin with a frame that is not all there; return ``position`` if what begins there is wsproto's."""
        known = _bounds(data, position)
        if known is None and (data[position] in self._takes or position + 1 == len(data)):
            return self._hold(data, position)
        if known is None or data[position] not in self._takes:
            return position
        bounds = self.bounds(data, position)
        if bounds is not None and bounds[1] > len(data):
            start, after = bounds
            frame = self._begun(data[position:start], after - start)
            chunk = data[start:] if frame is None else self._next_chunk(frame, data, start)
            if frame is not None and self._add(frame, chunk):
                self._unfinished = frame
                return start + len(chunk)
        self._missing = known[1] - position
        return position

    def _begun(self, header: bytes, size: int) -> _Unfinished | None:
        """A frame to which nothing was added yet; None if it was inflated when it was all there: an interrupted
        take_whole() has done so, and wsproto finds the content.
        """
        if header[0] in _PLAIN:
            return _Unfinished(header, size)
        if self._deflate is None or self._deflate.inflated:
            return None
        self._deflate.begin_message()
        return _UnfinishedDeflated(header, size, self._deflate)

    def _next_chunk(self, frame: _Unfinished, data: bytes, start: int) -> bytes:
        """What is added to a frame at once; if that is not all there is, there is no room for more now."""
        end = start + frame.missing
        if frame.first in _DEFLATED and min(end, len(data)) - start > _STEP:
            self.room = 0
            end = start + _STEP
        return data[start:end]

    def _add(self, frame: _Unfinished, chunk: bytes) -> bool:
        """Add to a frame under way; False if wsproto must have it after all."""
        before = frame.size
        taken = frame.add(chunk)
        if frame.first in _DEFLATED:
            self.room -= frame.size - before
        return taken

    def _continue(self, frame: _Unfinished, data: bytes, messages: list[str | bytes]) -> int:
        """Take more of the frame under way, and return where that ends; 0 if wsproto must have it after all."""
        chunk = self._next_chunk(frame, data, 0)
        if not self._add(frame, chunk):
            self._withheld, self._missing, self._unfinished = frame.raw(), frame.missing, None
            return 0
        if not frame.missing:
            self._unfinished = None
            messages.append(frame.message())
        return len(chunk)


class _Unfinished:
    """A frame of the lane's of which the end has not come.

    ``missing``  bytes of the payload to come
    ``first``    its first byte
    ``size``     of the message so far
    """

    __slots__ = ("_content", "_decoder", "_header", "first", "missing", "size")

    def __init__(self, header: bytes, missing: int) -> None:
        self.missing = missing
        self.first = header[0]
        self.size = 0
        self._header = header
        self._decoder = _Utf8Decoder()
        is_text = header[0] in (_TEXT, _DEFLATED_TEXT)
        self._content: io.StringIO | io.BytesIO = io.StringIO() if is_text else io.BytesIO()

    def add(self, chunk: bytes) -> bool:
        """Take in more of the payload; False if it is wsproto's, and nothing of it was taken in."""
        missing = self.missing - len(chunk)
        if not self._write(chunk, last=missing == 0):
            return False
        self.missing = missing
        return True

    def _write(self, content: bytes, *, last: bool) -> bool:
        if isinstance(self._content, io.BytesIO):
            self._content.write(content)
        else:
            try:
                self._content.write(self._decoder.decode(content, last))
            except UnicodeDecodeError:
                return False
        self.size += len(content)
        return True

    def message(self) -> str | bytes:
        """The message, once nothing is missing."""
        return self._content.getvalue()

    def raw(self) -> bytes:
        """What has been taken in, as it was on the wire."""
        content = self._content.getvalue()
        if isinstance(content, str):
            content = content.encode() + self._decoder.getstate()[0]
        return self._header + content


class _UnfinishedDeflated(_Unfinished):
    """The same of a compressed frame: it is inflated as it comes."""

    __slots__ = ("_deflate", "_raw")

    def __init__(self, header: bytes, missing: int, deflate: Inflating) -> None:
        super().__init__(header, missing)
        self._deflate = deflate
        self._raw = io.BytesIO()

    def add(self, chunk: bytes) -> bool:
        missing = self.missing - len(chunk)
        content = self._deflate.inflate_part(chunk, last=missing == 0)
        if content is None:
            return False
        begun = self._decoder.getstate()[0]
        if not self._write(content, last=missing == 0):
            self._deflate.inflated.append((0, begun + content))  # enough for wsproto to find the fault
            return False
        self._raw.write(chunk)
        self.missing = missing
        return True

    def raw(self) -> bytes:
        return self._header + self._raw.getvalue()


def _bounds(data: bytes, position: int) -> tuple[int, int] | None:
    """Where the payload of the frame at ``position`` begins and ends (RFC 6455 section 5.2), if all of its header is
    there; a mask, which is wrong here, is not counted.
    """
    start = position + 2
    if start > len(data):
        return None
    size = data[position + 1] & _LENGTH
    if size > _MAX_SHORT:
        start += 2 if size == 126 else 8
        if start > len(data):
            return None
        size = int.from_bytes(data[position + 2 : start], "big")
    return start, start + size
