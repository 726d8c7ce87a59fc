"""A WebSocket server to be killed: python numbered.py PORT LOG, or fd=NUMBER for a socket that listens already

Sends its process id and a number, one after the other, to each client, and appends each message that comes to the file
LOG. The path says how many numbers a second: "/20", or "/0" for none; "/" is as many as the client takes. It answers a
ping or a Close frame only after the messages before it are in the file, as few servers do: so an answered ping says all
that it can say. Says "ready" when it listens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from typing import BinaryIO

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol


class Connection:
    """One client, served by two threads."""

    def __init__(self, sock: socket.socket, log: BinaryIO) -> None:
        self._sock = sock
        self._log = log
        self._protocol = ServerProtocol(max_size=None)
        self._lock = threading.Lock()  # for the protocol and for sending

    def serve(self) -> None:
        with self._sock, contextlib.suppress(OSError):
            while data := self._sock.recv(65_536):
                with self._lock:
                    self._protocol.receive_data(data)
                    for event in self._protocol.events_received():
                        self._on_event(event)
                    self._flush()

    def _on_event(self, event: object) -> None:
        if isinstance(event, Request):
            self._protocol.send_response(self._protocol.accept(event))
            rate = float(event.path[1:] or "inf")
            if rate:
                threading.Thread(target=self._push, args=(1 / rate,), daemon=True).start()
        elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            self._log.write(bytes(event.data) + b"\n")

    def _push(self, pause: float) -> None:
        number = 0
        with contextlib.suppress(Exception):  # of the socket or of the protocol: the client has gone
            while True:
                with self._lock:
                    self._protocol.send_text(f"{os.getpid()} {number}".encode())
                    self._flush()
                number += 1
                if pause:
                    time.sleep(pause)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._sock.sendall(data)
            else:
                self._sock.shutdown(socket.SHUT_WR)


def listen(where: str) -> socket.socket:
    if where.startswith("fd="):
        return socket.socket(fileno=int(where[3:]))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(where)))
    listener.listen(1024)
    return listener


def main(where: str, path: str) -> None:
    listener = listen(where)
    with open(path, "ab", buffering=0) as log:
        print("ready", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=Connection(sock, log).serve, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
