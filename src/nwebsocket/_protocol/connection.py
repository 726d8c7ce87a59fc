"""Bytes to messages and back: one client connection of RFC 6455, without any input or output.

    Request ──> handshake() ──> bytes          bytes ──> receive_response() ──> Response, or HandshakeError
    message(), ping(), close() ──> bytes       bytes ──> receive() ──> Received: messages, pongs, answers, the end

1. Nothing in here knows a socket, a thread or a clock. wsproto is known here, and in `handshake.py`, `deflate.py` and
   `frame_guard.py`, alone.
2. No method may be called while another one runs in a second thread: the caller sees to it. Only plain_close() and
   close_is_sent() may: so `sending` may become CLOSED at any time, and who receives does not set it back.
3. wsproto parses and builds. What it leaves unchecked is checked here: the head of the server's answer before wsproto
   gets it (`handshake.py`), the size of messages and frames through its hooks for extensions (`frame_guard.py`).
4. Whole messages, which are most, pass wsproto by (`fast_lane.py`), and so does a plain handshake
   (`plain_handshake.py`); nobody can tell but by the time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from wsproto import events
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.frame_protocol import LOCAL_ONLY_CLOSE_REASONS, CloseReason

from ..close_codes import CloseCode
from ..exceptions import (
    ConnectionClosed,
    HandshakeError,
    InvalidArgument,
    InvalidStateError,
    MessageTooBig,
    ProtocolError,
)
from .compression import DEFAULT
from .deflate import DeflateExtension
from .directions import CLOSED, FAILED, NOT_YET, OPEN
from .fast_lane import ENABLED, MUCH, FastLane
from .faults import fault_in_words
from .frame_guard import FrameGuard
from .framing import close_frame, pong_frame
from .handshake import Handshake, Request
from .received import PeerClose, Received
from .response import Response

MAX_CONTROL_BYTES = 125  # as any control frame may carry (RFC 6455 section 5.5)

_CHUNK = 4 * 1024  # bytes given to wsproto at once: it copies all the rest of them after each frame
_CHUNKS = 4  # ... and after so many, receive_some() returns
_FRAMES = 256  # ... and after so many frames, some milliseconds
_TURNS = 64  # ... and after so many turns from the lane to wsproto and back
# ... and after MUCH bytes of messages: a chunk may inflate to a thousand times as much.

_NO_STATUS = CloseCode.NO_STATUS_RECEIVED.value
# The codes of which wsproto makes nothing else: the registered ones that it knows, and those for applications.
_PLAIN_CLOSE_CODES = frozenset({*CloseReason, *range(3000, 5000)}.difference(LOCAL_ONLY_CLOSE_REASONS))


class Protocol:
    """One connection, from the opening handshake to the closing one.

    ``fast_lane``  whether what is plain passes wsproto by
    """

    def __init__(self, request: Request, *, fast_lane: bool = ENABLED) -> None:
        self.deflate = DeflateExtension(request.compression or DEFAULT, request.max_size)
        """Compression, whether it is in use or not."""
        self._handshake = Handshake(request, self.deflate, fast_lane=fast_lane)
        self._sending = NOT_YET
        self._receiving = NOT_YET
        # wsproto's side, made when it is needed: it takes 2 KiB.
        self._connection: Connection | None = None
        self._guard: FrameGuard
        self._max_size = request.max_size
        self._fast_lane = fast_lane
        self.lane: FastLane | None = None  # there is one as soon as the connection is open
        self._for_wsproto = self._unread = b""  # what has come and is not parsed yet; the former is before the latter
        self.unfinished = False
        """Whether receive_some() has not parsed all: then call it again, with b"" or more, when there is room."""
        self._failed_with: events.CloseConnection | None = None
        self._interrupted = False  # wsproto has been given what it has not parsed yet
        self._room = 0  # how many bytes of messages may still come of this receive()
        self._text: io.StringIO | None = None  # the fragments of a text message under way
        self._bytes: io.BytesIO | None = None  # ... or those of a binary one

    def release(self) -> None:
        """Let go of all buffers: nothing will come or go any more, and the user may keep the socket for long."""
        self.deflate.release()
        self._text = self._bytes = None

    @property
    def can_send(self) -> bool:
        """Whether messages may be sent: the connection is open and no Close frame has gone either way."""
        return self._sending is OPEN and self._receiving is not CLOSED

    @property
    def close_sent(self) -> bool:
        """Whether our Close frame has gone."""
        return self._sending is CLOSED

    @property
    def failed(self) -> bool:
        """Whether the server has broken the protocol."""
        return self._receiving is FAILED

    @property
    def response(self) -> Response | None:
        """The server's answer to the handshake, once its head has come; also when it is a refusal."""
        return self._handshake.response

    @property
    def subprotocol(self) -> str:
        """The sub-protocol that the server chose, or ""."""
        return self._handshake.subprotocol

    @property
    def extensions(self) -> str:
        """The extensions in use as the server wrote them, or ""."""
        return self._handshake.extensions

    @property
    def compresses(self) -> bool:
        """Whether permessage-deflate is in use."""
        return self.deflate.enabled()

    def handshake(self) -> bytes:
        """Return the bytes of the request; to be called once, before anything else.

        Raises InvalidArgument if a value cannot stand in an HTTP request.
        """
        return self._handshake.request()

    def receive_response(self, data: bytes) -> bool:
        """Take in bytes of the server's answer, b"" at the end of the stream (RFC 6455 section 4.1).

        Returns True once the connection is open, and then wants a ``receive(b"")``: frames may have come in the same
        packet. False asks for more. Raises HandshakeError if the server refuses or its answer is wrong.
        """
        trailing = self._handshake.receive(data)
        if trailing is None:
            return False
        self._sending, self._receiving = OPEN, OPEN
        if self._fast_lane:
            self.lane = FastLane(self._max_size, trailing, self.deflate if self.compresses else None)
        else:
            self._for_wsproto = trailing
        return True

    def refusal(self) -> HandshakeError | None:
        """Return the refusal so far, if the head of one has come but its body is not finished; else None."""
        return self._handshake.refusal()

    def receive(self, data: bytes) -> Received:
        """Take in bytes of the open connection, all of them. Whatever follows a Close frame or a failure is ignored.

        Raises InvalidStateError before the handshake is finished.
        """
        received = self.receive_some(data)
        while self.unfinished:
            received.add(self.receive_some(b""))
        if received.failure is not None:
            received.answer_with(self.fail())
        return received

    def receive_some(self, data: bytes) -> Received:
        """The same, but return after some milliseconds, or with more than some messages: see `unfinished`.

        After a failure the caller calls fail().
        """
        received = Received([], [])
        if self._has_ended():
            return received
        self._room, lane = MUCH, self.lane
        if lane is None or self.unfinished or lane.held:
            if not self._resume(data, received):
                return received
            data, self._unread = self._unread, b""
        if lane is not None:
            position = lane.take(data, 0, received.messages, self._room)
            self._room = lane.room
            if position < len(data):
                self._take_turns(lane, data, position, received)
        return received

    def _resume(self, data: bytes, received: Received) -> bool:
        """Put ``data`` behind what waits, and go on with what wsproto has begun; False if that is all for now."""
        lane = self.lane
        data, self._unread, self.unfinished = self._unread + data, b"", False
        if lane is None:
            data, self._for_wsproto = b"", self._for_wsproto + data
        if (lane is None or self._for_wsproto or self._interrupted) and not self._parse(b"", received):
            self._leave_unread(data)
            return False
        if lane is not None and lane.held:
            data = lane.with_held(data)
        self._unread = data
        return True

    def _take_turns(self, lane: FastLane, data: bytes, position: int, received: Received) -> None:
        """Give wsproto what the lane has stopped at, the lane what follows, and so on."""
        messages, turns = received.messages, 0
        while position < len(data):
            if self._room <= 0 or turns == _TURNS or (turns and len(messages) > _FRAMES):
                self._leave_unread(data[position:])
                break
            turns += 1
            close = lane.close_payload(data, position)
            if close is not None and self._on_plain_close(close, received):
                break
            others, position = lane.leave(data, position)
            if not self._parse(others, received):
                self._leave_unread(data[position:])
                break
            position = lane.take(data, position, messages, self._room)
            self._room = lane.room

    def _leave_unread(self, data: bytes) -> None:
        self._unread = data
        self.unfinished = not self._has_ended()

    def message(self, payload: str | bytes, *, fin: bool = True) -> bytes:
        """Return the frame of a message, or of a fragment of one: all but the last with ``fin=False``.

        Raises UnicodeEncodeError for a text with a lone surrogate, TypeError if the fragments of one message are not
        all text or all binary, ConnectionClosed after a Close frame, InvalidStateError before the handshake.
        """
        if isinstance(payload, str):
            return self._send(events.TextMessage(payload, message_finished=fin))
        return self._send(events.BytesMessage(payload, message_finished=fin))

    def ping(self, payload: bytes) -> bytes:
        """Return a Ping frame with a payload of at most 125 bytes (RFC 6455 section 5.5.2).

        Raises InvalidArgument for a longer one; ConnectionClosed and InvalidStateError as message() does.
        """
        if len(payload) > MAX_CONTROL_BYTES:
            raise InvalidArgument(f"a ping carries at most {MAX_CONTROL_BYTES} bytes, not {len(payload)}")
        return self._send(events.Ping(payload))

    def close(self, code: int | None, reason: str) -> bytes:
        """Return a Close frame, or b"" if none may be sent any more (or yet).

        ``code``    a code that may stand in a frame; None for none, but 1000 if there is a reason
        ``reason``  at most 123 bytes in UTF-8; see close_codes.check_close()
        """
        if not self.can_send:
            return b""
        frame = self.plain_close(code, reason)
        if frame is not None:
            self._sending = CLOSED
            return frame
        if code is None:
            code = CloseReason.NORMAL_CLOSURE if reason else CloseReason.NO_STATUS_RCVD
        return self._send_close(events.CloseConnection(code, reason))

    def close_is_sent(self) -> None:
        """The frame of plain_close() goes out: nothing may follow it."""
        self._sending = CLOSED

    def plain_close(self, code: int | None, reason: str) -> bytes | None:
        """Return what close() would return, if that needs no wsproto: then any thread may ask. It changes nothing: who
        sends it, says close_is_sent().
        """
        payload = _plain_close(code, reason) if self.lane is not None else None
        return None if payload is None else close_frame(payload)

    def _has_ended(self) -> bool:
        """Whether nothing that comes is parsed any more."""
        return self._receiving is CLOSED or self._receiving is FAILED

    def _established(self) -> Connection:
        if self._receiving is NOT_YET:
            raise InvalidStateError("the opening handshake is not finished")
        if self._connection is None:
            self._guard = FrameGuard(self._max_size)
            self._connection = Connection(ConnectionType.CLIENT, [self.deflate, self._guard])
        return self._connection

    def _parse(self, data: bytes, received: Received) -> bool:
        """Take in bytes through wsproto; return whether more may follow in this receive()."""
        connection = self._established()
        data, self._for_wsproto = self._for_wsproto + data, b""
        frames = 0
        position, end = 0, min(len(data), _CHUNKS * _CHUNK)
        while position < end or self._interrupted:
            if not self._interrupted:
                connection.receive_data(data[position : position + _CHUNK])
                position += _CHUNK
            self._interrupted = False
            for event in connection.events():
                self._HANDLERS[type(event)](self, event, received)
                frames += 1
                if frames == _FRAMES or self._room <= 0:
                    self._interrupted = True  # wsproto has more, of this chunk
                    break
            if self._has_ended():
                return False
            if self._interrupted:
                break
        self._for_wsproto = data[position:]
        return not (self._for_wsproto or self._interrupted)

    def _send(self, event: events.Event) -> bytes:
        connection = self._established()
        if not self.can_send:
            raise ConnectionClosed("the connection is closing: nothing can be sent after a Close frame")
        return connection.send(event)

    def _send_close(self, event: events.CloseConnection) -> bytes:
        self._sending = CLOSED
        return self._established().send(event)

    def _on_text(self, event: events.TextMessage, received: Received) -> None:
        self._room -= len(event.data)
        if self._text is None:
            if event.message_finished:
                received.messages.append(event.data)
                return
            self._text = io.StringIO()
        self._text.write(event.data)
        if event.message_finished:
            received.messages.append(self._text.getvalue())
            self._text = None

    def _on_bytes(self, event: events.BytesMessage, received: Received) -> None:
        self._room -= len(event.data)
        if self._bytes is None:
            if event.message_finished:
                received.messages.append(bytes(event.data))
                return
            self._bytes = io.BytesIO()
        self._bytes.write(event.data)
        if event.message_finished:
            received.messages.append(self._bytes.getvalue())
            self._bytes = None

    def _on_ping(self, event: events.Ping, received: Received) -> None:
        if self.can_send:
            plain = self.lane is not None
            received.reply(pong_frame(event.payload) if plain else self._established().send(event.response()))

    def _on_pong(self, event: events.Pong, received: Received) -> None:
        received.hear(bytes(event.payload))

    def _on_plain_close(self, payload: bytes, received: Received) -> bool:
        """Take in the payload of a Close frame, and answer with the same; False if it is wsproto's after all."""
        close = _parsed_plain_close(payload)
        if close is None:
            return False
        self._receiving = CLOSED
        answers, self._sending = not self.close_sent, CLOSED
        received.end_with(close, close_frame(payload) if answers else b"")
        return True

    def _on_close(self, event: events.CloseConnection, received: Received) -> None:
        # wsproto reports what it cannot parse as if the server had closed, but leaves its state as it was.
        if self._established().state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED):
            self._on_peer_close(event, received)
        else:
            self._on_failure(event, received)

    def _on_peer_close(self, event: events.CloseConnection, received: Received) -> None:
        if self._guard.close_code is not None:
            event = events.CloseConnection(self._guard.close_code, event.reason)
        self._receiving = CLOSED
        answer = b"" if self.close_sent else self._send_close(event.response())
        received.end_with(PeerClose(int(event.code), event.reason or ""), answer)

    def _on_failure(self, event: events.CloseConnection, received: Received) -> None:
        found = self.deflate.fault or self._guard.fault
        fault = found or fault_in_words(event.reason or "", self._guard.received_code)
        if event.code == CloseCode.MESSAGE_TOO_BIG:
            received.fail(MessageTooBig(fault))
        else:
            received.fail(ProtocolError(f"the server broke the protocol: {fault}", sent_code=int(event.code)))
        self._receiving = FAILED
        self._text = self._bytes = None
        self._failed_with = events.CloseConnection(event.code, fault)

    def fail(self) -> bytes:
        """Return the Close frame that tells the server of a failure, or b"" if one has gone; nothing may follow it.

        Handlers have heard the messages before the failure by then, and what they have sent goes out first.
        """
        if self.close_sent or self._failed_with is None:
            return b""
        return self._send_close(self._failed_with)

    _HANDLERS: ClassVar[Mapping[type[events.Event], Callable[[Protocol, Any, Received], None]]] = {
        events.TextMessage: _on_text,
        events.BytesMessage: _on_bytes,
        events.Ping: _on_ping,
        events.Pong: _on_pong,
        events.CloseConnection: _on_close,
    }


def _plain_close(code: int | None, reason: str) -> bytes | None:
    """The payload of a Close frame that wsproto would make just the same, or None."""
    if code is None and not reason:
        return b""
    code = CloseCode.NORMAL_CLOSURE if code is None else code
    payload = code.to_bytes(2, "big") + reason.encode()
    return payload if code in _PLAIN_CLOSE_CODES and len(payload) <= MAX_CONTROL_BYTES else None


def _parsed_plain_close(payload: bytes) -> PeerClose | None:
    """What the payload of the server's Close frame says, or None if wsproto is to judge it."""
    if not payload:
        return PeerClose(_NO_STATUS, "")
    code = int.from_bytes(payload[:2], "big")
    if code not in _PLAIN_CLOSE_CODES:
        return None
    try:
        return PeerClose(code, payload[2:].decode())
    except UnicodeDecodeError:
        return None
