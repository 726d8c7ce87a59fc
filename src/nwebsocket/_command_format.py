"""How messages look: as lines of JSON for other programs, and harmless and easy to read on a terminal."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
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
    """A JSON object or array in as few lines of `width` columns as its structure allows; None if it is none.

    Nothing is changed but the spaces, and the escapes in strings.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(
            text, object_pairs_hook=_Members, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
        return _lay_out(value, width, "")
    except (ValueError, RecursionError):
        return None


def _lay_out(value: Any, width: int, indent: str) -> str:
    line = _on_one_line(value)
    if not isinstance(value, list) or not value or len(indent) + len(line) <= width:
        return line
    inner = indent + "  "
    if isinstance(value, _Members):
        parts = [f"{inner}{_quoted(name)}: {_lay_out(member, width, inner)}" for name, member in value]
    else:
        parts = [inner + _lay_out(item, width, inner) for item in value]
    return f"{line[0]}\n" + ",\n".join(parts) + f"\n{indent}{line[-1]}"


def _on_one_line(value: Any) -> str:
    if isinstance(value, _Members):
        return f"{{{_joined(f'{_quoted(name)}: {_on_one_line(member)}' for name, member in value)}}}"
    if isinstance(value, list):
        return f"[{_joined(map(_on_one_line, value))}]"
    return value if isinstance(value, _Number) else _quoted(value)


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
