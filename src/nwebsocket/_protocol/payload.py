"""What send() accepts, turned into immutable fragments: nothing that the caller changes later changes what is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..exceptions import InvalidArgument

TEXT = 0x1
BINARY = 0x2
"""The opcodes of RFC 6455 section 5.2."""

Message = tuple[int, bytes | tuple[bytes, ...], int]
"""A message to be sent: TEXT (its payload is UTF-8) or BINARY; the payload, a tuple of several if it shall go in
fragments; its size in bytes. A plain tuple, for a hundred thousand a second are made.
"""

Buffer = bytes | bytearray | memoryview
"""Frames, as they are given to the transport."""


_NAMES_IN_FORMAT = re.compile(":[^:]*:")
"""Those of the fields of a structured array (PEP 3118)."""

_ADDRESSES = re.compile(r"[O&PXz]|Z(?![fdg])")
"""Python objects, pointers to data and to functions, C strings of bytes and, but for complex numbers, of characters."""


def message_of(data: Any) -> Message:
    """The message that `data` stands for: fragmented if it is a list, a tuple or an iterator.

    Raises TypeError, InvalidArgument (an empty one of these) or UnicodeEncodeError (a lone surrogate).
    """
    if isinstance(data, str):
        text = data.encode()
        return TEXT, text, len(text)
    if type(data) is bytes:
        return BINARY, data, len(data)
    if _is_buffer(data):
        payload = _copied(data)
        return BINARY, payload, len(payload)
    if isinstance(data, (list, tuple, Iterator)):
        return _fragmented(data)
    raise TypeError(
        f"send() takes str, bytes-like, or a list, a tuple or an iterator of these, not {type(data).__name__}; "
        f"send {_instead(data)}"
    )


def _instead(data: Any) -> str:
    """What a user may have meant, as an expression."""
    if hasattr(data, "to_json"):
        return "its .to_json(...)"  # of pandas, polars and others
    if hasattr(data, "tobytes") and not isinstance(data, memoryview):
        return "its .tobytes(), or json.dumps(...) of its .item()"  # a NumPy scalar
    try:
        memoryview(data).release()
    except ValueError as error:  # released, or closed
        return f"it before it is of no use any more ({error})"
    except (TypeError, BufferError):
        return "json.dumps(...) of it"
    return "bytes(...) of it"  # a ctypes.Structure


def _fragmented(items: Iterable[Any]) -> Message:
    opcode, fragments = 0, []
    for item in items:
        opcode_here, fragment = _fragment(item)
        if opcode not in (0, opcode_here):
            raise TypeError("the fragments of one message must be all text or all binary")
        opcode = opcode_here
        fragments.append(fragment)
    if not fragments:
        raise InvalidArgument("an empty iterable does not say whether the message is text or binary: send '' or b''")
    return opcode, tuple(fragments), sum(map(len, fragments))


def _fragment(item: Any) -> tuple[int, bytes]:
    if isinstance(item, str):
        return TEXT, item.encode()
    if not _is_buffer(item):
        raise TypeError(f"a fragment must be str, bytes or a buffer, not {type(item).__name__}")
    return BINARY, item if type(item) is bytes else _copied(item)


def _is_buffer(data: Any) -> bool:
    try:
        with memoryview(data) as view:
            return view.ndim > 0  # a single number of NumPy's has a buffer, too, and nobody means its bytes
    except (TypeError, BufferError, ValueError):
        return False


def _copied(data: Any) -> bytes:
    """The bytes of a buffer; of a view only its window, of a non-contiguous one its items in C order."""
    with memoryview(data) as view:
        if _ADDRESSES.search(_NAMES_IN_FORMAT.sub("", view.format)):
            raise TypeError("send() cannot send an array of Python objects or of pointers: its buffer holds addresses")
        return view.tobytes()
