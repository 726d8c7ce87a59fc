"""The short way through JSON gives what `json` gives, with the C encoder and without."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nwebsocket._base import fast_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
)


@pytest.fixture(params=["C", "Python"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(fast_json, "_encode_in_c", None)
    else:
        assert fast_json._encode_in_c is not None


@given(VALUES)
def test_encodes_as_json_does(value: Any) -> None:
    assert fast_json.encode(value) == json.dumps(value)


@given(VALUES, st.text(" \t\r\n", max_size=3), st.text(" \t\r\n", max_size=3))
def test_decodes_as_json_does(value: Any, before: str, after: str) -> None:
    text = before + json.dumps(value) + after
    assert fast_json.decode(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", " ", "{", "{}{}", "[1] x", "\ufeff{}", "\xa0{}", "nul", "'x'"])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        json.loads(text)
    with pytest.raises(ValueError):  # noqa: PT011
        fast_json.decode(text)


@pytest.mark.usefixtures("encoder")
def test_what_json_cannot_hold() -> None:
    circle: dict[str, Any] = {}
    circle["x"] = [circle]
    with pytest.raises(ValueError, match="Circular reference"):
        fast_json.encode(circle)
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            fast_json.encode({"x": number})
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        fast_json.encode({"x": object()})
    with pytest.raises(TypeError, match="keys must be"):
        fast_json.encode({(1, 2): 3})
    assert fast_json.encode({"x": 1}) == '{"x": 1}'


@pytest.mark.usefixtures("encoder")
def test_more_levels_than_python_can_go() -> None:
    deep: Any = 1
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        fast_json.encode(deep)
    with pytest.raises(RecursionError):
        fast_json.decode("[" * 200_000)
    while isinstance(deep, list):  # or its end would be a deep recursion, too
        deep = deep.pop()
