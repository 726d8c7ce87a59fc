"""The WebSocket of `--reconnect`: it says when it has lost its connection, why, and when it is back."""

from __future__ import annotations

from collections.abc import Callable

from nwebsocket import CloseEvent, ReconnectingWebSocket

from .ending import complain, describe, in_options, without_query
from .format import count


class ReturningWebSocket(ReconnectingWebSocket):
    """``say``  called with what there is to say, on the thread of the callbacks."""

    say: Callable[[str], None] = staticmethod(complain)

    def say_by(self, say: Callable[[str], None]) -> None:
        """Have ``say`` called from now on."""
        self.say = say
    _retry_in: float | None = None
    _away = False
    _told_risk = 0

    def should_reconnect(self, event: CloseEvent) -> bool:
        self._retry_in = event.retry_in
        return True

    def onerror(self, error: Exception) -> None:
        self._say_why(in_options(error))

    def onclose(self, event: CloseEvent) -> None:
        self._say_why(f"{without_query(self.url)}: {describe(event)}")

    def _say_why(self, why: str) -> None:
        """Once for each attempt; not at all at the end, of which the command speaks itself."""
        if self._retry_in is not None:
            self.say(f"{why}; {self._risk()}next attempt in {self._retry_in:.1f} s")
            self._retry_in = None
            self._away = True

    def _risk(self) -> str:
        number, self._told_risk = self.at_risk - self._told_risk, self.at_risk
        return f"{count(number, 'message')} sent last may not have arrived; " if number else ""

    def onopen(self) -> None:
        if self._away:
            self.say(f"{without_query(self.url)}: connected again")
            self._away = False
