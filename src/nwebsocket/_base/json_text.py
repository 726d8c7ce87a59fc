"""JSON texts to values and back, as `json` does it, but without NaN and the infinities, which are no JSON."""

from __future__ import annotations

import json
from typing import Any

_encoder = json.JSONEncoder(allow_nan=False)


def encode(value: Any) -> str:
    """Raises TypeError or ValueError for what JSON cannot hold, NaN included, and RecursionError."""
    return _encoder.encode(value)


def decode(text: str) -> Any:
    """Raises ValueError, or RecursionError, for what is not JSON as a whole."""
    return json.loads(text)
