"""A WebSocket server to be killed: python numbered.py PORT LOG

Sends its process id and a number, one after the other, to each client, and appends each message that comes to the file
LOG before it reads the next. Says "ready" when it listens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

import websockets.exceptions
from websockets.sync.server import ServerConnection, serve


def push(connection: ServerConnection) -> None:
    number = 0
    with contextlib.suppress(websockets.exceptions.ConnectionClosed):
        while True:
            connection.send(f"{os.getpid()} {number}")
            number += 1


def main(port: int, path: str) -> None:
    def handle(connection: ServerConnection) -> None:
        threading.Thread(target=push, args=(connection,), daemon=True).start()
        log.writelines(f"{message}\n".encode() for message in connection)

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    with open(path, "ab", buffering=0) as log, serve(handle, sock=listener, compression=None) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
