"""permessage-deflate (RFC 7692) for wsproto, with the receiving side done anew.

wsproto's own `PerMessageDeflate` compresses well, but what it does with the server's part is not fit for use:
a control frame between the fragments of a compressed message breaks that message, decompression has no limit, a
DEFLATE stream that the server ended is not followed by a new one, and the server's parameters are hardly checked.
"""

from __future__ import annotations

import re
import zlib

from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

_RSV1 = RsvBits(True, False, False)
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_WINDOWS = ("server_max_window_bits", "client_max_window_bits")
_WINDOW_BITS = re.compile(r"[89]|1[0-5]")
_MESSAGE_TAIL = b"\x00\x00\xff\xff"  # what the sender cut off the end of each message (RFC 7692 section 7.2.1)
_PIECE = 4096  # bytes inflated at once, for what follows the end of a stream is copied each time


class Deflate(PerMessageDeflate):
    """permessage-deflate of one client connection.

    ``max_size``  the largest message to inflate, in bytes; None for any
    ``fault``     after a frame was refused: what was wrong with it, for people
    """

    def __init__(self, max_size: int | None) -> None:
        super().__init__()
        self.fault = ""
        self._max_size = max_size
        self._accepted = False
        self._window_bits = self.DEFAULT_SERVER_MAX_WINDOW_BITS
        self._stream: zlib._Decompress | None = None  # made for its first byte: it takes 7 KiB
        self._tail_due = False  # has the stream under way had any byte of the message under way?
        self._compressed = False  # is the message under way?
        self._inflating = False  # is the frame under way part of a compressed message?
        self._size = 0  # inflated bytes of the message under way

    def enabled(self) -> bool:
        """Whether the server has accepted the offer."""
        return self._accepted

    def offer(self) -> str:
        """The parameters to offer: those that browsers offer."""
        return "client_max_window_bits"

    def finalize(self, offer: str) -> None:
        """Take over the parameters in the server's answer, ``offer``, by the rules of RFC 7692 section 7.1.

        Raises ValueError that says which parameter is wrong and what was expected.
        """
        parameters = _parse_parameters(offer)
        self.server_no_context_takeover = "server_no_context_takeover" in parameters
        self.client_no_context_takeover = "client_no_context_takeover" in parameters
        # zlib cannot deflate with a window of 8 bits, but with 9 bits it never looks back farther than 250 bytes
        # (MAX_DIST in its deflate.h), which a window of 8 bits holds: Chromium does the same.
        self.client_max_window_bits = max(9, int(parameters.get("client_max_window_bits", "15")))
        self._window_bits = int(parameters.get("server_max_window_bits", "15"))
        self._accepted = True

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Note whether this frame is compressed: the first frame of a message says it for all (RFC 7692 section 6)."""
        if rsv.rsv1 and (opcode.iscontrol() or opcode is Opcode.CONTINUATION):
            return self._refuse(CloseReason.PROTOCOL_ERROR, f"RSV1 is set on a {opcode.name} frame")
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self._compressed = rsv.rsv1
            self._size = 0
            self._tail_due = False
        self._inflating = self._compressed and not opcode.iscontrol()
        return _RSV1

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Inflate what has come of a frame's payload."""
        return self._inflate(data) if self._inflating else data

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """Inflate what the end of a message still holds back."""
        if not (fin and self._inflating):
            return None
        self._compressed = False  # a stray continuation belongs to no message
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
            return self._refuse(CloseReason.INVALID_FRAME_PAYLOAD_DATA, f"a compressed message is damaged: {error}")
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

    def _too_big(self) -> CloseReason:
        return self._refuse(
            CloseReason.MESSAGE_TOO_BIG,
            f"the server sent a compressed message of more than {self._max_size:,} bytes, the limit set by max_size",
        )

    def _refuse(self, code: CloseReason, fault: str) -> CloseReason:
        self.fault = fault
        return code


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
            raise ValueError(f"permessage-deflate: {name} came with the value {value!r}; none was expected")
        return ""
    if name not in _WINDOWS:
        raise ValueError(f"permessage-deflate: unknown parameter {name!r}; expected {', '.join(_FLAGS + _WINDOWS)}")
    bits = value or ""
    if len(bits) > 2 and bits[0] == bits[-1] == '"':
        bits = bits[1:-1]
    if not _WINDOW_BITS.fullmatch(bits):
        came = "no value" if value is None else f"the value {value!r}"
        raise ValueError(f"permessage-deflate: {name} came with {came}; a whole number from 8 to 15 was expected")
    return bits
