"""The server of the stress: python -m stressing.server

Prints two URLs as JSON: of an echo server with compression, and of one where the path says what becomes of each
connection.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading

import peers
from peers import BINARY, CLOSE, PING, TEXT, Peer, RawServer


def script(peer: Peer) -> None:
    """Do what the path says: one of the functions below."""
    with contextlib.suppress(EOFError, OSError):  # the client has gone, or something has come over it
        FATES[peer.path.strip("/")](peer)


def echo(peer: Peer, frames: float = float("inf")) -> None:
    """Send so many messages back, and answer pings and a Close frame."""
    peer.accept()
    while frames > 0:
        received = peer.read_frame()
        frames -= 1
        if received.opcode == CLOSE:
            peer.send(peers.frame(CLOSE, received.payload))
            return
        if received.opcode == PING:
            peer.send(peers.pong(received.payload))
        elif received.opcode in (TEXT, BINARY) and received.fin:
            peer.send(peers.frame(received.opcode, received.payload))


def chatter(peer: Peer) -> None:
    """Send messages without being asked."""
    peer.accept(after=b"".join(peers.text(str(number)) for number in range(40)))
    peer.read_until_close()
    peer.send(peers.close_frame(1000))


def refuse(peer: Peer) -> None:
    """Answer the handshake with 503."""
    assert peer.request
    peer.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def cut(peer: Peer) -> None:
    """End the stream, or reset it, before, within or after the handshake or after some messages."""
    if random.random() < 0.3:
        peer.send(b"HTTP/1.1 101 Sw")
    elif random.random() < 0.8:
        echo(peer, random.randrange(8))
    if random.random() < 0.5:
        peer.reset()


def close(peer: Peer) -> None:
    """Close it after a few messages, and do not always wait for the answer."""
    echo(peer, random.randrange(4))
    peer.send(peers.text("last words") + peers.close_frame(4000, "enough"))
    if random.random() < 0.7:
        peer.read_until_close()


def stall(peer: Peer) -> None:
    """Take nothing, with or without a handshake before."""
    if random.random() < 0.7:
        peer.accept()
    peer.stall()


def break_the_protocol(peer: Peer) -> None:
    """Send a frame that must not be."""
    peer.accept(after=peers.text("before") + peers.frame(0x3))
    peer.read_eof()


FATES = {
    "echo": echo,
    "chatter": chatter,
    "refuse": refuse,
    "cut": cut,
    "close": close,
    "stall": stall,
    "break": break_the_protocol,
}


def main() -> None:
    threading.excepthook = lambda _: None
    with peers.echo_server() as compressing, RawServer(script) as raw:
        print(json.dumps([compressing.url, raw.url]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
