"""Connect to a server, send, and receive text and bytes through callbacks. Starts its own server; run it as it is."""

import json
import threading

from websockets.sync.server import ServerConnection, serve

from nwebsocket import WebSocket


class Chat(WebSocket):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.messages: list[str] = []  # no callback runs before this line has: set attributes freely
        self.done = threading.Event()

    def onopen(self) -> None:
        print("open:", self.url)

    def onmessage(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.messages.append(json.loads(message)["data"])
            print("text:", self.messages[-1])
        else:
            print("bytes:", message.hex(" "))
            self.done.set()

    def onerror(self, error: Exception) -> None:
        print("error:", error)

    def onclose(self) -> None:
        print("closed")

    def post(self, message: str) -> None:
        self.send(json.dumps({"type": "message", "data": message}))


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def main() -> None:
    with serve(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.socket.getsockname()[1]

        with Chat(f"ws://127.0.0.1:{port}") as chat:  # waits until it is open
            chat.post("hello")
            chat.post("no await in sight")
            chat.send(bytes([0xC0, 0xFF, 0xEE]))
            chat.done.wait(10)
            print(f"latency: {chat.ping() * 1000:.1f} ms")
        print(chat)
        server.shutdown()


if __name__ == "__main__":
    main()
