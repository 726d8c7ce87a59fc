"""What wsproto says is wrong with a frame, in words that say what came and what may come (RFC 6455 section 5)."""

from __future__ import annotations

import re

_IN_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"Invalid opcode (\w+)", r"a frame has the reserved op-code \1"),
        (r"Reserved bit set.*", "a frame has a reserved bit set to which no extension in use gives a meaning"),
        (r"Invalid attempt to fragment.*", "a control frame came in fragments; it must be whole"),
        (r"Control frame with payload len > 125", "a control frame has more than 125 bytes"),
        (r"Payload length used (\d) bytes.* (\d) would.*", r"a frame's length is written in \1 bytes; \2 would do"),
        (r"8-byte payload length.*", "a frame's length is 2**63 bytes or more"),
        (r".*unexpected masked frame", "a frame is masked; a server's must not be"),
        (r"unexpected CONTINUATION", "a continuation came, and there is no message to continue"),
        (r"expected CONTINUATION.*", "a message began within a fragmented one; its continuation was expected"),
        (r"CLOSE with 1 byte.*", "a Close frame has a payload of 1 byte; none, or 2 bytes and more were expected"),
        (r"CLOSE with .*|remote CLOSE.*", "a Close frame has the code {close_code}, which must not be sent"),
        (r"Error decoding CLOSE.*", "the reason in a Close frame is not UTF-8"),
        (r"'utf-8' codec.*", "a text message is not UTF-8; other data belongs in a binary message"),
    )
)


def fault_in_words(fault: str, close_code: int) -> str:
    """Say it for people; `close_code` is that of the last Close frame, if there was one."""
    for pattern, words in _IN_WORDS:
        match = pattern.fullmatch(fault)
        if match is not None:
            return match.expand(words).format(close_code=close_code)
    return fault
