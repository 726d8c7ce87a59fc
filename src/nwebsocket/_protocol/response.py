"""What the server answered to the opening handshake."""

from __future__ import annotations

from dataclasses import dataclass

from .._base.log import is_harmless, size_of


@dataclass(frozen=True, slots=True)
class Response:
    """The server's answer to the opening handshake.

    ``status``   the HTTP status: 101 if the connection was opened
    ``headers``  all its headers as (name, value) pairs, in order, the names written as the server wrote them
    """

    status: int
    headers: list[tuple[str, str]]

    def __repr__(self) -> str:
        """Without what the log does not show either."""
        shown = [(name, value if is_harmless(name) else size_of(value)) for name, value in self.headers]
        return f"{type(self).__name__}(status={self.status!r}, headers={shown!r})"

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first header called ``name`` (in any case), or ``default`` without one."""
        return next(iter(self.get_all(name)), default)

    def get_all(self, name: str) -> list[str]:
        """Return the values of all headers called ``name`` (in any case), in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]
