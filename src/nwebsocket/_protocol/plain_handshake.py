"""The plain opening handshake past wsproto, which takes ten times as long for it. Pure.

    target, headers ──> request_of() ──> bytes          bytes ──> accepted_headers() ──> headers of a 101, what follows

wsproto is the authority, as it is for frames (`fast_lane.py`): what is written here is what it would write, what is
accepted here is what it would accept in the same way. For all else both say None, and `handshake.py` asks wsproto.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

HeaderList = list[tuple[str, str]]

_MAX_HEAD_BYTES = 4096

# RFC 9110 sections 5.6.2 (token) and 5.5 (field value), but for tabs, blanks in a row, what is not ASCII, and headers
# that tell how long a body is.
_NO_BODY = "(?!(?i:content-length|transfer-encoding):)"
_FIELDS = rf"(?:{_NO_BODY}[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [!-~]+(?: [!-~]+)*\r\n)+\r\n"
_REQUEST = re.compile(rf"GET [!-~]+ HTTP/1\.1\r\n{_FIELDS}")
_ANSWER = re.compile(rf"HTTP/1\.1 101(?: [!-~]+)*\r\n{_FIELDS}".encode())
_FIELD = re.compile(r"\n([^:\r]+): ([^\r]+)")


def request_of(target: str, headers: Sequence[tuple[str, str]]) -> bytes | None:
    """Return the bytes of a GET request, or None if it is not a plain one."""
    text = "\r\n".join([f"GET {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers], "", ""])
    if text.count("\n") != len(headers) + 2 or not _REQUEST.fullmatch(text):
        return None
    return text.encode("ascii")


def accepted_headers(data: bytes, accept: str) -> tuple[HeaderList, dict[str, str], bytes] | None:
    """Return the headers of a 101 that upgrades to a WebSocket, as they were written and by their names in lower case,
    and what follows them; None if ``data`` does not begin with a plain one, all of it.

    ``accept``  the value of Sec-WebSocket-Accept that the key of the request asks for (RFC 6455 section 4.2.2)
    """
    head = _ANSWER.match(data, 0, _MAX_HEAD_BYTES)
    if head is None:
        return None
    headers: HeaderList = _FIELD.findall(head[0].decode("ascii"))
    named = {name.lower(): value for name, value in headers}
    upgrades = named.get("upgrade", "").lower() == "websocket" and named.get("connection", "").lower() == "upgrade"
    if len(named) < len(headers) or not upgrades or named.get("sec-websocket-accept") != accept:
        return None
    return headers, named, data[head.end() :]
