"""What a connection has received: messages, Pings and Pongs, the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..exceptions import ProtocolError


class PeerClose(NamedTuple):
    """The server's Close frame: its code (1005 if it had none) and its reason."""

    code: int
    reason: str


@dataclass(slots=True)
class Received:
    """What one receive() brought; the messages came before the close or the failure.

    ``messages``     whole messages, in order
    ``pongs``        the payloads of the pongs that came
    ``replies``      the Pongs to send back, one for each Ping, in order: before anything that is sent later
    ``close_frame``  the Close frame to send back, or b""
    ``close``        the server's Close frame
    ``failure``      how the server broke the protocol
    ``is_more``      whether there is anything but messages
    """

    # No default_factory for the lists: it would take as long as all the rest of a small message's parsing.
    messages: list[str | bytes]
    pongs: list[bytes]
    replies: list[bytes] | None = None
    close_frame: bytes = b""
    close: PeerClose | None = None
    failure: ProtocolError | None = None
    is_more: bool = False

    def add(self, more: Received) -> None:
        """Put behind it what a later receive() brought."""
        self.messages += more.messages
        self.pongs += more.pongs
        if more.replies:
            self.replies = (self.replies or []) + more.replies
        self.close_frame, self.close, self.failure = more.close_frame, more.close, more.failure
        self.is_more = self.is_more or more.is_more

    def reply(self, pong: bytes) -> None:
        """A Ping has come, which this answers."""
        if self.replies is None:
            self.replies = []
        self.replies.append(pong)
        self.is_more = True

    def hear(self, pong: bytes) -> None:
        """A Pong has come, with this payload."""
        self.pongs.append(pong)
        self.is_more = True

    def end_with(self, close: PeerClose, close_frame: bytes) -> None:
        """The server's Close frame has come; ``close_frame`` answers it, if it is not itself an answer."""
        self.close = close
        self.close_frame = close_frame
        self.is_more = True

    def fail(self, failure: ProtocolError) -> None:
        """The server has broken the protocol."""
        self.failure = failure
        self.is_more = True

    def answer_with(self, close_frame: bytes) -> None:
        """This Close frame tells the server so."""
        self.close_frame = close_frame

    @property
    def answer(self) -> bytes:
        """All that is to be sent back."""
        return b"".join(self.replies or ()) + self.close_frame
