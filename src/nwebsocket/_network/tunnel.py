"""Through a proxy to the server: HTTP CONNECT (RFC 9110 section 9.3.6), SOCKS 4, 4a and 5 (RFC 1928, RFC 1929).

    open_tunnel() ── open_transport() to the proxy ── CONNECT or SOCKS ── a byte stream to the server
                                                                     └─── `relay.py`, if the proxy is reached by TLS

Runs in the loop thread only. What SOCKS messages look like is known to socksio, which does no input or output; it comes
with the extra "proxy".
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

from .._protocol.http import Head, HeadReader, show
from ..exceptions import ConnectionFailed, ProxyError, TLSError
from .proxies import Proxy
from .relay import relayed
from .tcp import resolve
from .tls import error_in_words
from .transport import Transport, open_transport

_WRONG_PASSWORD = "it refuses this user name and password"
_NO_PASSWORD = "it wants a user name and a password: put them into its URL, before the host: //user:password@"


async def open_tunnel(
    proxy: Proxy, host: str, port: int, *, tls: Callable[[], ssl.SSLContext], stage: Callable[[str], None]
) -> Transport:
    """Return a stream to ``host``, which the proxy has connected to.

    ``tls``    makes the context for a proxy of scheme https
    ``stage``  is told what is being done

    Raises ProxyError, and TLSError about the proxy's certificate; then, and when cancelled, nothing stays open.
    """
    transport = await _reach(proxy, tls, stage)
    stage(f"waiting for the proxy {proxy.shown} to connect to {host} port {port}")
    try:
        dialogue = _Dialogue(transport, proxy, host, port)
        await _DIALOGUES[proxy.scheme](dialogue)
        dialogue.expect_silence()
        return await relayed(transport) if proxy.scheme == "https" else transport
    except OSError as error:
        await transport.abort()
        if isinstance(error, ConnectionFailed):
            raise
        raise ProxyError(f"the connection to the proxy {proxy.shown} was lost: {error_in_words(error)}") from error
    except BaseException:
        await transport.abort()
        raise


async def _reach(proxy: Proxy, tls: Callable[[], ssl.SSLContext], stage: Callable[[str], None]) -> Transport:
    context = tls() if proxy.scheme == "https" else None
    try:
        return await open_transport(
            proxy.host, proxy.port, tls=context, stage=lambda doing: stage(f"{doing}, the proxy {proxy.shown}")
        )
    except TLSError as error:
        raise TLSError(f"the proxy {proxy.shown}: {error}") from error.__cause__
    except ConnectionFailed as error:
        raise ProxyError(f"the proxy {proxy.shown} cannot be reached: {error}") from error.__cause__


class _Dialogue:
    """What is said to a proxy, and what it answers."""

    def __init__(self, transport: Transport, proxy: Proxy, host: str, port: int) -> None:
        self.proxy = proxy
        self.host = host
        self.port = port
        self._transport = transport
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        self._transport.send(data)
        while not self._transport.flush():
            await self._transport.wait_writable()

    async def read(self, size: int) -> bytes:
        """Return just so many bytes."""
        while len(self._received) < size:
            data = await self._transport.receive()
            if not data:
                raise ProxyError(f"the proxy {self.proxy.shown} closed the connection in the middle of its answer")
            self._received += data
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def read_head(self) -> Head:
        """Return the head of an HTTP answer."""
        reader = HeadReader(f"the proxy {self.proxy.shown}", "CONNECT", ProxyError)
        while (head := reader.receive(await self._transport.receive())) is None:
            pass
        self._received += reader.rest
        return head

    def expect_silence(self) -> None:
        """A WebSocket server does not speak first, nor one with TLS."""
        if self._received:
            raise ProxyError(f"the proxy {self.proxy.shown} sent what nobody asked for: {show(self._received)}")

    def refuse(self, why: str) -> NoReturn:
        raise ProxyError(f"{self.refusal}: {why}")

    @property
    def refusal(self) -> str:
        return f"the proxy {self.proxy.shown} did not connect to {self.host} port {self.port}"


async def _connect(dialogue: _Dialogue) -> None:
    host = f"[{dialogue.host}]" if ":" in dialogue.host else dialogue.host
    lines = [f"CONNECT {host}:{dialogue.port} HTTP/1.1", f"Host: {host}:{dialogue.port}"]
    authorization = dialogue.proxy.authorization()
    if authorization is not None:
        lines.append(f"Proxy-Authorization: {authorization}")
    await dialogue.send("\r\n".join([*lines, "", ""]).encode("ascii"))
    head = await dialogue.read_head()
    if 200 <= head.status < 300:
        return
    status = f"HTTP {head.status} {head.phrase}".rstrip()
    if head.status in (401, 407):  # tinyproxy answers a wrong password with 401
        status += "; " + (_NO_PASSWORD if authorization is None else _WRONG_PASSWORD)
    raise ProxyError(f"{dialogue.refusal}: {status}", status=head.status, headers=head.headers)


async def _socks5(dialogue: _Dialogue, *, resolve_here: bool) -> None:
    from socksio import ProtocolError, socks5

    host = await _address(dialogue.host, dialogue.port) if resolve_here else dialogue.host
    connection = socks5.SOCKS5Connection()
    try:
        await _authenticate(dialogue, connection)
        connection.send(socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, dialogue.port)))
        await dialogue.send(connection.data_to_send())
        reply: Any = connection.receive_data(await _read_reply(dialogue))
    except ProtocolError as error:
        raise ProxyError(f"the proxy {dialogue.proxy.shown} does not speak SOCKS 5: {error}") from error
    if reply.reply_code is not socks5.SOCKS5ReplyCode.SUCCEEDED:
        dialogue.refuse(_in_words(reply.reply_code))


async def _authenticate(dialogue: _Dialogue, connection: Any) -> None:
    from socksio import socks5

    methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if dialogue.proxy.credentials is not None:
        methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
    connection.send(socks5.SOCKS5AuthMethodsRequest(methods))
    await dialogue.send(connection.data_to_send())
    method = connection.receive_data(await _read_version(dialogue, 2)).method
    if method not in methods:
        dialogue.refuse(_WRONG_PASSWORD if dialogue.proxy.credentials is not None else _NO_PASSWORD)
    if method is socks5.SOCKS5AuthMethod.USERNAME_PASSWORD:
        connection.send(socks5.SOCKS5UsernamePasswordRequest(*dialogue.proxy.user_and_password()))
        await dialogue.send(connection.data_to_send())
        if not connection.receive_data(await dialogue.read(2)).success:
            dialogue.refuse(_WRONG_PASSWORD)


async def _read_version(dialogue: _Dialogue, size: int) -> bytes:
    data = await dialogue.read(size)
    if data[0] != 5:
        raise ProxyError(f"the proxy {dialogue.proxy.shown} does not speak SOCKS 5; its answer begins {show(data)}")
    return data


async def _read_reply(dialogue: _Dialogue) -> bytes:
    """The reply to a command (RFC 1928 section 6): its length is in its fourth byte, or in its fifth."""
    start = await _read_version(dialogue, 5)
    if start[1]:
        return start[:3] + b"\x01" + bytes(6)  # of a refusal only the code counts; some proxies send no more of it
    length = {1: 4, 3: 1 + start[4], 4: 16}.get(start[3])
    if length is None:
        raise ProxyError(f"the proxy {dialogue.proxy.shown} does not speak SOCKS 5; its answer begins {show(start)}")
    return start + await dialogue.read(length - 1 + 2)


async def _socks4(dialogue: _Dialogue, *, resolve_here: bool) -> None:
    from socksio import ProtocolError, socks4

    host, named = dialogue.host, False
    if ":" in host:
        dialogue.refuse("SOCKS 4 knows no IPv6 addresses; use socks5://")
    if resolve_here:
        host = await _address(host, dialogue.port, socket.AF_INET)
    else:
        named = not _is_ipv4(host)
    user, _ = dialogue.proxy.user_and_password()
    connection = socks4.SOCKS4Connection(user)
    request = socks4.SOCKS4ARequest if named else socks4.SOCKS4Request
    connection.send(request.from_address(socks4.SOCKS4Command.CONNECT, (host, dialogue.port), user))
    await dialogue.send(connection.data_to_send())
    try:
        reply = connection.receive_data(await dialogue.read(8))
    except ProtocolError as error:
        raise ProxyError(f"the proxy {dialogue.proxy.shown} does not speak SOCKS 4: {error}") from error
    if reply.reply_code is not socks4.SOCKS4ReplyCode.REQUEST_GRANTED:
        dialogue.refuse(_in_words(reply.reply_code))


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True


async def _address(host: str, port: int, family: int = socket.AF_UNSPEC) -> str:
    """The address of ``host`` that this machine would take first."""
    addresses = [sockaddr[0] for found, sockaddr in await resolve(host, port) if family in (found, socket.AF_UNSPEC)]
    if not addresses:
        raise ProxyError(f"the host {host!r} has no IPv4 address, and SOCKS 4 knows no other; use socks4a:// or socks5h://")
    return str(addresses[0])


def _in_words(code: Any) -> str:
    return str(code.name).lower().replace("_", " ")


_DIALOGUES: dict[str, Callable[[_Dialogue], Coroutine[Any, Any, None]]] = {
    "http": _connect,
    "https": _connect,
    "socks4": partial(_socks4, resolve_here=True),
    "socks4a": partial(_socks4, resolve_here=False),
    "socks5": partial(_socks5, resolve_here=True),
    "socks5h": partial(_socks5, resolve_here=False),
}
