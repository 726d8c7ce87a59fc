"""What send() accepts, turned into immutable fragments: nothing that the caller changes later changes what is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .exceptions import InvalidArgument


def parts_of(data: Any) -> tuple[tuple[str | bytes, ...], int]:
    """The fragments of the message `data`, one if it is not an iterable, and the size of them all in bytes.

    Raises TypeError, InvalidArgument (an empty iterable) or UnicodeEncodeError (a lone surrogate).
    """
    if isinstance(data, str):
        return (data,), _text_size(data)
    if isinstance(data, bytes):
        return (data,), len(data)
    if _is_buffer(data):
        payload = _copied(data)
        return (payload,), len(payload)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise TypeError(
            f"send() takes str, bytes, a buffer or an iterable of these, not {type(data).__name__}; "
            "for an object, send json.dumps(...)"
        )
    return _fragments(data)


def _fragments(items: Iterable[Any]) -> tuple[tuple[str | bytes, ...], int]:
    parts: list[str | bytes] = []
    for item in items:
        if not isinstance(item, str) and not _is_buffer(item):
            raise TypeError(f"a fragment must be str, bytes or a buffer, not {type(item).__name__}")
        part = item if isinstance(item, (str, bytes)) else _copied(item)
        if parts and isinstance(part, str) is not isinstance(parts[0], str):
            raise TypeError("the fragments of one message must be all text or all binary")
        parts.append(part)
    if not parts:
        raise InvalidArgument("an empty iterable does not say whether the message is text or binary: send '' or b''")
    return tuple(parts), sum(_text_size(part) if isinstance(part, str) else len(part) for part in parts)


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _is_buffer(data: Any) -> bool:
    try:
        memoryview(data).release()
    except (TypeError, BufferError):
        return False
    return True


def _copied(data: Any) -> bytes:
    """The bytes of a buffer; of a view only its window, of a non-contiguous one its items in C order."""
    with memoryview(data) as view:
        if "O" in view.format:
            raise TypeError("send() cannot send an array of Python objects: its buffer holds addresses")
        return view.tobytes()
