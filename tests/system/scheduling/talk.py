"""A server's side of a conversation in messages, compressed if the client has offered that."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator

from peers import CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, close_frame, frame, pong

# No state is kept from one message to the next: each can be made, and read, for itself.
_EXTENSION = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
_COMPRESSED = 4


class Talk:
    """One accepted connection.

    ``number``  how many connections there were before
    ``dice``    its own
    """

    def __init__(self, peer: Peer, seed: int) -> None:
        self.number = peer.number
        self.dice = random.Random(f"{seed} {peer.number}")
        self._peer = peer
        self._deflates = "permessage-deflate" in peer.headers.get("sec-websocket-extensions", "")
        peer.accept(extensions=_EXTENSION if self._deflates else None)

    def frames_of(self, message: str, fragments: int = 1) -> bytes:
        """The message as frames."""
        payload, rsv = message.encode(), 0
        if self._deflates:
            compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            payload = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            rsv = _COMPRESSED
        size = max(1, -(-len(payload) // fragments))
        parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
        first = frame(TEXT, parts[0], fin=len(parts) == 1, rsv=rsv)
        return first + b"".join(
            frame(CONTINUATION, part, fin=number == len(parts)) for number, part in enumerate(parts[1:], 2)
        )

    def say(self, message: str) -> None:
        """Send a message."""
        self._peer.send(self.frames_of(message))

    def send(self, data: bytes) -> None:
        """Send frames, or parts of them."""
        self._peer.send(data)

    def messages(self) -> Iterator[str]:
        """The client's messages until its Close frame, which is answered, as its pings are."""
        while (got := self._peer.read_frame()).opcode != CLOSE:
            if got.opcode == PING:
                self._peer.send(pong(got.payload))
            elif got.opcode != PONG:
                whole = got.fin and got.opcode == TEXT
                assert whole, f"not a whole message of text: {got}"
                yield self._inflated(got.payload) if got.rsv & _COMPRESSED else got.payload.decode()
        self._peer.send(frame(CLOSE, got.payload[:2]))

    @staticmethod
    def _inflated(payload: bytes) -> str:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\x00\x00\xff\xff").decode()

    def until_closed(self) -> None:
        """Answer pings and the Close frame."""
        for _ in self.messages():
            pass

    def end(self, how: str) -> None:
        """Leave without being asked to: "reset", "closing" (with a Close frame) or "end" (without)."""
        if how == "reset":
            self._peer.reset()
        elif how == "closing":
            self._peer.send(close_frame(1012))
        else:
            self._peer.close()


def scripted(say: Callable[[Talk], None], seed: int) -> Callable[[Peer], None]:
    """The script of a RawServer that has this conversation; clients may go when they like."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(EOFError, OSError):
            say(Talk(peer, seed))

    return script


def echo(talk: Talk) -> None:
    """Say everything again."""
    for message in talk.messages():
        talk.say(message)
