"""What a connection will be found to have ended with: by the server's Close frame, or by what failed first."""

from __future__ import annotations

import ssl

from .._network.tls import error_in_words
from .._protocol.received import PeerClose
from ..exceptions import ConnectionLost, Side, WebSocketError
from .life import Ending


class Outcome:
    """The outcome of one connection so far; loop thread."""

    def __init__(self) -> None:
        self.error: WebSocketError | None = None
        """Why it has failed."""
        self._close: PeerClose | None = None

    def closed(self, close: PeerClose | None, failure: WebSocketError | None) -> None:
        """The server's Close frame has come, or what breaks the protocol."""
        self._close = close
        self.error = failure or self.error

    def fail(self, error: WebSocketError) -> None:
        """It fails by this, whatever was before."""
        self.error = error

    def fail_unless_failed(self, error: WebSocketError) -> None:
        """It fails by this, if by nothing before."""
        self.error = self.error or error

    def lost(self, error: OSError, *, by_us: bool) -> None:
        """The stream is broken; `by_us`: as for the others, whether the first Close frame, or none, was ours."""
        if self.error is None and self._close is None:
            kind = "TLS failed" if isinstance(error, ssl.SSLError) else "the connection was lost"
            lost = ConnectionLost(f"{kind}: {error_in_words(error)}", closed_first=self.closed_first(by_us=by_us))
            self.error = lost.because_of(error)

    def closed_first(self, *, by_us: bool) -> Side | None:
        """Who sent the first Close frame."""
        if by_us:
            return "client"
        return None if self._close is None else "server"

    def ending(self, where: object, *, by_us: bool, clean: bool) -> Ending:
        """How it has ended, at this URL; `clean`: our Close frame has gone, too."""
        first = self.closed_first(by_us=by_us)
        if self._close is None and self.error is None:
            self.error = ConnectionLost("the server ended the connection without a Close frame", closed_first=first)
        if self.error is not None:
            self.error.say_where(str(where))
            return Ending(1006, "", False, first, self.error)
        assert self._close is not None
        return Ending(self._close.code, self._close.reason, clean, first, None)
