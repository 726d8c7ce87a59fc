"""How to compress: what ``compression="deflate"`` stands for, and what may be set instead (RFC 7692)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._base.numbers import shown, whole_number
from ..exceptions import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """Settings of permessage-deflate (RFC 7692), for ``compression=``; as they are by default, "deflate" has them.

    ``level``                       how hard to compress: 0 (not at all), 1 (fast) to 9 (small)
    ``mem_level``                   1 to 9: the memory in which we look for what repeats. With 8 messages shrink by 1 %
                                    more, and takes up to twice as long: the memory is not in the processor's cache
    ``threshold``                   whole messages of fewer bytes go out as they are: there is little to gain
    ``client_max_window_bits``      9 to 15: we look back 2**bits bytes; 15 leaves it to the server to ask for less
    ``server_max_window_bits``      8 to 15: the same asked of the server; None: not asked
    ``client_no_context_takeover``  we compress each message by itself, and keep nothing between two
    ``server_no_context_takeover``  the same asked of the server

    Each connection has zlib's memory for itself: ``2 ** (client_max_window_bits + 2) + 2 ** (mem_level + 9)`` bytes and
    6 KiB from the first message sent, ``2 ** server_max_window_bits`` bytes and 7 KiB from the first one received; by
    default 150 KiB and 39 KiB, not all of it resident. Without context takeover it is held for the length of a message.

    The server may decline what it is asked: then nothing is compressed. It may ask for smaller windows and for no
    context takeover on its part, and gets them. If it accepts and does something else, the connection fails with
    HandshakeError.

    Raises InvalidArgument (ValueError) or TypeError for a bad value.
    """

    level: int = 6
    mem_level: int = 5
    threshold: int = 32
    client_max_window_bits: int = 15
    server_max_window_bits: int | None = None
    client_no_context_takeover: bool = False
    server_no_context_takeover: bool = False

    def __post_init__(self) -> None:
        self._take_number("level", 0, 9)
        self._take_number("mem_level", 1, 9)
        self._take_number("threshold", 0, 2**31 - 1)
        # zlib cannot compress with a window of 8 bits.
        self._take_number("client_max_window_bits", 9, 15)
        if self.server_max_window_bits is not None:
            self._take_number("server_max_window_bits", 8, 15, " or None")
        _check_flag("client_no_context_takeover", self.client_no_context_takeover)
        _check_flag("server_no_context_takeover", self.server_no_context_takeover)

    def _take_number(self, name: str, lowest: int, highest: int, alternative: str = "") -> None:
        """Check a number, and keep it as an int: others, NumPy's, overflow when they are counted with."""
        value = getattr(self, name)
        number = whole_number(value)
        if number is None or not lowest <= number <= highest:
            message = f"{name} must be a whole number from {lowest} to {highest}{alternative}, not {shown(value)}"
            raise TypeError(message) if number is None else InvalidArgument(message)
        object.__setattr__(self, name, number)


def deflate_of(compression: Any) -> Deflate | None:
    """The settings that a value of the option ``compression`` stands for; None for no compression.

    Raises InvalidArgument or TypeError if it stands for none.
    """
    if compression is None or isinstance(compression, Deflate):
        return compression
    if isinstance(compression, str) and compression == "deflate":
        return DEFAULT
    message = f"compression must be 'deflate', a Deflate(...) or None, not {shown(compression)}"
    if not isinstance(compression, str):
        raise TypeError(message)
    raise InvalidArgument(message)


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {shown(value)}")


DEFAULT = Deflate()
