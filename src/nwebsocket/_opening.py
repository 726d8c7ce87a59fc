"""From a URL to an open connection: connect, shake hands, follow redirects. Runs in the loop thread only."""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import NoReturn

from ._curio import TaskTimeout, before
from ._handshake import Request
from ._options import MAX_REDIRECTS, Options
from ._protocol import Protocol
from ._tcp import Attempt
from ._tls import default_tls_context
from ._transport import Transport, open_transport
from ._url import URL
from .exceptions import ConnectionFailed, HandshakeError, InvalidURL, OpenTimeout, WebSocketError

REFUSAL_PATIENCE = 1.0
"""Seconds to wait for more of the body of a refused handshake."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Headers that belong to the origin they were meant for (the Fetch standard, and RFC 9110 section 15.4).
_BOUND_TO_ORIGIN = frozenset({"authorization", "cookie", "proxy-authorization"})

Headers = tuple[tuple[str, str], ...]


class Opening:
    """One attempt to open a connection; afterwards `transport` and `protocol` are those of the open connection.

    ``begun``  what begin_connecting() has returned: run() goes on with it, or abandon() closes it
    """

    def __init__(self, url: URL, protocols: tuple[str, ...], options: Options, begun: Attempt | None = None) -> None:
        self._url = url
        self._begun = begun  # towards the host of the URL
        self._protocols = protocols
        self._options = options
        self.transport: Transport | None = None
        self.protocol: Protocol | None = None

    async def run(self) -> None:
        """Connect and shake hands, following redirects.

        Raises ConnectionFailed or one of its kinds; then, and when cancelled, nothing stays open.
        """
        url, headers = self._url, self._options.request_headers()
        chain = [url]
        while True:
            try:
                return await self._open(url, headers)
            except HandshakeError as refusal:
                url = self._redirected(url, refusal, chain)
            if url.origin != chain[-1].origin:
                headers = tuple(pair for pair in headers if pair[0].lower() not in _BOUND_TO_ORIGIN)
            chain.append(url)

    def abandon(self) -> None:
        """Close what had begun and was not gone on with."""
        if self._begun is not None:
            self._begun[0].close()

    def timed_out(self) -> ConnectionFailed:
        """What to raise when run() was ended by its deadline: the refusal, if the head of one had come."""
        refusal = self.protocol.refusal() if self.protocol is not None else None
        stage = "the server was not connected" if self.transport is None else "the server did not finish the handshake"
        return refusal or OpenTimeout(f"{self._url.href}: {stage} within open_timeout={self._options.open_timeout:g} s")

    async def _open(self, url: URL, headers: Headers) -> None:
        self.transport = self.protocol = None
        tls = (self._options.ssl or default_tls_context()) if url.secure else None
        begun, self._begun = self._begun, None
        self.transport = transport = await open_transport(url.host, url.port, tls=tls, begun=begun)
        try:
            self.protocol = protocol = Protocol(self._request(url, headers))
            transport.send(protocol.handshake())
            while not transport.flush():
                await transport.wait_writable()
            await self._receive_response(transport, protocol)
        except WebSocketError:
            await transport.close()
            raise
        except OSError as error:
            await transport.close()
            lost = ConnectionFailed(f"{url.href}: the connection was lost during the handshake: {error}")
            raise lost from error
        except BaseException:
            await transport.abort()
            raise

    def _request(self, url: URL, headers: Headers) -> Request:
        authorization = url.authorization()
        if authorization and not any(name.lower() == "authorization" for name, _ in headers):
            headers = (("Authorization", authorization), *headers)
        return Request(
            host=url.host_header,
            target=url.target,
            headers=headers,
            protocols=self._protocols,
            compression=self._options.compression is not None,
            max_size=self._options.max_size,
        )

    async def _receive_response(self, transport: Transport, protocol: Protocol) -> None:
        while not protocol.receive_response(await transport.receive()):
            if protocol.refusal() is not None:
                await self._receive_refusal(transport, protocol)

    async def _receive_refusal(self, transport: Transport, protocol: Protocol) -> NoReturn:
        """Wait a moment for the body; raises HandshakeError with what has come of it."""
        with contextlib.suppress(TaskTimeout):
            while True:
                data = await before(monotonic() + REFUSAL_PATIENCE, transport.receive())
                protocol.receive_response(data)
        refusal = protocol.refusal()
        assert refusal is not None
        raise refusal

    def _redirected(self, url: URL, refusal: HandshakeError, chain: list[URL]) -> URL:
        """Where a redirect leads; raises the refusal itself if it is none, or says why it is not followed."""
        location = next((value for name, value in refusal.headers if name.lower() == "location"), None)
        if refusal.status not in _REDIRECTS or location is None:
            raise refusal
        path = " -> ".join(earlier.href for earlier in chain)
        try:
            target = url.join(location)
        except InvalidURL as error:
            raise _not_followed(refusal, f"{path} redirects to what is no WebSocket URL: {error}") from error
        if url.secure and not target.secure:
            raise _not_followed(refusal, f"{path} redirects from wss to {target.href}, which is not encrypted")
        if len(chain) > MAX_REDIRECTS:
            raise _not_followed(refusal, f"more than {MAX_REDIRECTS} redirects: {path} -> {target.href}")
        return target


def _not_followed(refusal: HandshakeError, message: str) -> HandshakeError:
    return HandshakeError(message, status=refusal.status, headers=refusal.headers, body=refusal.body)
