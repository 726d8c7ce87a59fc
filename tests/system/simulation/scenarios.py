"""What the threads of a program do, and what must hold whatever the schedule. Each is one function of a Run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from nwebsocket import (
    ConnectionClosed,
    ConnectionFailed,
    InvalidStateError,
    QueryMixin,
    ReconnectingWebSocket,
    WaitTimeout,
    WebSocket,
)

from .scheduler import Scheduler
from .server import Answer, Listener, Server, echo
from .world import World

LIMIT = 60.0
"""Seconds, of the virtual clock, in which everything is done."""


PIECE = 4 * 1024 // 3
"""Messages that one read may bring beyond the bound: pieces of 4 KiB are parsed at once."""

LARGE = 300_000
"""Bytes: more than a Unix socket takes at once."""


class Broken(AssertionError):
    """An invariant does not hold."""


class Run:
    """One run of a scenario."""

    def __init__(self, scheduler: Scheduler, world: World, *, compressed: bool = False) -> None:
        self.scheduler = scheduler
        self.world = world
        self.compressed = compressed
        self.servers: list[Server] = []

    def open(
        self, answer: Answer = echo, *, kind: type[Any] = WebSocket, first: Iterable[str] = (), **options: Any
    ) -> Any:
        """A socket, whose server has a thread of its own."""
        server = Server(self.scheduler, answer, compressed=self.compressed, first=tuple(first))
        self.servers.append(server)
        self.start(server.run, "server")
        return kind("ws://server/", sock=server.client, compression="deflate" if self.compressed else None, **options)

    def start(self, function: Callable[..., object], name: str = "user", *args: Any) -> Any:
        """Run a function in another thread."""
        thread = self.world.thread(function, name, args)
        thread.start()
        return thread

    def listen(self, answer: Answer = echo) -> Listener:
        """A server that accepts one connection after another."""
        listener = Listener(self.scheduler, self.world.path(), answer, compressed=self.compressed)
        self.start(listener.run, "server")
        return listener

    def until(self, what: str, truth: Callable[[], object]) -> None:
        """Wait for it."""
        hold(self.scheduler.wait(what, truth, LIMIT), f"not in time: {what}")

    def join(self, *threads: Any) -> None:
        """Wait until they have ended."""
        for thread in threads:
            thread.join(LIMIT)
            hold(not thread.is_alive(), f"{thread.name} has not ended")

    def end(self, ws: Any) -> None:
        """Close the socket, and wait until all has been heard."""
        ws.close()
        ws.wait_closed(LIMIT)


def hold(truth: object, what: str) -> None:
    """This must be so."""
    if not truth:
        raise Broken(what)


def conversation(run: Run) -> None:
    """One thread sends and receives: each message comes back once, in order, and the end is clean."""
    ws = run.open()
    ws.wait_open(LIMIT)
    for number in range(3):
        ws.send(f"{number}")
        hold(ws.recv(LIMIT) == f"{number}", "the echo is another one")
    for number in range(3):
        ws.send(f"burst {number}")
    hold([ws.recv(LIMIT) for _ in range(3)] == [f"burst {n}" for n in range(3)], "the burst is not what was sent")
    run.end(ws)
    hold(run.servers[0].closed == 1005, f"the server heard {run.servers[0].closed}")


def two_senders(run: Run) -> None:
    """Two threads send while a third receives: all arrive once, those of each thread in order."""
    ws = run.open()
    ws.wait_open(LIMIT)

    def send(name: str) -> None:
        for number in range(4):
            ws.send(f"{name}{number}")

    threads = [run.start(send, name, name) for name in "ab"]
    got = [ws.recv(LIMIT) for _ in range(8)]
    run.join(*threads)
    for name in "ab":
        hold([m for m in got if m[0] == name] == [f"{name}{n}" for n in range(4)], f"received {got}")
    run.end(ws)


def two_receivers(run: Run) -> None:
    """Two threads receive: each message goes to one of them, and those of each are in order."""
    ws = run.open()
    ws.wait_open(LIMIT)
    got: dict[str, list[str]] = {"a": [], "b": []}

    def receive(name: str) -> None:
        for _ in range(3):
            got[name].append(ws.recv(LIMIT))

    threads = [run.start(receive, name, name) for name in "ab"]
    for number in range(6):
        ws.send(f"{number}")
    run.join(*threads)
    hold(sorted(got["a"] + got["b"]) == [f"{n}" for n in range(6)], f"received {got}")
    hold(all(messages == sorted(messages) for messages in got.values()), f"out of order: {got}")
    run.end(ws)


def handlers(run: Run, callbacks: str = "thread") -> None:
    """The handlers hear open, each message once and in order, and close, one after the other."""
    heard: list[str] = []

    class Client(WebSocket):
        def onopen(self) -> None:
            heard.append("open")
            self.send("0")

        def onmessage(self, message: Any) -> None:
            heard.append(message)
            number = int(message) + 1
            if number < 5:
                self.send(f"{number}")
            else:
                self.close()

        def onclose(self, event: Any) -> None:
            heard.append("close")

    ws = run.open(kind=Client, callbacks=callbacks)
    ws.wait_closed(LIMIT)
    hold(heard == ["open", *"01234", "close"], f"heard {heard}")


def handlers_on_loop(run: Run) -> None:
    """The same with handlers on the loop thread."""
    handlers(run, "loop")


def late_handler(run: Run) -> None:
    """A handler that is set while messages come hears all of them that recv() has not given."""
    heard: list[Any] = []
    ws = run.open(first=[f"{n}" for n in range(4)])
    ws.wait_open(LIMIT)
    first = ws.recv(LIMIT)
    ws.onmessage = heard.append
    ws.send("last")
    run.until("the last message", lambda: "last" in heard)
    hold([first, *heard] == ["0", "1", "2", "3", "last"], f"{first} and {heard}")
    run.end(ws)


def close_while_sending(run: Run) -> None:
    """close() while another thread sends: what send() has taken without an error arrives, before the Close frame."""
    ws = run.open(lambda server, message: None)
    ws.wait_open(LIMIT)
    taken: list[str] = []

    def send() -> None:
        try:
            for number in range(20):
                ws.send(f"{number}")
                taken.append(f"{number}")
        except (ConnectionClosed, InvalidStateError):
            pass

    thread = run.start(send)
    ws.close(4000, "enough")
    ws.wait_closed(LIMIT)
    run.join(thread)
    heard = run.servers[0].heard
    hold(heard == taken, f"sent {taken}, heard {heard}")
    hold(run.servers[0].closed == 4000, f"the server heard {run.servers[0].closed}")


def close_while_receiving(run: Run) -> None:
    """close() wakes a thread in recv(), whichever comes first."""
    ws = run.open()
    ws.wait_open(LIMIT)
    ended: list[str] = []

    def receive() -> None:
        try:
            ws.recv()
        except ConnectionClosed:
            ended.append("closed")

    threads = [run.start(receive, f"receiver {n}") for n in range(2)]
    run.end(ws)
    run.join(*threads)
    hold(ended == ["closed"] * 2, f"ended: {ended}")


def pings(run: Run) -> None:
    """Each Ping has its Pong, before the answer to the message that came behind it."""

    def answer(server: Server, message: str) -> None:
        server.ping(message.encode())
        server.say(message)

    ws = run.open(answer)
    ws.wait_open(LIMIT)
    for number in range(3):
        ws.send(f"{number}")
        hold(ws.recv(LIMIT) == f"{number}", "another message")
    run.end(ws)
    order = ["0", "pong b'0'", "1", "pong b'1'", "2", "pong b'2'"]
    hold(run.servers[0].order == order, f"the server heard {run.servers[0].order}")


def lost(run: Run) -> None:
    """The server is gone without a word: who waits is told, and recv() gives first what had come."""

    def answer(server: Server, message: str) -> None:
        server.say("last words")
        if message == "go":
            server.cut()

    ws = run.open(answer)
    ws.wait_open(LIMIT)
    ws.send("stay")
    hold(ws.recv(LIMIT) == "last words", "another message")
    ws.send("go")
    try:
        while True:
            ws.recv(LIMIT)
    except ConnectionClosed as error:
        hold(error.code == 1006, f"the end is {error!r}")


def time_outs(run: Run) -> None:
    """recv() gives up in time, and the message that comes later is not lost."""
    ws = run.open()
    ws.wait_open(LIMIT)
    gave_up = 0
    try:
        ws.recv(0.01)
    except WaitTimeout:
        gave_up += 1
    ws.send("x")
    while True:
        try:
            hold(ws.recv(0.001) == "x", "another message")
            break
        except WaitTimeout:
            gave_up += 1
    hold(gave_up, "it has never given up")
    run.end(ws)


def queries(run: Run) -> None:
    """Queries of two threads: each gets its own answer, and what answers none goes to recv()."""

    class Client(QueryMixin, WebSocket):
        pass

    def answer(server: Server, message: str) -> None:
        server.say(message)
        server.say("news")

    ws = run.open(answer, kind=Client)
    ws.wait_open(LIMIT)
    answers: dict[str, list[Any]] = {"a": [], "b": []}

    def ask(name: str) -> None:
        for number in range(2):
            answers[name].append(ws.query({"ask": f"{name}{number}"}).result(LIMIT)["ask"])

    threads = [run.start(ask, name, name) for name in "ab"]
    news = [ws.recv(LIMIT) for _ in range(4)]
    run.join(*threads)
    hold(answers == {name: [f"{name}0", f"{name}1"] for name in "ab"}, f"answers: {answers}")
    hold(news == ["news"] * 4, f"news: {news}")
    run.end(ws)


def queries_are_lost(run: Run) -> None:
    """The server goes while queries are open: each has its answer or an error, and none is left."""

    class Client(QueryMixin, WebSocket):
        pass

    def answer(server: Server, message: str) -> None:
        if json.loads(message)["ask"] == "last":
            server.cut()
        else:
            server.say(message)

    ws = run.open(answer, kind=Client)
    ws.wait_open(LIMIT)
    ended: list[str] = []

    def ask(what: str) -> None:
        try:
            ended.append(ws.query({"ask": what}).result(LIMIT)["ask"])
        except ConnectionClosed:
            ended.append("lost")
        except InvalidStateError:
            ended.append("refused")

    threads = [run.start(ask, what, what) for what in ("first", "second", "last")]
    run.join(*threads)
    ws.wait_closed(LIMIT)
    hold(len(ended) == 3 and "last" not in ended, f"ended: {ended}")
    hold(ws.stats.in_flight == 0, "a query is left")


def interrupted(run: Run) -> None:
    """Ctrl-C while the main thread waits: what send() has taken, and counted, arrives once; what comes is not lost."""
    ws = run.open()
    ws.wait_open(LIMIT)
    run.scheduler.interrupts = 5
    got: list[str] = []
    while len(got) < 5:
        with contextlib.suppress(KeyboardInterrupt):
            if (sent := ws.stats.messages_sent) < 5:
                ws.send(f"{sent}")
            got.append(ws.recv(LIMIT))
    run.scheduler.interrupts = 0
    hold(got == list("01234"), f"received {got}")
    run.end(ws)


def signal_handler(run: Run) -> None:
    """A signal handler sends and closes, wherever the main thread is."""
    ws = run.open(lambda server, message: server.say(message))
    ws.wait_open(LIMIT)
    ws.send("1")
    run.scheduler.asides = [ws.close, lambda: ws.send("aside")]
    got: list[str] = []
    with contextlib.suppress(ConnectionClosed, InvalidStateError):
        ws.send("2")
        while True:
            got.append(ws.recv(LIMIT))
            if len(got) == 3 - len(run.scheduler.asides[1:]):
                break
    run.scheduler.asides = []
    run.end(ws)
    heard = run.servers[0].heard
    hold(heard[:1] == ["1"] and len(set(heard)) == len(heard), f"the server heard {heard}")
    hold([m for m in heard if m in got] == got, f"heard {heard}, received {got}")


def outbox(run: Run, size: int = 1) -> None:
    """A socket that comes back: all that was sent goes out once, whole and in order, whenever a connection is lost."""

    def answer(server: Server, message: str) -> None:
        if message[0] == "3" and len(listener.servers) < 3:
            server.cut()

    def taken() -> list[str]:
        messages = [message for server in listener.servers for message in server.heard + server.late]
        hold(all(len(message) == size for message in messages), "a message is not whole")
        return [message[0] for message in messages]

    listener = run.listen(answer)
    ws = ReconnectingWebSocket("ws://server/", unix=listener.path, compression="deflate" if run.compressed else None)
    for number in range(6):
        ws.send(f"{number}" * size)
    run.until("all messages", lambda: "5" in taken())
    hold(taken() == list("012345"), f"taken: {taken()}")
    run.end(ws)
    listener.stop()


def large_outbox(run: Run) -> None:
    """The same with messages that the system takes in parts."""
    outbox(run, LARGE)


def full_inbox(run: Run) -> None:
    """The server says more than the inbox takes: reading stops, and goes on; nothing is lost, and the bound is kept."""
    most = 0

    def answer(server: Server, message: str) -> None:
        for number in range(40):
            server.say(f"{number}")

    ws = run.open(answer, max_queue=4)
    ws.wait_open(LIMIT)
    ws.send("go")
    for number in range(40):
        most = max(most, len(ws._nwebsocket.bridge.inbox.messages))
        hold(ws.recv(LIMIT) == f"{number}", "another message")
    hold(most <= 4 + PIECE, f"{most} messages were in the inbox")
    run.end(ws)


def full_outgoing(run: Run) -> None:
    """The server reads late: send() waits for room, two threads do, and all arrives in order."""
    ws = run.open(lambda server, message: None, write_limit=LARGE)
    ws.wait_open(LIMIT)

    def send(name: str) -> None:
        for number in range(4):
            ws.send(name + f"{number}" + "x" * LARGE)

    threads = [run.start(send, name, name) for name in "ab"]
    run.join(*threads)
    run.end(ws)
    heard = [message[:2] for message in run.servers[0].heard]
    for name in "ab":
        hold([m for m in heard if m[0] == name] == [f"{name}{n}" for n in range(4)], f"the server heard {heard}")


def both_close(run: Run) -> None:
    """Both sides close at once: one clean end, heard once, and nobody waits for ever."""
    heard: list[Any] = []

    def answer(server: Server, message: str) -> None:
        server.say("bye")
        server.close(4001)

    ws = run.open(answer)
    ws.onclose = heard.append
    ws.wait_open(LIMIT)
    closer = run.start(ws.close, "closer", 4000)
    with contextlib.suppress(ConnectionClosed, InvalidStateError):
        ws.send("close")
        hold(ws.recv(LIMIT) == "bye", "another message")
    ws.wait_closed(LIMIT)
    run.join(closer)
    hold([type(event).__name__ for event in heard] == ["CloseEvent"], f"heard {heard}")
    hold(heard[0].wasClean and heard[0].code in (4000, 4001), f"heard {heard}")


def dead_server(run: Run) -> None:
    """A server that says nothing any more is found dead in time, by all who wait."""
    ws = run.open(lambda server, message: server.sleep(), ping_interval=5, ping_timeout=3)
    ws.wait_open(LIMIT)
    ended: list[float] = []

    def receive() -> None:
        try:
            ws.recv()
        except ConnectionClosed:
            ended.append(run.scheduler.now)

    threads = [run.start(receive, f"receiver {n}") for n in range(2)]
    begun = run.scheduler.now
    ws.send("sleep")
    run.join(*threads)
    hold(len(ended) == 2 and max(ended) - begun < 15, f"found after {[at - begun for at in ended]} s")


def alive_server(run: Run) -> None:
    """A server that is only asked now and then stays connected: its Pongs are signs of life."""
    ws = run.open(ping_interval=5, ping_timeout=3)
    ws.wait_open(LIMIT)
    for number in range(3):
        try:
            ws.recv(20)
        except WaitTimeout:
            ws.send(f"{number}")
            hold(ws.recv(LIMIT) == f"{number}", "another message")
    hold(ws.ping(LIMIT) >= 0, "no latency")
    run.end(ws)


def changing_handler(run: Run) -> None:
    """A handler comes and goes while messages come: each is heard by it or by recv(), once, in order."""
    order: list[str] = []
    ws = run.open(first=[f"{n}" for n in range(8)])
    ws.wait_open(LIMIT)

    def change() -> None:
        for _ in range(2):
            ws.onmessage = order.append
            ws.onmessage = None

    changer = run.start(change, "changer")
    run.join(changer)
    ws.onmessage = None
    while len(order) < 8:
        with contextlib.suppress(RuntimeError):
            order.append(ws.recv(LIMIT))
    hold(order == [f"{n}" for n in range(8)], f"order {order}")
    run.end(ws)


def listeners(run: Run) -> None:
    """Listeners hear what the attribute hears; one for once hears once, and what it raises stops nothing."""
    heard: list[tuple[str, str]] = []
    ws = run.open()
    ws.addEventListener("message", lambda event: heard.append(("a", event.data)))
    ws.addEventListener("message", lambda event: heard.append(("once", event.data)), once=True)
    ws.onmessage = lambda message: heard.append(("on", message))
    ws.wait_open(LIMIT)
    for message in "012":
        ws.send(message)
    run.until("all heard", lambda: ("on", "2") in heard)
    run.end(ws)
    for name in ("a", "on"):
        hold([data for who, data in heard if who == name] == list("012"), f"heard {heard}")
    hold([data for who, data in heard if who == "once"] == ["0"], f"heard {heard}")


def done_callbacks(run: Run) -> None:
    """Done callbacks of queries send and close; no thread waits for itself, and each runs once."""

    class Client(QueryMixin, WebSocket):
        pass

    ws = run.open(kind=Client)
    ws.wait_open(LIMIT)
    done: list[str] = []

    def on_done(query: Any) -> None:
        done.append("done")
        with contextlib.suppress(ConnectionClosed, InvalidStateError):
            ws.send(json.dumps({"more": len(done)}))
        if len(done) == 3:
            ws.close()

    def ask(name: str) -> None:
        with contextlib.suppress(ConnectionClosed, InvalidStateError):
            ws.query({"ask": name}).add_done_callback(on_done)
            done_or_closed.append(name)

    done_or_closed: list[str] = []
    run.join(*[run.start(ask, name, name) for name in "abc"])
    ws.wait_closed(LIMIT)
    run.until("the callbacks", lambda: len(done) == len(done_or_closed))


def retried_queries(run: Run) -> None:
    """Queries that are to be tried again have their answers, though connections are lost."""

    class Client(QueryMixin, ReconnectingWebSocket):
        pass

    def answer(server: Server, message: str) -> None:
        if json.loads(message)["ask"] == "b" and len(listener.servers) < 3:
            server.cut()
        else:
            server.say(message)

    listener = run.listen(answer)
    ws = Client("ws://server/", unix=listener.path, compression="deflate" if run.compressed else None)
    answers: list[str] = []

    def ask(name: str) -> None:
        answers.append(ws.query({"ask": name}, retry=True).result(LIMIT)["ask"])

    run.join(*[run.start(ask, name, name) for name in "abc"])
    hold(sorted(answers) == list("abc"), f"answers {answers}")
    run.end(ws)
    listener.stop()


def close_while_connecting(run: Run) -> None:
    """close() before the connection is open: whoever waits is told at once."""
    ws = run.open()
    ended: list[str] = []

    def wait() -> None:
        try:
            ws.wait_open(LIMIT)
            ended.append("open")
        except (ConnectionClosed, ConnectionFailed):
            ended.append("failed")

    thread = run.start(wait, "waiter")
    run.end(ws)
    run.join(thread)
    hold(len(ended) == 1, f"ended {ended}")


SCENARIOS: dict[str, Callable[[Run], None]] = {
    function.__name__: function
    for function in (
        conversation,
        two_senders,
        two_receivers,
        handlers,
        handlers_on_loop,
        late_handler,
        close_while_sending,
        close_while_receiving,
        pings,
        lost,
        time_outs,
        queries,
        queries_are_lost,
        interrupted,
        signal_handler,
        outbox,
        large_outbox,
        full_inbox,
        full_outgoing,
        both_close,
        dead_server,
        alive_server,
        changing_handler,
        listeners,
        done_callbacks,
        retried_queries,
        close_while_connecting,
    )
}
