"""JSON texts are what `json` makes of them, but for NaN and the infinities."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nwebsocket._base import json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
)


@given(VALUES)
def test_encodes_as_json_does(value: Any) -> None:
    assert json_text.encode(value) == json.dumps(value)


@given(VALUES, st.text(" \t\r\n", max_size=3), st.text(" \t\r\n", max_size=3))
def test_decodes_as_json_does(value: Any, before: str, after: str) -> None:
    text = before + json.dumps(value) + after
    assert json_text.decode(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", " ", "{", "{}{}", "[1] x", "\ufeff{}", "\xa0{}", "nul", "'x'"])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        json.loads(text)
    with pytest.raises(ValueError):  # noqa: PT011
        json_text.decode(text)


def test_what_json_cannot_hold() -> None:
    circle: dict[str, Any] = {}
    circle["x"] = [circle]
    with pytest.raises(ValueError, match="Circular reference"):
        json_text.encode(circle)
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            json_text.encode({"x": number})
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        json_text.encode({"x": object()})
    with pytest.raises(TypeError, match="keys must be"):
        json_text.encode({(1, 2): 3})
    assert json_text.encode({"x": 1}) == '{"x": 1}'


def test_more_levels_than_python_can_go() -> None:
    deep: Any = 1
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        json_text.encode(deep)
    with pytest.raises(RecursionError):
        json_text.decode("[" * 200_000)
    while isinstance(deep, list):  # or its end would be a deep recursion, too
        deep = deep.pop()
