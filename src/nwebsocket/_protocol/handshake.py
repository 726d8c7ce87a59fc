"""The opening handshake, without any input or output: our request, and the server's answer to it (RFC 6455 section 4).

wsproto builds the request and agrees to the answer; what it leaves unchecked is checked here before it gets to see it.
A plain request and a plain answer pass it by (`plain_handshake.py`); nobody can tell but by the time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wsproto import events, utilities
from wsproto.connection import ConnectionType
from wsproto.handshake import H11Handshake

from .._base.shortcuts import taken
from ..exceptions import HandshakeError, InvalidArgument
from .compression import DEFAULT, Deflate
from .deflate import DeflateExtension
from .http import HeadReader, show
from .plain_handshake import accepted_headers, request_of
from .response import Response
from .url import in_part

MAX_BODY_BYTES = 65_536
RIGHT_PLACE = "is it a WebSocket server, and the scheme (ws or wss) right?"

_PLAIN = taken("plain_handshake")
_KEY = re.compile(rb"\r\nSec-WebSocket-Key: (\S+)\r\n")


@dataclass(frozen=True, slots=True)
class Request:
    """What the opening handshake says.

    ``host``         the Host header, ASCII, with the port unless it is the scheme's: ``example.org``, ``[::1]:9000``
    ``target``       path and query, ASCII, percent-encoded
    ``headers``      further headers, none of them one that the handshake itself sets
    ``protocols``    the sub-protocols to offer
    ``compression``  the permessage-deflate to offer; None for none
    ``max_size``     the largest message to accept from the server, in bytes after decompression; None for any
    """

    host: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    protocols: tuple[str, ...] = ()
    compression: Deflate | None = DEFAULT
    max_size: int | None = 16 * 2**20


class _AsciiHost(str):
    """A host for wsproto, which encodes with IDNA: that refuses a label of 63 characters followed by a port."""

    __slots__ = ()

    def encode(self, encoding: str = "ascii", errors: str = "strict") -> bytes:
        return super().encode("ascii")


class Handshake:
    """The opening handshake: our request, and the server's answer to it.

    It lives as long as the connection, for its results; what led to them is dropped once the connection is open.

    ``fast_lane``  whether what is plain passes wsproto by
    """

    __slots__ = (
        "_body",
        "_body_room",
        "_heads",
        "_key",
        "_offered",
        "_phrase",
        "_plain",
        "_request",
        "_wsproto",
        "_wsproto_key",
        "extensions",
        "response",
        "subprotocol",
    )

    def __init__(self, request: Request, deflate: DeflateExtension, *, fast_lane: bool) -> None:
        self.response: Response | None = None
        self.subprotocol = ""
        self.extensions = ""
        self._request = request
        self._offered = [deflate] if request.compression else []
        self._plain = fast_lane and _PLAIN
        self._wsproto: H11Handshake | None = None  # there is none as long as everything is plain
        self._wsproto_key = b""
        self._key = b""
        self._heads = HeadReader("the server", f"the opening handshake; {RIGHT_PLACE}", HandshakeError)
        self._phrase = ""
        self._body = bytearray()
        self._body_room = MAX_BODY_BYTES

    def request(self) -> bytes:
        data = self._plain_request() if self._plain else None
        if data is None:
            self._wsproto, data, self._key = self._ask_wsproto()
            self._wsproto_key = self._key
        return data

    def _plain_request(self) -> bytes | None:
        request = self._request
        self._key = utilities.generate_nonce()
        headers = [
            ("Host", request.host),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", self._key.decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        if request.protocols:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(request.protocols)))
        headers += [("Sec-WebSocket-Extensions", f"{offer.name}; {offer.offer()}") for offer in self._offered]
        return request_of(request.target, [*headers, *request.headers])

    def _ask_wsproto(self) -> tuple[H11Handshake, bytes, bytes]:
        """Have wsproto make the request; return also the key in it, which is new each time."""
        request, wsproto = self._request, H11Handshake(ConnectionType.CLIENT)
        data = b""
        # ValueError, or a class of h11's, of which only wsproto should know: with the headers, cookies among them.
        with contextlib.suppress(Exception):
            data = wsproto.send(
                events.Request(
                    host=_AsciiHost(request.host),
                    target=request.target,
                    extensions=[*self._offered],
                    extra_headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in request.headers],
                    subprotocols=list(request.protocols),
                )
            )
        key = _KEY.search(data)
        if key is None:
            raise InvalidArgument("the request cannot be sent: host, target or a header is not fit for HTTP")
        return wsproto, data, key[1]

    def receive(self, data: bytes) -> bytes | None:
        """Return what follows an accepted 101, or None to ask for more."""
        if self.response is not None:
            self._read_body(data)
            return None
        if self._plain and not self._heads.rest and (trailing := self._accept_plain(data)) is not None:
            return trailing
        head = self._heads.receive(data)
        if head is None:
            return None
        self.response, self._phrase = Response(head.status, head.headers), head.phrase
        if head.status == 101:
            return self._accept()
        self._read_body(bytes(self._heads.rest), head.raw)
        return None

    def refusal(self) -> HandshakeError | None:
        if self.response is None or self.response.status == 101:
            return None
        status = f"{self.response.status} {self._phrase}".rstrip()
        return self._error(f"the server answered the opening handshake with HTTP {status}; 101 was expected")

    def _accept_plain(self, data: bytes) -> bytes | None:
        """Return what follows a plain 101; None, and nothing has changed, if wsproto is to judge the answer."""
        plain = accepted_headers(data, self._expected_accept())
        if plain is None:
            return None
        headers, named, trailing = plain
        subprotocol, extensions = named.get("sec-websocket-protocol"), named.get("sec-websocket-extensions")
        if subprotocol not in (self._request.protocols or (None,)):
            return None
        if extensions is not None and not self._agree_to(extensions):
            return None
        self.response = Response(101, headers)
        self._opened(subprotocol or "", extensions or "")
        return trailing

    def _agree_to(self, extension: str) -> bool:
        """Whether this is just the one extension that was offered, with parameters that it can have."""
        if extension.partition(";")[0] not in [offer.name for offer in self._offered]:
            return False
        try:
            self._offered[0].finalize(extension)
        except ValueError:
            return False
        return True

    def _opened(self, subprotocol: str, extensions: str) -> None:
        self.subprotocol, self.extensions = subprotocol, extensions
        del self._wsproto, self._request, self._offered, self._heads  # 4 KiB, mostly wsproto's and h11's

    def _accept(self) -> bytes:
        """Check a 101, all of it, and let wsproto agree."""
        try:
            self._check_upgrade()
            self._check_subprotocol()
            self._check_extensions()
            wsproto = self._asked_wsproto()
            wsproto.receive_data(self._head_for_wsproto())
        except (ValueError, utilities.ProtocolError) as error:
            raise self._error(f"the server's answer to the opening handshake is wrong: {error}") from error
        trailing = bytes(self._heads.rest)
        self._opened(self._single("Sec-WebSocket-Protocol") or "", ", ".join(self._all("Sec-WebSocket-Extensions")))
        return trailing

    def _check_upgrade(self) -> None:
        upgrade = self._single("Upgrade")
        if upgrade is None or upgrade.lower() != "websocket":
            raise ValueError(f"its Upgrade header is {show(upgrade)}; 'websocket' was expected")
        connection = ", ".join(self._all("Connection"))
        if "upgrade" not in (token.strip().lower() for token in connection.split(",")):
            raise ValueError(f"its Connection header is {show(connection or None)}; 'Upgrade' was expected in it")
        accept = self._single("Sec-WebSocket-Accept")
        expected = self._expected_accept()
        if accept != expected:
            raise ValueError(f"its Sec-WebSocket-Accept header is {show(accept)}; {expected!r} was expected")

    def _expected_accept(self) -> str:
        return utilities.generate_accept_token(self._key).decode()

    def _check_subprotocol(self) -> None:
        chosen, offered = self._single("Sec-WebSocket-Protocol"), self._request.protocols
        if chosen is None and offered:
            raise ValueError(f"it chose no sub-protocol; one of {_listed(offered)} was expected")
        if chosen is not None and chosen not in offered:
            raise ValueError(f"it chose the sub-protocol {in_part(chosen)}; {_listed(offered)} had been offered")

    def _check_extensions(self) -> None:
        elements = [element for value in self._all("Sec-WebSocket-Extensions") for element in value.split(",")]
        names = [element.partition(";")[0].strip() for element in elements]
        offered = [extension.name for extension in self._offered]
        for name in names:
            if name not in offered:
                ours = ", ".join(map(repr, offered)) or "none"
                raise ValueError(f"it uses the extension {show(name)}; {ours} had been offered")
            if names.count(name) > 1:
                raise ValueError(f"it uses the extension {name} {names.count(name)} times; once was expected")

    def _asked_wsproto(self) -> H11Handshake:
        """wsproto's side of the handshake; if the request was plain, it learns of it now."""
        if self._wsproto is None:
            self._wsproto, _, self._wsproto_key = self._ask_wsproto()
        return self._wsproto

    def _head_for_wsproto(self) -> bytes:
        """The 101 again, at its end its lists as a whole, and the answer to the key of wsproto's own request: wsproto
        heeds only the last header of several.
        """
        assert self.response is not None
        added = [(name, ", ".join(self._all(name))) for name in ("Connection", "Sec-WebSocket-Extensions")]
        added.append(("Sec-WebSocket-Accept", utilities.generate_accept_token(self._wsproto_key).decode()))
        headers = self.response.headers + [(name, value) for name, value in added if value]
        lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def _read_body(self, data: bytes, head: bytes = b"") -> None:
        """Gather the body of a refusal and raise it when it is complete, or when as much has come as may be: on the
        wire, because tiny chunks cost h11 far more time than space.
        """
        finished = not head and not data
        data = data[: self._body_room]
        self._body_room -= len(data)
        wsproto = self._asked_wsproto()
        try:
            wsproto.receive_data((head + data) or None)
        except utilities.ProtocolError:  # a broken body, or one cut off: the refusal stands nevertheless
            finished = True
        for event in wsproto.events():
            if isinstance(event, events.RejectData):
                self._body += event.data
                finished = finished or event.body_finished
        refusal = self.refusal()
        if (finished or not self._body_room) and refusal is not None:
            raise refusal

    def _all(self, name: str) -> list[str]:
        assert self.response is not None
        return self.response.get_all(name)

    def _single(self, name: str) -> str | None:
        values = self._all(name)
        if len(values) > 1:
            raise ValueError(f"it has {len(values)} headers {name}; one was expected")
        return values[0] if values else None

    def _error(self, message: str) -> HandshakeError:
        assert self.response is not None
        return HandshakeError(
            message, status=self.response.status, headers=list(self.response.headers), body=bytes(self._body)
        )


def _listed(offered: Sequence[str]) -> str:
    """What we have offered, for an error message; where a sub-protocol carries a token, not all of that."""
    return ", ".join(map(in_part, offered)) or "none"
