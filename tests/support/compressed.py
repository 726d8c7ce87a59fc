"""Tests of compression speak in short messages, which go out as they are by default."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nwebsocket import Deflate
from nwebsocket._protocol.compression import DEFAULT


@pytest.fixture(autouse=True, scope="module")
def short_ones_too() -> Iterator[None]:
    """Compress messages of any size."""
    before = DEFAULT.threshold
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Deflate.__init__.__kwdefaults__, "threshold", 0)
        object.__setattr__(DEFAULT, "threshold", 0)
        yield
    object.__setattr__(DEFAULT, "threshold", before)
