"""What comes from outside, made fit to be seen: in an error, in the log, on a terminal.

A line break in it would begin a new line of a log; a terminal obeys escape sequences; bidi controls turn text around.
"""

from __future__ import annotations

import re
from typing import Any

MOST_SHOWN = 100
"""Characters of what may be of any length."""

# The controls of ASCII and of Latin-1, line and paragraph separators, marks and controls of direction, lone surrogates.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_TOKEN_AT_BEGINNING = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")


def escaped(text: str) -> str:
    """The text with all that is no plain character written as Python would write it."""
    return _UNFIT.sub(_in_ascii, text)


def in_short(text: str, most: int = MOST_SHOWN) -> str:
    """The beginning of a text, for errors and the log."""
    return text if len(text) <= most else f"{text[:most]}..."


def name_in_part(name: Any) -> str:
    """What errors show of a name that a user gave: what stands after the first character that no token may have (RFC
    9110 section 5.6.2) is most likely a value, and a secret.
    """
    if not isinstance(name, str):
        return f"of type {type(name).__name__}"
    beginning = _TOKEN_AT_BEGINNING.match(name)
    assert beginning is not None
    return repr(in_short(name) if beginning[0] == name else f"{beginning[0][:MOST_SHOWN]}...")


def _in_ascii(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
