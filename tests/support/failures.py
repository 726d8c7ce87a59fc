"""What goes wrong, and what the user sees: the table of docs/failures.md, from real runs.

    python tests/support/failures.py           print the table
    python tests/support/failures.py --write   put it there

A case is a peer, the client's options, and what the user does once the connection is open. `run_case()` opens a
WebSocket against it as a user would, and gives the row of the table. What differs from run to run is written as PORT,
KEY or N; the words of the system's libraries are left as they are.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import queue
import re
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
from peers import BINARY, CLOSE, CONTINUATION, LIMIT, PING, TEXT, Peer, RawServer, close_frame, frame

from nwebsocket import CloseEvent, ConnectionClosed, ProtocolError, WebSocket, WebSocketError

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
BEGIN, END = "<!-- failures -->", "<!-- /failures -->"
HEAD = "| what happens | what the user sees | the message |\n| --- | --- | --- |\n"

DEFLATE = "permessage-deflate"

Script = Callable[[Peer], object]
Place = contextlib.AbstractContextManager[tuple[str, dict[str, Any]]]
"""Where to connect, and options of the client that belong to the place, while it is there."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    seen: str
    message: str

    def __str__(self) -> str:
        message = f"`{self.message}`" if self.message else ""
        return "| {} | {} | {} |".format(*(cell.replace("|", "\\|") for cell in (self.name, self.seen, message)))


def receive_all(ws: WebSocket) -> None:
    """Read to the end, which is an error of some kind."""
    while True:
        ws.recv(LIMIT)


class Case(NamedTuple):
    """Something that goes wrong.

    ``name``     for people
    ``place``    gives the URL of a peer that does it
    ``options``  of the client
    ``use``      what the user does with the open connection
    ``slow``     takes more than a second
    """

    name: str
    place: Callable[[], Place]
    options: dict[str, Any]
    use: Callable[[WebSocket], object] = receive_all
    slow: bool = False


def run_case(case: Case) -> Row:
    """Open a WebSocket against the peer of `case` and return what its user sees."""
    closed: queue.SimpleQueue[CloseEvent] = queue.SimpleQueue()
    failed: queue.SimpleQueue[WebSocketError] = queue.SimpleQueue()
    with case.place() as (url, options):
        ws = WebSocket(url, **{"close_timeout": 0.1, **options, **case.options})
        ws.onopen, ws.onerror, ws.onclose = lambda: None, failed.put, lambda event: closed.put(event)
        try:
            case.use(ws.wait_open(LIMIT))
            raised = None
        except WebSocketError as seen:
            raised = seen
        event = ws.wait_closed(LIMIT)
    assert closed.get_nowait().code == event.code
    error = None if failed.empty() else failed.get()
    assert "secret" not in str(error)
    if error is None:
        return Row(case.name, f"`onclose`, {event.code}", stable(event.reason))
    assert event.code == 1006
    assert raised in (error, None)
    assert str(error).startswith(ws.url)
    told = f", tells the server {error.sent_code}" if isinstance(error, ProtocolError) else ""
    return Row(case.name, f"`{type(error).__name__}`{told}", stable(str(error).removeprefix(f"{ws.url}: ")))


def stable(message: str) -> str:
    """The message without what chance decides: ports, keys, and how much the system's buffers take."""
    message = re.sub(r"'[\w+/]{27}='", "KEY", message)
    message = re.sub(r"[\d,]+(?= bytes still)", "N", message)
    # OpenSSL 3.2 and later call it so.
    message = message.replace("record layer failure", "wrong version number")
    return re.sub(r"(\.1:|localhost:|port )\d{4,}", r"\1PORT", message)


# --- Places


def at(url: str, **options: Any) -> Callable[[], Place]:
    """An address that needs no server."""
    return lambda: contextlib.nullcontext((url, options))


@functools.cache
def authority() -> peers.Authority:
    """The certificate authority of all TLS servers here."""
    return peers.tls_contexts()


def server(script: Script, url: str = "ws://127.0.0.1:{}/") -> Callable[[], Place]:
    """A server that runs `script`."""

    @contextlib.contextmanager
    def place() -> Iterator[tuple[str, dict[str, Any]]]:
        with RawServer(script) as raw:
            yield url.format(raw.port), {}

    return place


def tls_server(
    script: Script,
    context: Callable[[], ssl.SSLContext] = lambda: authority().server(),
    client: Callable[[], ssl.SSLContext] = lambda: authority().client(),
    url: str = "wss://localhost:{}/",
) -> Callable[[], Place]:
    """A TLS server at localhost that runs `script`, and a client that trusts its certificate unless told otherwise."""

    @contextlib.contextmanager
    def place() -> Iterator[tuple[str, dict[str, Any]]]:
        with RawServer(script, ssl=context()) as raw:
            yield url.format(raw.port), {"ssl": client()}

    return place


def address(context: Callable[[], contextlib.AbstractContextManager[tuple[str, int]]]) -> Callable[[], Place]:
    """An address without a server."""

    @contextlib.contextmanager
    def place() -> Iterator[tuple[str, dict[str, Any]]]:
        with context() as (host, port):
            yield f"ws://{host}:{port}/", {}

    return place


def proxied(proxy: Callable[[], Place], url: str = "http://user:secret@{}/") -> Callable[[], Place]:
    """A server that is reached through this place, as a proxy with a user and a password."""

    @contextlib.contextmanager
    def place() -> Iterator[tuple[str, dict[str, Any]]]:
        with proxy() as (address, options):
            authority = address.partition("://")[2].rstrip("/")
            yield "ws://server.example/", {"proxy": url.format(authority), **options}

    return place


# --- Scripts: the opening handshake


def answer(head: str, body: bytes = b"") -> Script:
    """Answer the request with this head, its lines divided by line feeds."""

    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        peer.read_eof()

    return script


def refuse(status: str, body: bytes) -> Script:
    """Answer with an HTTP status and a body."""
    return answer(f"HTTP/1.1 {status}\nContent-Length: {len(body)}", body)


def redirect(location: str) -> Script:
    """Redirect every request there; PORT stands for the port of the server itself."""

    def script(peer: Peer) -> None:
        port = peer.headers["host"].rpartition(":")[2]
        target = location.replace("PORT", port).replace("NUMBER", str(peer.number))
        refuse(f"302 Found\nLocation: {target}", b"")(peer)

    return script


def accept(change: Callable[[list[str]], list[str]] = lambda lines: lines, *added: str) -> Script:
    """Answer with a 101 whose lines went through `change`."""

    def script(peer: Peer) -> None:
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {peers.accept_token(peer.headers['sec-websocket-key'])}",
        ]
        answer("\n".join([*change(lines), *added]))(peer)

    return script


def without(name: str) -> Callable[[list[str]], list[str]]:
    """Leave a header out."""
    return lambda lines: [line for line in lines if not line.startswith(name)]


def say(data: bytes) -> Script:
    """Answer the request with these bytes."""

    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(data)
        peer.read_eof()

    return script


def never_answer(peer: Peer) -> None:
    """Take the request and say nothing."""
    peer.stall()


def dribble(peer: Peer) -> None:
    """Send an answer too slowly: when the client has gone, one byte of it has come."""
    peer.send(b"H")
    peer.stall()


def cut_within_answer(peer: Peer) -> None:
    """Close TCP in the middle of the answer."""
    assert peer.request
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web")


def cut_before_answer(peer: Peer) -> None:
    """Close TCP instead of answering."""
    assert peer.request


# --- Scripts: proxies


def cut_after_connect(peer: Peer) -> None:
    """Connect to a server that closes at once."""
    assert peer.request
    peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
    peer.end()
    peer.read_eof()


def refuse_socks(peer: Peer) -> None:
    """Let everybody in, and connect to nothing (RFC 1928 section 6)."""
    peer.send(b"\5\0" + b"\5\2\0\1" + bytes(6))
    peer.read_eof()


def refuse_with_http(peer: Peer) -> None:
    """Answer as a web server that was asked in another protocol."""
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.read_eof()


# --- Scripts: TLS


def cut_within_tls(peer: Peer) -> None:
    """End the stream instead of saying ServerHello."""
    peer.end()
    peer.read_eof()


def expired() -> ssl.SSLContext:
    """A server's context with a certificate of yesterday."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    certificate = authority().root.issue_cert("localhost", not_before=now - 2 * day, not_after=now - day)
    certificate.configure_cert(context)
    return context


def old() -> ssl.SSLContext:
    """A server's context that knows no TLS 1.3."""
    context = authority().server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def modern() -> ssl.SSLContext:
    """A client's context that knows nothing but TLS 1.3."""
    context = authority().client()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def demanding() -> ssl.SSLContext:
    """A server's context that wants a certificate of the client."""
    context = authority().server()
    context.verify_mode = ssl.CERT_REQUIRED
    authority().root.configure_trust(context)
    return context


# --- Scripts: the open connection


def send(*frames: bytes, extensions: str | None = None) -> Script:
    """Open the connection, send these bytes, and wait for the client to go."""

    def script(peer: Peer) -> None:
        peer.accept(extensions=extensions)
        for data in frames:
            peer.send(data)
        peer.read_eof()

    return script


def converse(*frames: bytes) -> Script:
    """The same, but close the connection as one does."""
    return send(*frames, close_frame(1000, "done"))


def cut(peer: Peer) -> None:
    """Close TCP on an open connection, without a Close frame."""
    peer.accept()


def reset(peer: Peer) -> None:
    """Reset TCP on an open connection."""
    peer.accept()
    peer.reset()


def say_nothing(peer: Peer) -> None:
    """Open the connection and neither read nor write."""
    peer.accept()
    peer.stall()


def close_but_not_tcp(peer: Peer) -> None:
    """Send a Close frame and leave TCP open, also when the client has ended its side."""
    peer.accept(after=close_frame(1000, "done"))
    peer.hang()


def deflated(payload: bytes) -> bytes:
    """The payload of a compressed message (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


ZEROS = deflated(bytes(2**20)) + b"\0\0\xff\xff"
"""1 MiB in 1 KB, which may be repeated within a message."""

BOMB = frame(BINARY, 200 * ZEROS, rsv=4)


def fragments(payload: bytes, count: int) -> bytes:
    """The beginning of a message in many equal fragments."""
    return frame(TEXT, payload, fin=False) + count * frame(CONTINUATION, payload, fin=False)


def close_with(payload: bytes) -> Script:
    """Send a Close frame with this payload."""
    return send(frame(CLOSE, payload))


def with_code(code: int) -> Script:
    """Send a Close frame with this code."""
    return close_with(struct.pack("!H", code))


def long_length(size: int) -> bytes:
    """A frame whose length takes more bytes than it needs."""
    return bytes([0x80 | BINARY, 126]) + struct.pack("!H", size) + bytes(size)


def close_and_wait(ws: WebSocket) -> None:
    """Call close() and wait for the end."""
    ws.close(1000, "done")
    ws.wait_closed(LIMIT)


def send_too_much(ws: WebSocket) -> None:
    """Send until it blocks, and call close() from another thread."""
    ws.send(bytes(16 * 2**20))
    closer = threading.Thread(target=ws.close)
    closer.start()
    with contextlib.suppress(ConnectionClosed):
        ws.send("this waits for room")
    closer.join()


# --- The cases

WANTED = "407 Proxy Authentication Required"
WAMP = {"protocols": ["wamp"]}
PLAIN_TLS = "wss://localhost:{}/"

ADDRESS = [
    Case("the host is unknown", at("ws://chat..example/"), {}),
    Case("nobody listens on the port", address(peers.refusing_address), {}),
    Case("packets to the server vanish", address(peers.dead_address), {"open_timeout": 0.1}),
]

TLS = [
    Case("`wss`, but the server does not speak TLS", server(refuse_with_http, PLAIN_TLS), {}),
    Case("`ws`, but the server speaks TLS", tls_server(never_answer, url="ws://localhost:{}/"), {}),
    Case("the certificate is of an unknown CA", tls_server(never_answer, client=ssl.create_default_context), {}),
    Case("the certificate is of another host", tls_server(never_answer, lambda: authority().server("a.example")), {}),
    Case("the certificate has expired", tls_server(never_answer, expired), {}),
    Case("no TLS version in common", tls_server(never_answer, old, modern), {}),
    Case("the server wants a client certificate", tls_server(never_answer, demanding), {}),
    Case("cut during the TLS handshake", server(cut_within_tls, PLAIN_TLS), {}),
    Case("cut after it, without close_notify", tls_server(cut), {}),
]

PROXY = [
    Case("nobody listens at the proxy", proxied(address(peers.refusing_address)), {}),
    Case("the proxy wants a password", proxied(server(refuse(WANTED, b"")), "http://{}"), {}),
    Case("the proxy refuses the password", proxied(server(refuse(WANTED, b""))), {}),
    Case("the proxy forbids the server", proxied(server(refuse("403 Forbidden", b""))), {}),
    Case("the proxy does not reach the server", proxied(server(refuse("502 Bad Gateway", b""))), {}),
    Case("the proxy is no proxy", proxied(server(say(b"SSH-2.0-OpenSSH_9.9\r\n"))), {}),
    Case("the proxy says more than was asked", proxied(server(say(b"HTTP/1.1 200 OK\r\n\r\n220 smtp\r\n"))), {}),
    Case("the proxy does not answer", proxied(server(never_answer)), {"open_timeout": 0.1}),
    Case("the proxy closes instead of answering", proxied(server(cut_before_answer)), {}),
    Case("the proxy closes after its answer", proxied(server(cut_after_connect)), {}),
    Case(
        "the certificate of the proxy is of an unknown CA",
        proxied(tls_server(never_answer, client=ssl.create_default_context), "https://user:secret@{}/"),
        {},
    ),
    Case("a SOCKS proxy refuses", proxied(server(refuse_socks), "socks5h://{}"), {}),
    Case("a SOCKS proxy is none", proxied(server(refuse_with_http), "socks5h://{}"), {}),
    Case("there is no such Unix socket", at("ws://server.example/", unix="/nowhere.sock"), {}),
]

HANDSHAKE = [
    Case("the server does not answer", server(never_answer), {"open_timeout": 0.1}),
    Case("the server sends a byte a second", server(dribble), {"open_timeout": 0.1}),
    Case("the server closes instead of answering", server(cut_before_answer), {}),
    Case("the server closes within its answer", server(cut_within_answer), {}),
    Case("the server refuses (4xx)", server(refuse("403 Forbidden", b"no token")), {}),
    Case("the server fails (5xx)", server(refuse("503 Service Unavailable", b"come back later")), {}),
    Case("the answer is a web page", server(refuse("200 OK", b"<html>")), {}),
    Case("the answer is not HTTP", server(say(b"SSH-2.0-OpenSSH_9.9\r\n")), {}),
    Case("junk before the status line", server(say(b"\r\nHTTP/1.1 101 Switching Protocols\r\n")), {}),
    Case("a header of 1 MiB", server(answer("HTTP/1.1 101 OK\nX: " + 2**20 * "x")), {}),
    Case("a malformed header", server(answer("HTTP/1.1 101 OK\nUpgrade websocket")), {}),
    Case("redirects in a circle", server(redirect("ws://127.0.0.1:PORT/")), {}),
    Case("too many redirects", server(redirect("/NUMBER")), {}),
    Case("a redirect from `wss` to `ws`", tls_server(redirect("ws://localhost:PORT/")), {}),
    Case("a redirect to no WebSocket URL", server(redirect("ftp://example.org/")), {}),
    Case("no Upgrade header", server(accept(without("Upgrade"))), {}),
    Case("two Upgrade headers", server(accept(list, "Upgrade: websocket")), {}),
    Case("another Upgrade", server(accept(without("Upgrade"), "Upgrade: h2c")), {}),
    Case("no Connection header", server(accept(without("Connection"))), {}),
    Case("no Sec-WebSocket-Accept", server(accept(without("Sec-"))), {}),
    Case("a wrong Sec-WebSocket-Accept", server(accept(without("Sec-"), "Sec-WebSocket-Accept: c2VydmVy")), {}),
    Case("a sub-protocol that was not offered", server(accept(list, "Sec-WebSocket-Protocol: mqtt")), {}),
    Case("another sub-protocol than those offered", server(accept(list, "Sec-WebSocket-Protocol: mqtt")), WAMP),
    Case("none of the sub-protocols offered", server(accept()), WAMP),
    Case("an extension that was not offered", server(accept(list, "Sec-WebSocket-Extensions: x-zip")), {}),
    Case(
        "compression that was not offered",
        server(accept(list, f"Sec-WebSocket-Extensions: {DEFLATE}")),
        {"compression": None},
    ),
    Case(
        "a bad parameter of an extension",
        server(accept(list, f"Sec-WebSocket-Extensions: {DEFLATE}; server_max_window_bits=99")),
        {},
    ),
    Case(
        "an unknown parameter of an extension",
        server(accept(list, f"Sec-WebSocket-Extensions: {DEFLATE}; x=1")),
        {},
    ),
]

ENDINGS = [
    Case("the server closes", server(converse()), {}),
    Case("the server closes and leaves TCP open", server(close_but_not_tcp), {}, slow=True),
    Case("the server sends data after its Close frame", server(converse(close_frame(1000, "done"), b"\xff")), {}),
    Case("the stream ends without a Close frame", server(cut), {}),
    Case("the connection is reset", server(reset), {}),
    Case("silence", server(say_nothing), {"ping_interval": 0.05, "ping_timeout": 0.05}),
    Case("`close()` is not answered", server(say_nothing), {}, close_and_wait),
    Case("the server stops reading, then `close()`", server(say_nothing), {"write_limit": 2**20}, send_too_much),
    Case("a Close frame with a payload of 1 byte", server(close_with(b"\3")), {}),
    *(Case(f"a Close frame with the code {code}", server(with_code(code)), {}) for code in (0, 999, 1005, 1006, 1015)),
    Case("a Close frame whose reason is not UTF-8", server(close_with(b"\3\xe8\xff")), {}),
]

FRAMES = [
    Case("a reserved bit", server(send(frame(TEXT, b"hi", rsv=1))), {}),
    Case("RSV1 without compression", server(send(frame(TEXT, b"hi", rsv=4))), {}),
    Case("RSV1 in a continuation", server(send(frame(TEXT, fin=False), frame(0, rsv=4), extensions=DEFLATE)), {}),
    Case("a reserved op-code for data", server(send(frame(3))), {}),
    Case("a reserved op-code for control", server(send(frame(11))), {}),
    Case("a control frame in fragments", server(send(frame(PING, fin=False))), {}),
    Case("a control frame of 126 bytes", server(send(frame(PING, bytes(126)))), {}),
    Case("a continuation of nothing", server(send(frame(CONTINUATION))), {}),
    Case("a new message within a fragmented one", server(send(frame(TEXT, fin=False), frame(TEXT))), {}),
    Case("a masked frame", server(send(frame(TEXT, b"hi", mask=b"mask"))), {}),
    Case("a length in too many bytes", server(send(long_length(125))), {}),
    Case("a length of 2**63 bytes", server(send(frame(BINARY, length=2**63))), {}),
]

MESSAGES = [
    Case("text that is not UTF-8", server(send(frame(TEXT, b"caf\xe9"))), {}),
    Case("text that ends within a character", server(send(frame(TEXT, b"caf\xc3"))), {}),
    Case(
        "the same, in fragments",
        server(send(frame(TEXT, b"caf\xc3", fin=False), frame(CONTINUATION, b"e", fin=False))),
        {},
    ),
    Case("the same, compressed", server(send(frame(TEXT, deflated(b"caf\xc3"), rsv=4), extensions=DEFLATE)), {}),
    Case("damaged DEFLATE data", server(send(frame(TEXT, b"\xff\xff", rsv=4), extensions=DEFLATE)), {}),
    Case("a message over `max_size`", server(send(peers.binary(bytes(101)))), {"max_size": 100}),
    Case(
        "a fragmented message over `max_size`",
        server(send(frame(BINARY, bytes(60), fin=False), frame(CONTINUATION, bytes(60)))),
        {"max_size": 100},
    ),
    Case("a frame that announces 2**62 bytes", server(send(frame(BINARY, length=2**62))), {}),
    Case("a bomb: 200 MiB compressed to 207 KB", server(send(BOMB, extensions=DEFLATE)), {}),
    Case("a message in endless fragments", server(send(fragments(b"x", 131_072))), {}, slow=True),
    Case("a message in endless empty fragments", server(send(fragments(b"", 131_072))), {}, slow=True),
    Case("a flood of pings", server(converse(20_000 * peers.ping(b"?"))), {}),
    Case("a flood of pongs", server(converse(20_000 * peers.pong(b"!"))), {}),
]

CASES = [*ADDRESS, *PROXY, *TLS, *HANDSHAKE, *FRAMES, *MESSAGES, *ENDINGS]


# --- The page


def table() -> str:
    """The table, from a run of every case."""
    return HEAD + "".join(f"{run_case(case)}\n" for case in CASES)


def rows_of(page: str) -> list[str]:
    """The rows of its table."""
    shown = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown.startswith(HEAD)
    return shown.removeprefix(HEAD).splitlines()


def main() -> None:
    """Print the table, or put it into the page."""
    shown = table()
    if sys.argv[1:] != ["--write"]:
        print(shown, end="")
        return
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    PAGE.write_text(f"{before}{begin}\n{shown}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
