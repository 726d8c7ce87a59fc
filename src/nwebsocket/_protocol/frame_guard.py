"""The size of messages and the codes of Close frames, checked in wsproto's hooks for extensions."""

from __future__ import annotations

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from ..close_codes import CloseCode

MAX_FRAGMENTS = 131_072

_NO_BITS = RsvBits(False, False, False)


class FrameGuard(Extension):
    """What wsproto does not do about a frame, done in its hooks for extensions; it is never offered to the server.

    ``fault``          after a frame was refused: what was wrong with it, for people
    ``close_code``     the code of the server's Close, if it is one that wsproto does not know
    ``received_code``  the code of the server's Close, whatever it is
    """

    name = "frame guard"

    def __init__(self, max_size: int | None) -> None:
        self.fault = ""
        self.close_code: int | None = None
        self.received_code = 0
        self._max_size = max_size
        self._opcode = Opcode.CONTINUATION  # of the frame under way
        self._compressed = False  # is the message under way? Then `DeflateExtension` counts its bytes
        self._size = 0  # bytes of the message under way, as announced by its frames so far
        self._fragments = 0

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._opcode = opcode
        if not opcode.iscontrol():
            if opcode is not Opcode.CONTINUATION:
                self._compressed = rsv.rsv1
                self._size = self._fragments = 0
            self._size += payload_length
            self._fragments += 1
            self.fault = self._find_fault()
        return CloseReason.MESSAGE_TOO_BIG if self.fault else _NO_BITS

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes:
        if self._opcode is not Opcode.CLOSE:
            return data
        self.received_code = int.from_bytes(data[:2], "big")
        if self.received_code != CloseCode.BAD_GATEWAY:
            return data
        # 1014 was registered after wsproto's list was made, and wsproto takes it for a breach of the protocol: it is
        # shown a code that it does not judge.
        self.close_code = CloseCode.BAD_GATEWAY
        return CloseCode.NORMAL_CLOSURE.to_bytes(2, "big") + data[2:]

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        # A continuation of nothing must not be added to the message before: the fast lane may have taken a later one.
        if fin and not self._opcode.iscontrol():
            self._compressed = False
            self._size = self._fragments = 0
        return None

    def _find_fault(self) -> str:
        if self._fragments > MAX_FRAGMENTS:
            return f"the server sent a message of more than {MAX_FRAGMENTS:,} fragments"
        if self._max_size is not None and self._size > self._max_size and not self._compressed:
            return f"the server sent a message of {self._size:,} bytes or more; max_size allows {self._max_size:,}"
        return ""
