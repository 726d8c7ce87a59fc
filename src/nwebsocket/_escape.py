"""What comes from outside, made fit to be seen: in an error, in the log, on a terminal.

A line break in it would begin a new line of a log; a terminal obeys escape sequences; bidi controls turn text around.
"""

from __future__ import annotations

import re

# The controls of ASCII and of Latin-1, line and paragraph separators, marks and controls of direction, lone surrogates.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escaped(text: str) -> str:
    """The text with all that is no plain character written as Python would write it."""
    return _UNFIT.sub(_in_ascii, text)


def _in_ascii(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
