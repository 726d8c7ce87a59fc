"""Numbers keep flowing while their server is killed and restarted. Starts its own server; run it as it is."""

import socket
import subprocess
import sys
import threading
import time

from websockets.sync.server import ServerConnection, serve

from nwebsocket import CloseEvent, ReconnectingWebSocket


class Numbers(ReconnectingWebSocket):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.connections = 0
        self.received: list[int] = []
        self.opened = threading.Event()

    def onopen(self) -> None:
        self.connections += 1
        print(f"{self.connections}: connected")
        self.opened.set()

    def onmessage(self, message: str) -> None:
        self.received.append(int(message))

    def onclose(self, event: CloseEvent) -> None:
        if event.retry_in is not None:
            print(f"{self.connections}: lost")
        self.opened.clear()


def reflect(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def run_server(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener, serve(reflect, sock=listener) as server:
        print("ready", flush=True)
        server.serve_forever()


def start_server(port: int) -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    return server


def stop(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


def main() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]

    server = start_server(port)
    numbers = Numbers(f"ws://127.0.0.1:{port}").wait_open(10)
    numbers.opened.wait(10)
    for number in range(50):
        numbers.send(str(number))
    while len(numbers.received) < 50:  # all of these are back: nothing is at risk when the server dies
        time.sleep(0.01)

    stop(server)
    while numbers.opened.is_set():
        time.sleep(0.01)
    for number in range(50, 100):
        numbers.send(str(number))  # there is no connection: they wait
    print(f"{len(numbers.outbox)} messages wait")

    server = start_server(port)
    while len(numbers.received) < 100:
        time.sleep(0.01)
    assert numbers.received == list(range(100))
    print("each number arrived once and in order")
    numbers.close()
    numbers.wait_closed(10)
    stop(server)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_server(int(sys.argv[1]))
    else:
        main()
