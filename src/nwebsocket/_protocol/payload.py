"""A message on its way out, as all rooms pass it on."""

from __future__ import annotations

TEXT = 0x1
BINARY = 0x2
"""The opcodes of RFC 6455 section 5.2."""

Message = tuple[int, bytes | tuple[bytes, ...], int]
"""A message to be sent: TEXT (its payload is UTF-8) or BINARY; the payload, a tuple of several if it shall go in
fragments; its size in bytes. A plain tuple, for a hundred thousand a second are made.
"""

Buffer = bytes | bytearray | memoryview
"""Frames, as they are given to the transport."""
