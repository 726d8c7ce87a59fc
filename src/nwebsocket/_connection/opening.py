"""From a URL to an open connection: connect, shake hands, follow redirects. In the loop thread, but for begin().

    Opening.begin() what needs no waiting
    Opening.run() ── _connect()     to the server itself, through a proxy (`tunnel.py`), or by a Unix socket; then TLS
               └──── _shake_hands() request and answer (`_protocol/connection.py`); cookies; again for each redirect
"""

from __future__ import annotations

import contextlib
import os
import ssl
from typing import NoReturn

from .._base.clock import monotonic
from .._base.log import Trace
from .._network.proxies import Proxy
from .._network.tcp import Attempt, begin_connecting, connect_unix, is_connected, take_over
from .._network.tls import default_tls_context, error_in_words
from .._network.transport import Transport, open_transport, start_tls_or_close
from .._network.tunnel import open_tunnel
from .._protocol.compression import deflate_of
from .._protocol.connection import Protocol
from .._protocol.cookies import header_from_jar, take_up
from .._protocol.handshake import RIGHT_PLACE, Request
from .._protocol.url import URL
from .._threads.safe_curio import TaskTimeout, before
from ..exceptions import ConnectionFailed, HandshakeError, InvalidArgument, InvalidURL, OpenTimeout, WebSocketError
from ..options import MAX_REDIRECTS, Options

REFUSAL_PATIENCE = 1.0
"""Seconds to wait for more of the body of a refused handshake."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Headers that belong to the origin they were meant for (the Fetch standard, and RFC 9110 section 15.4).
_BOUND_TO_ORIGIN = frozenset({"authorization", "cookie", "proxy-authorization"})

HeaderPairs = tuple[tuple[str, str], ...]


class Route(list[URL]):
    """The URLs that were asked: the one given, and where that was redirected to; as a str for errors."""

    def __str__(self) -> str:
        return " -> ".join(url.shown for url in self)


class Opening:
    """One attempt to open a connection; afterwards `transport` and `protocol` are those of the open connection."""

    def __init__(self, url: URL, protocols: tuple[str, ...], options: Options, trace: Trace) -> None:
        self._url = url
        # What has been begun on the way to the host of the URL: run() goes on with it, or abandon() closes it.
        self._begun: Attempt | None = None
        self._protocols = protocols
        self._options = options
        self._trace = trace
        self._first_headers = _with_authorization(options.request_headers(), url)
        self._jar = options.cookie_jar
        self._stage = "waiting for the loop thread"  # what is being done
        self.transport: Transport | None = None
        self.protocol: Protocol | None = None
        self.route = Route([url])
        # The first handshake, if its request is partly or wholly sent, what is left of that, and the bytes sent.
        self._asked: tuple[Protocol, bytes, int] | None = None

    def begin(self, proxy: Proxy | None) -> None:
        """Begin to connect, and send the request if the server has answered by then. Before run(), from any thread: the
        server may be at it while the loop thread is still waking up.
        """
        if self._options.sock is not None:
            self._begun = take_over(self._options.sock)
        elif proxy is None and self._options.unix is None:
            self._begun = begin_connecting(self._url.host, self._url.port)
            self._ask_at_once()

    def _ask_at_once(self) -> None:
        if self._begun is None or self._url.secure or self._trace.on or not is_connected(self._begun[0]):
            return
        self._begun = self._begun[0], 0  # whatever happens to it from now on
        try:
            headers = _with_cookie(self._first_headers, self._cookie(self._url))
            protocol = Protocol(self._request(self._url, headers))
            request = protocol.handshake()
            sent = self._begun[0].send(request)
        except (InvalidArgument, OSError):
            return  # run() meets it again
        self._asked = protocol, request[sent:], sent

    async def run(self) -> None:
        """Connect and shake hands, following redirects.

        Raises ConnectionFailed or one of its kinds; then, and when cancelled, nothing stays open.
        """
        url, headers = self._url, self._first_headers
        if self._trace.on:
            self._trace.begin(url.shown)
        asked: list[tuple[URL, str | None]] = []
        cookie = self._cookie(url)
        while True:
            asked.append((url, cookie))
            try:
                return await self._open(url, _with_cookie(headers, cookie))
            except HandshakeError as refusal:
                url = self._redirected(refusal)
                cookie = self._cookie(url)
                if any(url.href == before.href and cookie == sent for before, sent in asked):
                    raise _not_followed(refusal, f"the redirects go in a circle, back to {url.shown}") from None
            if url.origin != self.route[-1].origin:
                headers = tuple(pair for pair in headers if pair[0].lower() not in _BOUND_TO_ORIGIN)
            self.route.append(url)

    def _cookie(self, url: URL) -> str | None:
        """What the jar, if there is one, has for ``url``: more, perhaps, since the last answer."""
        return None if self._jar is None else header_from_jar(self._jar, url)

    def abandon(self) -> None:
        """Close what had begun and was not gone on with."""
        if self._begun is not None:
            self._begun[0].close()

    def timed_out(self) -> ConnectionFailed:
        """What to raise when run() was ended by its deadline: the refusal, if the head of one had come."""
        refusal = self.protocol.refusal() if self.protocol is not None else None
        limit = f"open_timeout={self._options.open_timeout:g} s"
        return refusal or OpenTimeout(f"{limit} has passed while {self._stage}")

    def _enter(self, stage: str) -> None:
        self._stage = stage
        if self._trace.on:
            self._trace("=", stage)

    async def _open(self, url: URL, headers: HeaderPairs) -> None:
        self.transport = self.protocol = None
        self.transport = transport = await self._connect(url)
        try:
            await self._shake_hands(transport, url, headers)
        except WebSocketError:
            await transport.close()
            raise
        except ssl.SSLError as error:
            await transport.close()
            raise transport.tls_error(error, url.host, url.port) from error
        except OSError as error:
            await transport.close()
            lost = f"the connection was lost during the opening handshake: {error_in_words(error)}; {RIGHT_PLACE}"
            raise ConnectionFailed(lost) from error
        except BaseException:
            await transport.abort()
            raise

    async def _connect(self, url: URL) -> Transport:
        begun, self._begun = self._begun, None
        proxy = self._options.proxy_for(url) if begun is None else None
        if self._options.unix is not None:
            self._enter(f"connecting to the Unix socket {self._options.unix!r}")
            transport = Transport(await connect_unix(os.fspath(self._options.unix)))
        elif proxy is not None:
            transport = await open_tunnel(proxy, url.host, url.port, tls=self._tls, stage=self._enter)
        else:
            tls = self._tls() if url.secure else None
            return await open_transport(url.host, url.port, tls=tls, begun=begun, stage=self._enter)
        if url.secure:
            self._enter(f"waiting for the TLS handshake with {url.host} port {url.port}")
            await start_tls_or_close(transport, self._tls(), url.host, url.port)
        return transport

    def _tls(self) -> ssl.SSLContext:
        return self._options.ssl or default_tls_context()

    async def _shake_hands(self, transport: Transport, url: URL, headers: HeaderPairs) -> None:
        self._enter("waiting for the server's answer to the opening handshake")
        if self._asked is not None:
            self.protocol, request, sent = self._asked
            self._asked = None
            transport.has_sent_already(sent)
        else:
            self.protocol = Protocol(self._request(url, headers))
            request = self.protocol.handshake()
        protocol = self.protocol
        if self._trace.on:
            self._trace("=", f"connected: {transport.describe()}")
            lines = [line.partition(": ") for line in request.decode("latin-1").split("\r\n")[1:-2]]
            self._trace.head(">", f"GET {url.shown} HTTP/1.1", [(name, value) for name, _, value in lines])
        transport.send(request)
        try:
            await self._receive_response(transport, protocol)
        finally:
            response = protocol.response
            if response is not None:
                if self._trace.on:
                    self._trace.head("<", f"HTTP/1.1 {response.status}", response.headers)
                if self._jar is not None:
                    take_up(self._jar, url, response.headers)

    def _request(self, url: URL, headers: HeaderPairs) -> Request:
        return Request(
            host=url.host_header,
            target=url.target,
            headers=_with_authorization(headers, url),
            protocols=self._protocols,
            compression=deflate_of(self._options.compression),
            max_size=self._options.max_size,
        )

    async def _receive_response(self, transport: Transport, protocol: Protocol) -> None:
        try:
            while not transport.flush():
                await transport.wait_writable()
        except OSError:  # what the server may have said before it hung up tells more
            self._enter("reading the server's answer to half a request")
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

    def _redirected(self, refusal: HandshakeError) -> URL:
        """Where a redirect leads; raises the refusal itself if it is none, or says why it is not followed."""
        url = self.route[-1]
        location = next((value for name, value in refusal.headers if name.lower() == "location"), None)
        if refusal.status not in _REDIRECTS or location is None:
            raise refusal
        try:
            target = url.join(location)
        except InvalidURL as error:
            problem = f"the server redirects to what is no WebSocket URL: {error}"
            raise _not_followed(refusal, problem) from None
        if url.secure and not target.secure:
            problem = f"the server redirects from wss to {target.shown}, which is not encrypted"
        elif len(self.route) > MAX_REDIRECTS:
            problem = f"more than {MAX_REDIRECTS} redirects, the last one to {target.shown}"
        elif self._options.sock is not None:
            problem = f"the server redirects to {target.shown}: there is no second socket to follow with"
        elif self._options.unix is not None and target.origin != url.origin:
            problem = f"the server redirects to {target.shown}: a Unix socket leads to one server only"
        else:
            self._trace("=", f"redirected to {target.shown}")
            return target
        raise _not_followed(refusal, problem)


def _with_authorization(headers: HeaderPairs, url: URL) -> HeaderPairs:
    """The headers with the credentials of the URL, unless they have others."""
    if url.credentials is None:
        return headers
    authorization = url.authorization()
    if authorization is None or any(name.lower() == "authorization" for name, _ in headers):
        return headers
    return ("Authorization", authorization), *headers


def _with_cookie(headers: HeaderPairs, cookie: str | None) -> HeaderPairs:
    return headers if cookie is None else (*headers, ("Cookie", cookie))


def _not_followed(refusal: HandshakeError, message: str) -> HandshakeError:
    return HandshakeError(message, status=refusal.status, headers=refusal.headers, body=refusal.body)
