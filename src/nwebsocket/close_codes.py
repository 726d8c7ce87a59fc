"""Close codes: their names, which of them may be sent, and how long a close reason may be.

The registry: https://www.iana.org/assignments/websocket/websocket.xhtml#close-code-number
"""

from __future__ import annotations

from enum import IntEnum

from ._base.numbers import shown
from .exceptions import InvalidClose

__all__ = ["MAX_REASON_BYTES", "CloseCode", "check_close"]

MAX_REASON_BYTES = 123
"""A control frame carries 125 bytes (RFC 6455 section 5.5), and the code takes two of them."""


class CloseCode(IntEnum):
    """The registered close codes. 4000-4999 are free for private use; 1005, 1006 and 1015 are never on the wire."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015
    UNAUTHORIZED = 3000
    FORBIDDEN = 3003
    TIMEOUT = 3008


def check_close(code: int | None, reason: str) -> None:
    """Check what a user wants to close with, as the browser does (WHATWG WebSockets, ``close(code, reason)``).

    ``code``    1000 or 3000-4999; None for none (with a reason, 1000 is then sent)
    ``reason``  a text of at most 123 bytes in UTF-8

    Raises InvalidClose (a ValueError) for a value that may not be sent, and TypeError for one of the wrong type.
    """
    if code is None and type(reason) is str and not reason:  # most often
        return
    _check_code(code)
    _check_reason(reason)


def _check_code(code: int | None) -> None:
    if code is None:
        return
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"a close code is an int or None, not {shown(code)}")
    if code != CloseCode.NORMAL_CLOSURE and not 3000 <= code <= 4999:
        raise InvalidClose(f"the close code must be 1000 or 3000-4999, not {shown(int(code))}")


def _check_reason(reason: str) -> None:
    if not isinstance(reason, str):
        raise TypeError(f"a close reason is a str, not {shown(reason)}")
    try:
        size = len(reason.encode())
    except UnicodeEncodeError as error:
        raise InvalidClose(
            f"the close reason has a lone surrogate at index {error.start}, {reason[error.start]!a}: "
            "it cannot be encoded in UTF-8"
        ) from error
    if size > MAX_REASON_BYTES:
        raise InvalidClose(f"the close reason is {size} bytes long in UTF-8; at most {MAX_REASON_BYTES} can be sent")
