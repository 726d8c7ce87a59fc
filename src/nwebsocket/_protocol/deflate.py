"""permessage-deflate (RFC 7692) for wsproto, with the settings of `compression.py`, and the receiving side done anew.

wsproto's own `PerMessageDeflate` compresses well, but what it does with the server's part is not fit for use:
a control frame between the fragments of a compressed message breaks that message, decompression has no limit, a
DEFLATE stream that the server ended is not followed by a new one, and the server's parameters are hardly checked.

Whole messages pass wsproto by: inflate_message() and frames_of() are for any thread that holds the connection's `wire`.
A main thread may be interrupted in them at any call. A compressor whose frames may not be sent is let go of. What zlib
inflates, it gives once: so that is stored by the very call that returns it, and `inflated` holds what of it has not
been taken over yet. Who is asked for the same messages again goes on from there; who has taken them over clears it, in
the same step.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from .compression import Deflate
from .framing import compressed_fragment, compressed_frame, frame_of
from .http import show
from .payload import Buffer, Message

_RSV1 = RsvBits(True, False, False)
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_WINDOWS = ("server_max_window_bits", "client_max_window_bits")
_LARGEST = 15  # what a window parameter means by its absence
_WINDOW_BITS = re.compile(r"[89]|1[0-5]")
_MESSAGE_TAIL = b"\x00\x00\xff\xff"  # what the sender cut off the end of each message (RFC 7692 section 7.2.1)
_UP_TO_TAIL = -len(_MESSAGE_TAIL)
_PIECE = 4096  # bytes inflated at once, for what follows the end of a stream is copied each time


class DeflateExtension(PerMessageDeflate):
    """permessage-deflate of one client connection.

    ``settings``  what to offer, and how to compress
    ``max_size``  the largest message to inflate, in bytes; None for any
    ``fault``     after a frame was refused: what was wrong with it, for people
    """

    def __init__(self, settings: Deflate, max_size: int | None) -> None:
        super().__init__()
        self.fault = ""
        self._settings = settings
        self._max_size = max_size
        self._limit = 0 if max_size is None else max_size + 1  # bytes inflated of one message; 0 is any number
        self._window_bits = 0  # of what the server compresses with; 0 until it has accepted the offer
        self._used: zlib._Compress | None = None  # by the last frames_of()
        self._stream: zlib._Decompress | None = None  # made for its first byte: it takes 7 KiB
        self._tail_due = False  # has the stream under way had any byte of the message under way?
        self._compressed = False  # is the message under way?
        self._inflating = False  # is the frame under way part of a compressed message?
        self._size = 0  # inflated bytes of the message under way
        self._given: bytes | None = None  # what the frame under way has become already, until wsproto has got it
        self._frame_size = 0  # bytes of the payload of the frame under way
        self._skip = 0  # bytes of that to come which are inflated already
        self._refused: CloseReason | None = None  # why a frame was refused, until wsproto has got it
        self.inflated: list[tuple[int, bytes]] = []
        """The contents of the messages that inflate_message() was asked for and that nobody has taken over yet."""

    def enabled(self) -> bool:
        """Whether the server has accepted the offer."""
        return self._window_bits > 0

    def offer(self) -> str:
        """The parameters to offer; by default those that browsers offer."""
        settings = self._settings
        bits = settings.client_max_window_bits
        parameters = ["client_max_window_bits" if bits == _LARGEST else f"client_max_window_bits={bits}"]
        if settings.server_max_window_bits is not None:
            parameters.append(f"server_max_window_bits={settings.server_max_window_bits}")
        parameters += [flag for flag in _FLAGS if getattr(settings, flag)]
        return "; ".join(parameters)

    def finalize(self, offer: str) -> None:
        """Take over the parameters in the server's answer, ``offer``, by the rules of RFC 7692 section 7.1.

        Raises ValueError that says which parameter is wrong and what was expected.
        """
        settings, parameters = self._settings, _parse_parameters(offer)
        _check_granted(settings, parameters)
        self.server_no_context_takeover = "server_no_context_takeover" in parameters
        # What we offered about ourselves, the server may answer with more than that, or not at all: we keep our word.
        self.client_no_context_takeover = (
            settings.client_no_context_takeover or "client_no_context_takeover" in parameters
        )
        window_bits = min(settings.client_max_window_bits, _window_bits(parameters, "client_max_window_bits"))
        # zlib cannot deflate with a window of 8 bits, but with 9 bits it never looks back farther than 250 bytes
        # (MAX_DIST in its deflate.h), which a window of 8 bits holds: Chromium does the same.
        self.client_max_window_bits = max(9, window_bits)
        self._window_bits = _window_bits(parameters, "server_max_window_bits")

    def frame_outbound(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, data: bytes, fin: bool
    ) -> tuple[RsvBits, bytes]:
        """Compress a frame's payload; wsproto does it, and drops the compressor if there is no context takeover."""
        if opcode in (Opcode.TEXT, Opcode.BINARY) and fin and len(data) < self._settings.threshold:
            return rsv, data
        if self._compressor is None and opcode in (Opcode.TEXT, Opcode.BINARY):
            self._compressor = self._new_compressor()
        return super().frame_outbound(proto, opcode, rsv, data, fin)

    def release(self) -> None:
        """Let go of the buffers, which nobody will need again."""
        self._compressor = self._used = self._decompressor = self._stream = self._given = None
        self.inflated = []

    def frames_of(self, messages: Sequence[Message]) -> list[Buffer]:
        """Return the frames of messages, those of each in one buffer. When they are on their way, the caller calls
        keep_context(): to what was compressed and never sent, nothing may refer. So who is interrupted loses the
        context, and the next message begins a new one.
        """
        compressor, self._compressor = self._compressor, None
        frames: list[Buffer] = []
        threshold = self._settings.threshold
        for message in messages:
            opcode, payload, size = message
            if size < threshold and isinstance(payload, bytes):
                frames.append(frame_of(message))
                continue
            if compressor is None or self.client_no_context_takeover:
                compressor = self._new_compressor()
            if isinstance(payload, bytes):
                data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
                frames.append(compressed_frame(opcode, data[:_UP_TO_TAIL]))
            else:
                frames.append(b"".join(_fragments(compressor, opcode, payload)))
        self._used = None if self.client_no_context_takeover else compressor
        return frames

    def keep_context(self) -> None:
        """The frames of the last frames_of() are on their way: the next ones may refer to them."""
        self._compressor = self._used

    def _new_compressor(self) -> zlib._Compress:
        settings = self._settings
        return zlib.compressobj(settings.level, zlib.DEFLATED, -self.client_max_window_bits, settings.mem_level)

    def inflate_message(self, number: int, payload: bytes) -> bytes | None:
        """Return the content of the message that came compressed in one frame, of one larger than `max_size` allows one
        byte more than that. ``number`` counts these messages since forget().

        None if it is damaged, or goes on after the end of a DEFLATE stream: then wsproto is to have the frame.
        """
        inflated, stream = self.inflated, self._stream
        index = number - inflated[0][0] if inflated else 0
        if index == len(inflated):
            if not payload:
                # The tail alone would be taken for the rest of what the message before has left open.
                inflated.append((number, b""))
            else:
                if stream is None:
                    self._stream = stream = zlib.decompressobj(-self._window_bits)
                try:
                    content = map(stream.decompress, (payload + _MESSAGE_TAIL,), (self._limit,))
                    inflated.extend(zip((number,), content))  # noqa: B905  # strict=True would ask for a second one
                except zlib.error as error:
                    self._damaged(error)
                    return None
        if stream is not None and index == len(inflated) - 1:
            if stream.eof and stream.unused_data != _MESSAGE_TAIL:
                return None
            if stream.eof or self.server_no_context_takeover:
                self._stream = None
        return inflated[index][1]

    def let_go(self, number: int) -> None:
        """The messages before this one were taken over."""
        inflated = self.inflated
        while inflated and inflated[0][0] < number:
            del inflated[0]

    def forget(self, count: int) -> None:
        """Forget the first `count` messages, which were taken over; inflate_message() counts from there. On the loop
        thread.
        """
        self.inflated = [(number - count, content) for number, content in self.inflated if number >= count]

    def begin_message(self) -> None:
        """Begin with one that inflate_part() is to inflate."""
        self._size = 0
        self._tail_due = False

    def inflate_part(self, data: bytes, *, last: bool) -> bytes | None:
        """Return what these bytes of the message under way make; None if it is refused: then wsproto is to have it."""
        content = self._inflate(data)
        rest = self._inflate_end() if last and isinstance(content, bytes) else b""
        whole = _joined(content, rest)
        return whole if isinstance(whole, bytes) else None

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Note whether this frame is compressed: the first frame of a message says it for all (RFC 7692 section 6)."""
        if rsv.rsv1 and (opcode.iscontrol() or opcode is Opcode.CONTINUATION):
            return self._refuse(CloseReason.PROTOCOL_ERROR, "RSV1 is set on a frame that does not begin a message")
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self._compressed = rsv.rsv1
            self.begin_message()
            self._frame_size, self._skip = payload_length, 0
            if rsv.rsv1 and self.inflated:
                self._given = self.inflated[0][1]
                self.forget(1)
        self._inflating = self._compressed and not opcode.iscontrol()
        return _RSV1

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Inflate what has come of a frame's payload."""
        if not self._inflating:
            return data
        if self._given is None:
            return self._inflate_behind(data) if self._refused is None else self._refused
        given, self._given = self._given, b""
        if self._exceeds(len(given)):
            return self._too_big()
        self._size += len(given)
        stream = self._stream
        if self.inflated or stream is None or not stream.eof or len(stream.unused_data) <= len(_MESSAGE_TAIL):
            return given
        # The rest may be thousands of streams, which take long: they are inflated as wsproto comes to them.
        self._skip = self._frame_size - (len(stream.unused_data) - len(_MESSAGE_TAIL))
        self._given = None
        self._end_stream()
        return _joined(given, self._inflate_behind(data))

    def _inflate_behind(self, data: bytes) -> bytes | CloseReason:
        """Inflate what of a frame's payload has not been inflated yet."""
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        return self._inflate(data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """Inflate what the end of a message still holds back."""
        if not (fin and self._inflating):
            return None
        self._compressed = False  # a stray continuation belongs to no message
        if self._given is None:
            return self._inflate_end()
        self._given = None
        return self._inflate_left()

    def _inflate_left(self) -> bytes | CloseReason:
        """Inflate what follows the end of a DEFLATE stream in a frame that inflate_message() has inflated."""
        if self.inflated or self._stream is None:
            return b""  # the stream is that of later messages, or ended where this one did
        more: bytes | CloseReason = b""
        if self._stream.eof:
            left = self._stream.unused_data
            self._end_stream()
            more = self._inflate(left.removesuffix(_MESSAGE_TAIL))
            if len(left) < len(_MESSAGE_TAIL):
                self._tail_due = False  # the stream ended within the tail, and the rest of that began the next one
        rest = self._inflate_end() if isinstance(more, bytes) else b""
        return _joined(more, rest)

    def _inflate_end(self) -> bytes | CloseReason:
        # After a message that ended together with its stream, a tail would be taken for the beginning of the next one.
        rest = self._inflate(_MESSAGE_TAIL) if self._tail_due else b""
        if self.server_no_context_takeover:
            self._end_stream()
        return rest

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        inflated = bytearray()
        position = 0
        try:
            while position < len(data):
                if self._stream is None:
                    self._stream = zlib.decompressobj(-self._window_bits)
                piece = data[position : position + _PIECE]
                inflated += self._stream.decompress(piece, self._room(len(inflated)))
                if self._exceeds(len(inflated)):
                    return self._too_big()
                position += len(piece) - len(self._stream.unused_data)
                self._tail_due = True
                if self._stream.eof:
                    self._end_stream()
        except zlib.error as error:
            return self._damaged(error)
        self._size += len(inflated)
        return bytes(inflated)

    def _end_stream(self) -> None:
        self._stream = None
        self._tail_due = False

    def _room(self, inflated: int) -> int:
        """How many bytes zlib may give: one more than allowed shows that there are too many; 0 is any number."""
        return 0 if self._max_size is None else self._max_size - self._size - inflated + 1

    def _exceeds(self, inflated: int) -> bool:
        return self._max_size is not None and self._size + inflated > self._max_size

    def _damaged(self, error: zlib.error) -> CloseReason:
        return self._refuse(CloseReason.INVALID_FRAME_PAYLOAD_DATA, f"a compressed message is damaged: {error}")

    def _too_big(self) -> CloseReason:
        return self._refuse(
            CloseReason.MESSAGE_TOO_BIG,
            f"the server sent a compressed message of more than the {self._max_size:,} bytes that max_size allows",
        )

    def _refuse(self, code: CloseReason, fault: str) -> CloseReason:
        self.fault, self._refused = fault, code
        return code


def _fragments(compressor: zlib._Compress, opcode: int, parts: Sequence[bytes]) -> Iterator[Buffer]:
    last = len(parts) - 1
    for number, part in enumerate(parts):
        data = compressor.compress(part)
        if number == last:
            data = (data + compressor.flush(zlib.Z_SYNC_FLUSH))[:_UP_TO_TAIL]
        yield compressed_fragment(opcode, data, first=number == 0, last=number == last)


def _joined(content: bytes | CloseReason, rest: bytes | CloseReason) -> bytes | CloseReason:
    """Both parts of a content, or why one of them was refused."""
    if isinstance(content, bytes):
        return content + rest if isinstance(rest, bytes) else rest
    return content


def _check_granted(settings: Deflate, parameters: dict[str, str]) -> None:
    """Raise ValueError unless the server does what the offer asked of it (RFC 7692 sections 7.1.1.1 and 7.1.2.1)."""
    if settings.server_no_context_takeover and "server_no_context_takeover" not in parameters:
        raise ValueError("permessage-deflate: server_no_context_takeover is missing; it had been asked for")
    asked = settings.server_max_window_bits
    if asked is not None and _window_bits(parameters, "server_max_window_bits") > asked:
        came = parameters.get("server_max_window_bits", "missing")
        raise ValueError(f"permessage-deflate: server_max_window_bits is {came}; at most {asked} had been asked for")


def _window_bits(parameters: dict[str, str], name: str) -> int:
    return int(parameters.get(name, _LARGEST))


def _parse_parameters(answer: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for item in answer.split(";")[1:]:
        name, equals, value = (part.strip() for part in item.partition("="))
        if name in parameters:
            raise ValueError(f"permessage-deflate: the parameter {name} came twice; once was expected")
        parameters[name] = _parse_value(name, value if equals else None)
    return parameters


def _parse_value(name: str, value: str | None) -> str:
    if name in _FLAGS:
        if value is not None:
            raise ValueError(f"permessage-deflate: {name} came with the value {show(value)}; none was expected")
        return ""
    if name not in _WINDOWS:
        raise ValueError(f"permessage-deflate: unknown parameter {show(name)}; expected {', '.join(_FLAGS + _WINDOWS)}")
    bits = value or ""
    if len(bits) > 2 and bits[0] == bits[-1] == '"':
        bits = bits[1:-1]
    if not _WINDOW_BITS.fullmatch(bits):
        came = "no value" if value is None else f"the value {show(value)}"
        raise ValueError(f"permessage-deflate: {name} came with {came}; a whole number from 8 to 15 was expected")
    return bits
