"""How messages look: as lines of JSON for other programs, and harmless and easy to read on a terminal."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

MAX_CHARACTERS = 20_000
MAX_LINES = 60
"""So much of a message is shown on a terminal."""

_BYTES_SHOWN = 256
_BYTES_A_LINE = 16

# Controls, among them those that begin an escape sequence, and what is invisible or turns the order of the text round;
# but for the joiners, which make one picture of several emojis.
_INVISIBLE = "\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
_HARMFUL = re.compile(f"[\x00-\x1f{_INVISIBLE}]")
_HARMFUL_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_INVISIBLE}]")


class Shown(NamedTuple):
    """A message made ready for a terminal.

    ``kind``    "json", "text" or "binary"
    ``text``    harmless; of one or more lines
    ``escaped`` where in the text characters are shown by their escapes: (start, end)
    ``note``    what is to be said about it, or ""
    """

    kind: str
    text: str
    escaped: tuple[tuple[int, int], ...]
    note: str

    def plain(self) -> str:
        """All of it, in lines that begin with a mark."""
        return indented("< ", self.text) + (f"\n  ({self.note})" if self.note else "")


def indented(mark: str, text: str) -> str:
    """The text after the mark; no line of it begins where the marks stand."""
    return mark + text.replace("\n", "\n" + " " * len(mark))


def harmless(text: str, *, lines: bool = True) -> str:
    """The text with what a terminal would obey, or would not show, as escapes; line ends and tabs stay in `lines`."""
    return (_HARMFUL_IN_LINES if lines else _HARMFUL).sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def as_json(message: str | bytes, received: datetime) -> str:
    """The message as a JSON object on one line, with nothing in it that a terminal would obey."""
    time = received.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    text = isinstance(message, str)
    data = message if isinstance(message, str) else base64.b64encode(message).decode()
    line = json.dumps({"time": time, "type": "text" if text else "binary", "data": data}, ensure_ascii=False)
    return _HARMFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def show(message: str | bytes, width: int) -> Shown:
    """Make a message ready for a terminal of so many columns."""
    if isinstance(message, bytes):
        return _show_bytes(message)
    start = message[:MAX_CHARACTERS]
    layout = lay_out_json(message, width) if message == start else None
    kind = "text" if layout is None else "json"
    lines = (start if layout is None else layout).split("\n")
    cut = message != start or len(lines) > MAX_LINES
    text, escaped = _escaped("\n".join(lines[:MAX_LINES]))
    note = f"cut; {count(len(message), 'character')} in all" if cut else "" if message else "an empty message"
    return Shown(kind, text, escaped, note)


def _escaped(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The harmless text, and where in it the escapes are."""
    pieces, spans, length, end = [], [], 0, 0
    for match in _HARMFUL_IN_LINES.finditer(text):
        before, escape = text[end : match.start()], _escape(match[0])
        pieces += [before, escape]
        length += len(before)
        spans.append((length, length + len(escape)))
        length += len(escape)
        end = match.end()
    return "".join([*pieces, text[end:]]), tuple(spans)


def _show_bytes(data: bytes) -> Shown:
    starts = range(0, min(len(data), _BYTES_SHOWN), _BYTES_A_LINE)
    rows = [data[start : start + _BYTES_A_LINE] for start in starts]
    if len(rows) == 1:
        text = f"{data.hex(' ')}  {_readable(data)}"
    else:
        width = 3 * _BYTES_A_LINE - 1
        lines = [f"{n:04x}  {row.hex(' '):{width}}  {_readable(row)}" for n, row in zip(starts, rows, strict=True)]
        text = "\n".join(lines)
    note = count(len(data), "byte")
    return Shown("binary", text, (), f"cut; {note} in all" if len(data) > _BYTES_SHOWN else note)


def _readable(row: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)


def count(number: int, what: str) -> str:
    """The number, with thousands separated, and what it is a number of."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class _Members(list[Any]):
    """An object's members, in order, those of the same name as well."""


class _Number(str):
    """A number as it was written."""


def lay_out_json(text: str, width: int) -> str | None:
    """A JSON object or array in as few lines of `width` columns as its structure allows, and no more of them than one
    beyond `MAX_LINES`; None if it is none.

    Nothing is changed but the spaces, and the escapes in strings.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(
            text, object_pairs_hook=_Members, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
        layout = _Layout(width)
        with contextlib.suppress(_Enough):
            layout.add(value)
        return "\n".join(layout.lines)
    except (ValueError, RecursionError):
        return None


class _Layout:
    """Lines, of which there are no more than can be shown."""

    def __init__(self, width: int) -> None:
        self.lines: list[str] = []
        self._width = width

    def add(self, value: Any, indent: str = "", before: str = "", after: str = "") -> None:
        """Add a value, with its name before it and a comma after it."""
        line = _on_one_line(value, self._width - len(indent)) if isinstance(value, list) else _leaf(value)
        if line is not None:
            self._add_line(f"{indent}{before}{line}{after}")
            return
        named = isinstance(value, _Members)
        start, end = "{}" if named else "[]"
        self._add_line(f"{indent}{before}{start}")
        for number, item in enumerate(value, 1):
            comma = "," if number < len(value) else ""
            name, item = (f"{_quoted(item[0])}: ", item[1]) if named else ("", item)
            self.add(item, f"{indent}  ", name, comma)
        self._add_line(f"{indent}{end}{after}")

    def _add_line(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) > MAX_LINES:
            raise _Enough


class _Enough(Exception):
    """There are more lines than will be shown."""


def _on_one_line(value: Any, room: int) -> str | None:
    """None if it takes more than so many characters, which costs no more than to fill them."""
    if not isinstance(value, list):
        line = _leaf(value) if not isinstance(value, str) or len(value) <= room else None
        return line if line is not None and len(line) <= room else None
    if value and room < 2:
        return None
    named = isinstance(value, _Members)
    parts: list[str] = []
    left = room - 2
    for item in value:
        name, item = (f"{_quoted(item[0])}: ", item[1]) if named else ("", item)
        part = _on_one_line(item, left - len(name))
        if part is None:
            return None
        parts.append(name + part)
        left -= len(name) + len(part) + 2
        if left < -2:  # the last has no comma behind it
            return None
    line = ", ".join(parts)
    return f"{{{line}}}" if named else f"[{line}]"


def _leaf(value: Any) -> str:
    return value if isinstance(value, _Number) else _quoted(value)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
