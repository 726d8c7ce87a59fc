"""The fast lane past wsproto for what nearly all traffic is: whole messages, each in one plain frame. Pure.

    bytes ──> take() ──> str, bytes                  of data frames that are final, uncompressed, and sound
                └──────> leave() ──> bytes ──> wsproto      control frames, fragments, compressed frames, faults

1. wsproto is the authority. The lane takes only frames about which the two cannot differ, and never reports a fault:
   a frame that has one goes to wsproto, which finds the same fault in the same receive().
2. wsproto is given whole frames, or parts of one that the lane has noted as under way, so that both always know where
   a frame begins. A header that is cut off waits here until there is more of it.
3. Inside a fragmented message all frames are wsproto's: what a frame means there depends on those before it.

A large message is copied once after the read that brought it, into one buffer; text is decoded on the way there.
"""

from __future__ import annotations

import codecs
import io
import os

ENABLED = os.environ.get("NWEBSOCKET_FAST_LANE") != "0"
"""Whether wsproto is passed by. To turn that off for a test run, set the environment variable to 0."""

# First bytes of a frame: FIN, no reserved bit, the opcode (RFC 6455 section 5.2).
_TEXT = 0x81
_BINARY = 0x82
_PLAIN = (_TEXT, _BINARY)
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


class FastLane:
    """What stands in front of wsproto on one open connection.

    ``max_size``  the largest payload to take, in bytes; None for any
    ``held``      bytes that belong in front of the next ones: at first what came with the handshake, later the
                  beginning of a header
    """

    __slots__ = ("_fragmented", "_max_short", "_max_size", "_missing", "_unfinished", "_withheld", "held")

    def __init__(self, max_size: int | None, held: bytes) -> None:
        self.held = held
        self._max_size = _MAX_LENGTH if max_size is None else max_size
        self._max_short = min(_MAX_SHORT, self._max_size)
        self._unfinished: _Unfinished | None = None  # the lane's frame under way
        self._withheld = b""  # what has come of it, once it has turned out to be wsproto's
        self._missing = 0  # bytes to come of wsproto's frame under way
        self._fragmented = False  # is a fragmented message under way?

    def take(self, data: bytes, position: int, messages: list[str | bytes]) -> int:
        """Append to ``messages`` those that stand in ``data`` from ``position`` on, which is 0 or where `leave` said to
        go on. Return where something for wsproto begins, or the length of ``data``.
        """
        if self._unfinished is not None:
            position = self._continue(self._unfinished, data, messages)
        if self._missing or self._fragmented:
            return position
        end = len(data)
        position = self.take_whole(data, position, end - 1, messages)
        return end if position == end else self._take_part(data, position)

    def take_whole(self, data: bytes, position: int, stop: int, messages: list[str | bytes]) -> int:
        """Append to ``messages`` those of the lane's frames that begin before ``stop``, at most the last byte of
        ``data``, and are all there; return where the first thing begins that is not one.

        This changes nothing of the lane: if it is `between_frames`, any thread may do it.
        """
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
                    append(data[start:after].decode() if data[position] == _TEXT else data[start:after])
                elif data[position] == _TEXT:
                    append(data[position + 2 : after].decode())
                elif data[position] == _BINARY:
                    append(data[position + 2 : after])
                else:
                    return position
                position = after
        except UnicodeDecodeError:
            pass  # wsproto's
        return position

    @property
    def between_frames(self) -> bool:
        """Whether the next byte begins a frame that may be the lane's."""
        return not (self.held or self._unfinished or self._missing or self._fragmented or self._withheld)

    def bounds(self, data: bytes, position: int) -> tuple[int, int] | None:
        """Where the payload of the frame at ``position`` begins and ends, if it is the lane's and its header is all
        there: it has no mask (section 5.1), the shortest header for its size (5.2) and is not too large.
        """
        bounds = _bounds(data, position) if data[position] in _PLAIN else None
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
        while left and end < len(data) and (self._fragmented or data[end] not in _PLAIN):
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
        if known is None and (data[position] in _PLAIN or position + 1 == len(data)):
            return self._hold(data, position)
        if known is None or data[position] not in _PLAIN:
            return position
        bounds = self.bounds(data, position)
        if bounds is not None and bounds[1] > len(data):
            start, after = bounds
            try:
                self._unfinished = _Unfinished(data[position:start], data[start:], after - len(data))
            except UnicodeDecodeError:
                pass
            else:
                return len(data)
        self._missing = known[1] - position
        return position

    def _continue(self, frame: _Unfinished, data: bytes, messages: list[str | bytes]) -> int:
        """Take more of the frame under way, and return where that ends; 0 if wsproto must have it after all."""
        chunk = data[: frame.missing]
        try:
            frame.add(chunk)
        except UnicodeDecodeError:
            self._withheld, self._missing, self._unfinished = frame.raw(), frame.missing, None
            return 0
        if not frame.missing:
            messages.append(frame.message())
            self._unfinished = None
        return len(chunk)


class _Unfinished:
    """A frame of the lane's of which the end has not come.

    ``missing``  bytes of the payload to come
    """

    __slots__ = ("_content", "_decoder", "_header", "missing")

    def __init__(self, header: bytes, chunk: bytes, missing: int) -> None:
        self.missing = missing + len(chunk)
        self._header = header
        self._decoder = _Utf8Decoder()
        self._content: io.StringIO | io.BytesIO = io.StringIO() if header[0] == _TEXT else io.BytesIO()
        self.add(chunk)

    def add(self, chunk: bytes) -> None:
        """Take in more of the payload. Raises UnicodeDecodeError, and then has taken in nothing of it."""
        missing = self.missing - len(chunk)
        if isinstance(self._content, io.BytesIO):
            self._content.write(chunk)
        else:
            self._content.write(self._decoder.decode(chunk, missing == 0))
        self.missing = missing

    def message(self) -> str | bytes:
        """The message, once nothing is missing."""
        return self._content.getvalue()

    def raw(self) -> bytes:
        """What has been taken in, as it was on the wire."""
        content = self._content.getvalue()
        if isinstance(content, str):
            content = content.encode() + self._decoder.getstate()[0]
        return self._header + content


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
