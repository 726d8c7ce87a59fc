"""A hundred queries at once, to a server that answers out of order. Starts its own server; run it as it is."""

import json
import random
import threading
from concurrent.futures import as_completed

from websockets.sync.server import ServerConnection, serve

from nwebsocket import QueryMixin, QueryTimeout, WebSocket


class Calculator(QueryMixin, WebSocket):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.welcomed = threading.Event()

    def square(self, number: int) -> int:
        return self.query({"type": "square", "number": number}).result(10)["square"]

    def onmessage(self, message: str) -> None:  # what is no answer to a query
        print("news:", json.loads(message)["text"])
        self.welcomed.set()


def answer_out_of_order(connection: ServerConnection) -> None:
    connection.send(json.dumps({"text": "welcome"}))
    waiting = []
    for message in connection:
        request = json.loads(message)
        if request["type"] == "square":
            waiting.append(json.dumps({"id": request["id"], "square": request["number"] ** 2}))
        if len(waiting) == 100 or request.get("number") == 12:
            random.shuffle(waiting)
            for answer in waiting:
                connection.send(answer)
            waiting.clear()


def main() -> None:
    with serve(answer_out_of_order, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.socket.getsockname()[1]

        with Calculator(f"ws://127.0.0.1:{port}") as calculator:
            calculator.welcomed.wait(10)
            queries = {calculator.query({"type": "square", "number": n}): n for n in range(100, 200)}
            for query in as_completed(queries, timeout=10):
                assert query.result()["square"] == queries[query] ** 2
            print("100 queries answered, each with its own answer")

            print("12 squared is", calculator.square(12))

            try:
                calculator.query({"type": "nonsense"}, timeout=0.5).result()
            except QueryTimeout as error:
                print("nonsense:", error)
            print(calculator.stats)
        server.shutdown()


if __name__ == "__main__":
    main()
