"""What fuzzing has found to lead somewhere, and where it began: replayed without the fuzzer (see run.py)."""

from __future__ import annotations

import pytest
from fuzz_seeds import kept, seeds
from fuzz_targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_what_was_found(target: str) -> None:
    inputs = [data for name, data in [*seeds(), *kept()] if name == target]
    assert inputs
    for data in inputs:
        TARGETS[target](data)
