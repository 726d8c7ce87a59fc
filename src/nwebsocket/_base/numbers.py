"""Numbers that users give: those of NumPy and fractions are numbers, too, and some are larger than anybody counts."""

from __future__ import annotations

import math
import numbers
import operator
import sys
from typing import Any

from ..exceptions import InvalidArgument
from .escape import in_short

_LARGEST = sys.maxsize // 2
"""What a whole number is taken for that is larger: zlib and others count no further."""


def whole_number(value: Any) -> int | None:
    """A whole number, NumPy's included, at most `_LARGEST`; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    try:
        return min(operator.index(value), _LARGEST)
    except (TypeError, ValueError):  # NumPy's timedelta64 is an Integral, too, but counts something
        return None


def real_number(value: Any) -> float | None:
    """A number, NumPy's included: infinity stands for what is too large for a float; None if it is none."""
    if type(value) is float or (type(value) is int and abs(value) < _LARGEST):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Real)):  # an int is soon told for one
        return None
    number: Any = value
    try:
        return float(operator.index(number) if isinstance(number, (int, numbers.Integral)) else number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def count_of(name: str, things: str, value: Any) -> int:
    """The whole number that was given as `name`, of at least one. Raises TypeError or InvalidArgument."""
    number = whole_number(value)
    if number is not None and number >= 1:
        return number
    message = f"{name} must be a whole number of {things}, at least 1, not {shown(value)}"
    raise TypeError(message) if number is None else InvalidArgument(message)


def shown(value: Any) -> str:
    """For an error; Python refuses to write an int of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return in_short(text)
