"""How the command shows messages: harmless, laid out, and as JSON."""

from __future__ import annotations

import base64
import json
import sys
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nwebsocket._cli.format import MAX_CHARACTERS, MAX_LINES, as_json, harmless, lay_out_json, show

NOON = datetime(2026, 1, 2, 13, 0, 0, 250_000, timezone(timedelta(hours=1)))


def test_json_has_the_time_in_utc_the_type_and_the_data() -> None:
    assert as_json("né", NOON) == '{"time": "2026-01-02T12:00:00.250Z", "type": "text", "data": "né"}'
    binary = json.loads(as_json(b"\xff\x00", NOON))
    assert (binary["type"], base64.b64decode(binary["data"])) == ("binary", b"\xff\x00")


@pytest.mark.slow
@settings(max_examples=30)
@given(st.text())
def test_json_is_one_harmless_line_that_says_the_same(text: str) -> None:
    line = as_json(text, NOON)
    assert harmless(line, lines=False) == line
    assert json.loads(line)["data"] == text


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert harmless("\x1b]0;owned\x07\x9b2J\r\x7f") == r"\x1b]0;owned\x07\x9b2J\x0d\x7f"
    assert harmless("\u202egnp.exe\u2066\ufeff") == r"\u202egnp.exe\u2066\ufeff"
    assert harmless("é \N{WOMAN}\u200d\N{MICROSCOPE}\n\tß") == "é \N{WOMAN}\u200d\N{MICROSCOPE}\n\tß"
    assert harmless("a\nb\tc", lines=False) == r"a\x0ab\x09c"


@settings(max_examples=30)
@given(st.text(), st.integers(1, 200))
def test_what_is_shown_is_harmless_and_its_escapes_are_marked(text: str, width: int) -> None:
    shown = show(text, width)
    assert harmless(shown.text) == shown.text
    assert all(shown.text[start:end][:2] in (r"\x", r"\u") for start, end in shown.escaped)


def test_short_json_stays_on_a_line_and_long_json_is_laid_out() -> None:
    text = '{"type":"message","to":["ana","ben"],"n":1.50}'
    assert show(text, 80).text == '{"type": "message", "to": ["ana", "ben"], "n": 1.50}'
    assert show(text, 30).text == '{\n  "type": "message",\n  "to": ["ana", "ben"],\n  "n": 1.50\n}'
    assert show(text, 10).text.splitlines()[2:6] == ['  "to": [', '    "ana",', '    "ben"', "  ],"]


def test_the_layout_changes_no_number_and_drops_no_member() -> None:
    text = '{"a": 1e999, "a": 0.10, "b": 123456789012345678901234567890, "c": NaN, "d": "\\u00e9\\n"}'
    assert lay_out_json(text, 200) == text.replace("\\u00e9", "é")


_SCALARS = st.none() | st.booleans() | st.integers() | st.text()
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@settings(max_examples=30)
@given(st.lists(_JSON) | st.dictionaries(st.text(), _JSON), st.integers(1, 60))
def test_the_layout_says_the_same(value: object, width: int) -> None:
    laid_out = lay_out_json(json.dumps(value), width)
    assert laid_out is not None
    assume(laid_out.count("\n") < MAX_LINES)  # there are no more
    assert json.loads(laid_out) == value


@pytest.mark.parametrize("width", [20, 200])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_deeply_nested_json_costs_no_more_for_each_level(start: str, end: str, width: int) -> None:
    def calls_for(levels: int) -> int:
        text = start * levels + "[[],{}" + ",[1]" * 2000 + "]" + end * levels
        count = [0]
        sys.setprofile(lambda *_: count.__setitem__(0, count[0] + 1))
        try:
            laid_out = lay_out_json(text, width)
        finally:
            sys.setprofile(None)
        assert laid_out is not None
        assert len(laid_out.splitlines()) == MAX_LINES + 1
        return count[0]

    assert calls_for(320) < 1.5 * calls_for(80)


@pytest.mark.parametrize("text", ["12", '"x"', "{not json}", "[1,", "[" * 10_000, "[/red]", ""])
def test_what_is_no_json_object_is_shown_as_it_is(text: str) -> None:
    shown = show(text, 80)
    assert (shown.kind, shown.text) == ("text", text)


def test_long_messages_are_cut() -> None:
    shown = show("x" * (MAX_CHARACTERS + 1), 80)
    assert (len(shown.text), shown.note) == (MAX_CHARACTERS, "cut; 20,001 characters in all")
    shown = show("\n" * 100, 80)
    assert (shown.text.count("\n"), shown.note) == (MAX_LINES - 1, "cut; 100 characters in all")
    shown = show(bytes(300), 80)
    assert (shown.text.count("\n"), shown.note) == (15, "cut; 300 bytes in all")


def test_no_line_of_a_message_begins_where_the_marks_stand() -> None:
    assert show("a\n> b", 80).plain() == "< a\n  > b"
    assert show("", 80).plain() == "< \n  (an empty message)"


def test_bytes_are_shown_as_hex() -> None:
    assert show(b"\xc0\xff A", 80).plain() == "< c0 ff 20 41  .. A\n  (4 bytes)"
    assert show(b"0123456789abcdefg", 80).text.splitlines()[1] == f"0010  {'67':47}  g"
    assert show(b"", 80).note == "0 bytes"
