"""The chat of `examples/chat`: its server in a process, its page in Chromium, and its Python client, all together."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from peers import LIMIT
from programs import Program, free_ports
from test_readme import BLOCKS

from nwebsocket import CloseEvent, ConnectionClosed, HandshakeError, WebSocket

CHAT = Path(__file__).parents[2] / "examples" / "chat"
sys.path.insert(0, str(CHAT))

from client import ChatClient, ChatError, Message  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOKEN = "the-tests'-token"
SERVER: list[str | Path] = [sys.executable, "-W", "error", CHAT / "server.py", "--port"]


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAT_TOKEN", TOKEN)
        yield


@contextlib.contextmanager
def serving(directory: Path, port: int, command: Sequence[str | Path] = SERVER) -> Iterator[Program]:
    with Program([*command, str(port)], [port], directory) as program:
        yield program
    assert "Traceback" not in (directory / "output").read_text()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, token: None) -> Iterator[int]:
    """Where a server is that all tests may use, each with rooms of its own."""
    with free_ports() as ports, serving(tmp_path_factory.mktemp("chat"), ports[0]):
        yield ports[0]


class Listener(ChatClient):
    """Says what happens as it happens."""

    def __init__(self, port: int, name: str, token: str = TOKEN) -> None:
        super().__init__(f"ws://127.0.0.1:{port}/ws", name, token)
        self.said: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.ends: queue.SimpleQueue[CloseEvent] = queue.SimpleQueue()
        self.sent: queue.SimpleQueue[str] = queue.SimpleQueue()

    def send(self, data: Any, keep: bool = True) -> None:
        super().send(data, keep)
        self.sent.put(data)

    def heard(self, message: Message) -> None:
        super().heard(message)
        self.said.put(message)

    def onclose(self, event: CloseEvent) -> None:
        self.ends.put(event)

    def next(self) -> tuple[str, str]:
        message = self.said.get(timeout=LIMIT)
        return message.name, message.text

    def wait_sent(self, text: str) -> None:
        while text not in self.sent.get(timeout=LIMIT):
            pass


@pytest.fixture
def come_in() -> Iterator[Callable[..., Listener]]:
    """Connects Python clients, and has them gone after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args: stack.enter_context(Listener(*args))


def plain(port: int, **options: Any) -> WebSocket:
    return WebSocket(f"ws://127.0.0.1:{port}/ws", proxy=None, **options)


def ask(ws: WebSocket, **request: Any) -> Any:
    ws.send(json.dumps(request))
    return json.loads(ws.recv(LIMIT))


def greet(ws: WebSocket, name: str = "Eve") -> None:
    assert ask(ws, type="hello", name=name, token=TOKEN, id=1) == {"type": "welcome", "name": name, "id": 1}


# --- In Python


def test_the_readmes_block_is_true(port: int) -> None:
    (block,) = [block for block in BLOCKS if "import ChatClient" in block.code]
    names: dict[str, Any] = {}
    exec(block.code.replace(":8000/", f":{port}/"), names)
    with names["chat"] as chat:
        chat.who()  # what was posted before this has been heard
        while [message.text for message in chat.messages] != ["hello"]:
            chat.who()


def test_people_hear_one_another(port: int, come_in: Callable[..., Listener]) -> None:
    ada, bob = come_in(port, "Ada"), come_in(port, "Bob")
    assert ada.join("talk") == ["Ada"]
    assert bob.join("talk") == ["Ada", "Bob"]
    ada.post("hello")
    assert ada.next() == bob.next() == ("Ada", "hello")
    bob.post("hello, Ada")
    assert ada.next() == bob.next() == ("Bob", "hello, Ada")
    assert ada.who() == ["Ada", "Bob"]
    assert ada.messages == bob.messages


def test_who_comes_later_hears_what_was_said(port: int, come_in: Callable[..., Listener]) -> None:
    ada, bob = come_in(port, "Ada"), come_in(port, "Bob")
    ada.join("history")
    ada.post("first")
    ada.post("second")
    bob.join("history")
    assert [bob.next(), bob.next()] == [("Ada", "first"), ("Ada", "second")]


def test_a_message_to_another_room_is_not_heard(port: int, come_in: Callable[..., Listener]) -> None:
    ada, bob = come_in(port, "Ada"), come_in(port, "Bob")
    ada.join("attic")
    ada.join("cellar")
    bob.join("attic")
    ada.post("down here")
    ada.post("up here", "attic")
    assert bob.next() == ("Ada", "up here")


def test_what_is_asked_twice_is_posted_once(port: int) -> None:
    with plain(port) as ws:
        greet(ws)
        ask(ws, type="join", room="twice")
        post = {"type": "post", "room": "twice", "text": "once", "key": "k"}
        ws.send(json.dumps(post))
        first = json.loads(ws.recv(LIMIT)), json.loads(ws.recv(LIMIT))
        assert [message["type"] for message in first] == ["room_message", "posted"]
        assert ask(ws, **post, id=1) == {**first[1], "id": 1}


REFUSED = {
    "no room": ({"type": "join"}, "invalid", "room: Field required"),
    "no name": ({"type": "join", "room": " "}, "invalid", "room: must be 1 to 32 letters, digits, spaces and . ' - _"),
    "HTML": ({"type": "join", "room": "<b>"}, "invalid", "room: must be 1 to 32 letters, digits, spaces and . ' - _"),
    "empty": ({"type": "post", "room": "x", "text": ""}, "invalid", "text: String should have at least 1 character"),
    "long": (
        {"type": "post", "room": "x", "text": "x" * 2001},
        "invalid",
        "text: String should have at most 2000 characters",
    ),
    "not joined": ({"type": "post", "room": "x", "text": "x"}, "not_joined", "join the room x first"),
    "surrogate": ({"type": "post", "room": "x", "text": "\ud800"}, "invalid", "text: Input should be a valid string"),
    "type": ({"type": "dance"}, "invalid", "Input tag 'dance' found using 'type' does not match"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_is_refused(port: int, case: str) -> None:
    request, code, text = REFUSED[case]
    with plain(port) as ws:
        greet(ws)
        answer = ask(ws, **request, id="mine")
        assert (answer["type"], answer["code"], answer["id"]) == ("error", code, "mine")
        assert answer["text"].startswith(text)


@pytest.mark.parametrize("message", ["no JSON", "[]", "[" * 10_000, b"bytes"])
def test_what_is_no_request_is_refused(port: int, message: str | bytes) -> None:
    with plain(port) as ws:
        greet(ws)
        ws.send(message)
        assert json.loads(ws.recv(LIMIT))["text"] == "a message must be a JSON object, as text"


def test_the_client_raises_what_the_server_refuses(port: int, come_in: Callable[..., Listener]) -> None:
    ada = come_in(port, "Ada")
    with pytest.raises(ChatError, match="room: must be 1 to 32 letters"):
        ada.join("<script>")
    assert ada.rooms == []


def test_nobody_may_be_everywhere(port: int) -> None:
    with plain(port) as ws:
        greet(ws)
        answers = [ask(ws, type="join", room=f"everywhere {n}") for n in range(11)]
    assert {answer["type"] for answer in answers[:10]} == {"room_joined"}
    assert answers[10]["code"] == "too_many_rooms"


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        ("", "a message must be a JSON object, as text"),
        (b"bytes", "a message must be a JSON object, as text"),
        ("{}", "type: Field required"),
        ('{"type": "join", "room": "x"}', "type: Input should be 'hello'"),
        ('{"type": "hello", "name": ""}', "name: must be 1 to 32 letters, digits, spaces and . ' - _"),
    ],
)
def test_the_first_message_is_a_hello(port: int, hello: str | bytes, text: str) -> None:
    with plain(port) as ws:
        ws.send(hello)
        assert json.loads(ws.recv(LIMIT))["text"] == text
        end = ws.wait_closed(LIMIT)
        assert (end.code, end.reason) == (1008, text)


def test_the_wrong_token(port: int) -> None:
    with pytest.raises(HandshakeError) as caught, Listener(port, "Eve", "wrong"):
        pass
    assert (caught.value.status, caught.value.body) == (401, b"wrong token\n")
    with plain(port) as ws:
        assert ask(ws, type="hello", name="Eve", token="wrong")["code"] == "wrong_token"
        end = ws.wait_closed(LIMIT)
        assert (end.code, end.reason) == (1008, "wrong token")


def test_pages_of_others_are_refused(port: int) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}"):
        with pytest.raises(HandshakeError) as caught, plain(port, origin=origin):
            pass
        assert caught.value.status == 403
    with plain(port, origin=f"http://127.0.0.1:{port}") as ws:
        greet(ws)


def test_a_message_that_is_far_too_large_ends_the_connection(port: int) -> None:
    with plain(port) as ws:
        greet(ws)
        ws.send("x" * (64 * 1024 + 1))
        assert ws.wait_closed(LIMIT).code == 1009


def test_too_many_requests_are_refused_and_then_end_the_connection(port: int) -> None:
    with plain(port) as ws:
        greet(ws)
        for number in range(100):
            ws.send(json.dumps({"type": "who", "room": "x", "id": number}))
        end = ws.wait_closed(LIMIT)
        codes = [json.loads(message)["code"] for message in ws]
    assert (end.code, end.reason) == (1008, "too many requests, for too long")
    assert set(codes[:20]) == {"not_joined"}
    assert codes[-1] == "rate_limit"


def test_health(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    connection.request("GET", "/health", headers={"Host": "evil.example"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert (response.status, answer["status"]) == (200, "ok")
    assert 0 < answer["seconds"] < LIMIT


@pytest.mark.slow
def test_health_when_nobody_gets_in(tmp_path: Path) -> None:
    spoilt = "import server; server.PATIENCE = 0; server.main()"
    with free_ports() as ports, serving(tmp_path, ports[0], on_terms(spoilt)):
        connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=LIMIT)
        connection.request("GET", "/health")
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
    assert (response.status, answer["status"]) == (503, "failed")


def on_terms(code: str) -> list[str | Path]:
    """The command of a server with other limits."""
    return [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(CHAT)!r}); {code}", "--port"]


@pytest.mark.slow
def test_who_does_not_read_holds_up_nobody(tmp_path: Path, come_in: Callable[..., Listener]) -> None:
    generous = "import server; server.RATE = server.BURST = 10_000; server.MAX_WAITING = 50; server.PATIENCE = 1"
    with free_ports() as ports, serving(tmp_path, ports[0], on_terms(f"{generous}; server.main()")):
        with plain(ports[0], max_queue=1, compression=None) as sleeper:
            greet(sleeper, "Sleeper")
            ask(sleeper, type="join", room="lobby")
            ada = come_in(ports[0], "Ada")
            ada.join("lobby")
            posts = 0
            while "Sleeper" in ada.who():
                ada.post("\N{SLEEPING FACE}" * 2000)
                posts += 1
            with pytest.raises(ConnectionClosed):  # when it wakes up at last: 1013, or cut off
                read_to_the_end(sleeper)
        assert len(ada.messages) in (posts - 1, posts)
        ada.close()


def read_to_the_end(ws: WebSocket) -> None:
    while True:
        ws.recv(LIMIT)


def test_a_server_that_is_stopped_says_so(tmp_path: Path, come_in: Callable[..., Listener]) -> None:
    with free_ports() as ports:
        with serving(tmp_path, ports[0]):
            ada = come_in(ports[0], "Ada")
            ada.join("lobby")
        end = ada.ends.get(timeout=LIMIT)
        assert end.code == 1012
        assert end.retry_in is not None
        ada.close()


def test_the_client_as_a_program(port: int, come_in: Callable[..., Listener]) -> None:
    ada = come_in(port, "Ada")
    ada.join("terminal")
    url = f"ws://127.0.0.1:{port}/ws"
    command = [sys.executable, "-W", "error", str(CHAT / "client.py"), url, "--name", "Bob", "--room", "terminal"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "-- connected\n"
        assert program.stdout.readline() == "-- in terminal: Ada, Bob. Ctrl-D ends.\n"
        program.stdin.write("hello from the terminal\n\n" + "x" * 2001 + "\n")
        program.stdin.flush()
        assert ada.next() == ("Bob", "hello from the terminal")
        assert program.stdout.readline() == "-- not posted: text: String should have at most 2000 characters\n"
        ada.post("hello, Bob")
        assert program.stdout.readline() == "Ada: hello, Bob\n"
        program.stdin.close()
        assert program.stdout.read() == ""
    assert program.returncode == 0


def test_the_client_as_a_program_with_the_wrong_token(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_TOKEN", "wrong")
    command = [sys.executable, str(CHAT / "client.py"), f"ws://127.0.0.1:{port}/ws"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
    assert run.returncode == 1
    assert "401 Unauthorized" in run.stderr
    assert "Traceback" not in run.stderr


# --- In a browser

SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window; in a directory of its own, which Playwright makes and removes."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with (
        api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=SWITCHES) as started,
    ):
        yield started


class Person:
    """Somebody before the page."""

    def __init__(self, page: Page, port: int, name: str) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=LIMIT * 1000)
        self.expect = expect
        self.page = page
        self.failures: list[str] = []
        page.on("pageerror", lambda error: self.failures.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/#{TOKEN}")
        page.keyboard.type(name)

    def enter(self, room: str) -> None:
        self.page.get_by_label("Room").fill(room)
        self.page.keyboard.press("Enter")
        self.sees_state("Connected")

    def says(self, text: str) -> None:
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")

    def sees(self, name: str, text: str) -> None:
        message = self.page.locator(f'.message[data-name="{name}"]').filter(has=self.page.get_by_text(text, exact=True))
        self.expect(message).to_be_visible()

    def sees_people(self, *names: str) -> None:
        self.expect(self.page.locator("#people .name")).to_have_text(names)

    def sees_state(self, state: str) -> None:
        self.expect(self.page.get_by_role("status")).to_have_text(state)

    def sees_error(self, text: str) -> None:
        self.expect(self.page.get_by_role("alert")).to_have_text(text)


@pytest.fixture
def sit_down(browser: Browser) -> Iterator[Callable[..., Person]]:
    """Opens the page for somebody; whatever goes wrong in its script fails the test."""
    people = []

    def open_page(port: int, name: str, **options: Any) -> Person:
        people.append(Person(browser.new_context(**options).new_page(), port, name))
        return people[-1]

    yield open_page
    for person in people:
        person.page.context.close()
    assert [person.failures for person in people] == [[] for _ in people]


Both = tuple[Callable[..., Listener], Callable[..., Person]]


@pytest.fixture
def both(come_in: Callable[..., Listener], sit_down: Callable[..., Person]) -> Both:
    return come_in, sit_down


@pytest.mark.slow
def test_a_browser_and_python_meet(port: int, both: Both) -> None:
    come_in, sit_down = both
    ada, grace = come_in(port, "Ada"), sit_down(port, "Grace")
    assert grace.page.url == f"http://127.0.0.1:{port}/"  # the token is not for those who look at the screen
    ada.join("meeting")
    ada.post("I was here before you")
    grace.enter("meeting")
    grace.sees("Ada", "I was here before you")
    grace.sees_people("Ada", "Grace")
    assert ada.who() == ["Ada", "Grace"]
    assert ada.next() == ("Ada", "I was here before you")
    grace.says("hello from the page")
    assert ada.next() == ("Grace", "hello from the page")
    grace.sees("Grace", "hello from the page")
    ada.close()
    grace.sees_people("Grace")


@pytest.mark.slow
def test_what_looks_like_html_is_shown_as_text(port: int, both: Both) -> None:
    come_in, sit_down = both
    ada, grace = come_in(port, "Ada"), sit_down(port, "Grace", viewport={"width": 360, "height": 640})
    grace.enter("html")
    ada.join("html")
    html = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>" + "<b>wide</b>" * 50
    ada.post(html)
    grace.sees("Ada", html)
    assert grace.page.locator("#messages :is(script, img, b b)").count() == 0
    assert grace.page.evaluate("window.broken") is None
    assert grace.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_both_come_back_when_the_server_is_restarted(tmp_path: Path, both: Both) -> None:
    come_in, sit_down = both
    with free_ports() as ports:
        with serving(tmp_path, ports[0]) as server:
            ada, grace = come_in(ports[0], "Ada"), sit_down(ports[0], "Grace")
            grace.enter("lobby")
            ada.join("lobby")
            grace.says("before")
            assert ada.next() == ("Grace", "before")
            server.freeze()
            grace.says("who hears me?")
            posting = threading.Thread(target=ada.post, args=["and me?"])
            posting.start()
            ada.wait_sent("and me?")
            server.kill()
        grace.sees_state("Offline")
        assert ada.ends.get(timeout=LIMIT).code == 1006
        with serving(tmp_path, ports[0]):
            posting.join(LIMIT)
            assert {ada.next(), ada.next()} == {("Ada", "and me?"), ("Grace", "who hears me?")}
            grace.sees_state("Connected")
            grace.sees("Ada", "and me?")
            grace.sees("Grace", "who hears me?")
            grace.says("after")
            assert ada.next() == ("Grace", "after")
            ada.post("and you?")
            grace.sees("Ada", "and you?")
            ada.close()
        assert not posting.is_alive()


@pytest.mark.slow
def test_the_page_says_what_is_wrong(port: int, sit_down: Callable[..., Person]) -> None:
    grace = sit_down(port, "Grace")
    grace.page.get_by_label("Token").fill("wrong")
    grace.page.keyboard.press("Enter")
    grace.sees_error("wrong token")
    grace.page.get_by_label("Token").fill(TOKEN)
    grace.enter("limits")
    grace.page.get_by_label("Your message").evaluate(
        "draft => { for (let n = 0; n < 30; n++) { draft.value = `message ${n}`; draft.form.requestSubmit(); } }"
    )
    grace.sees_error("too many requests: 5 a second are allowed")
    grace.expect(grace.page.get_by_label("Your message")).to_have_value(re.compile("message 29"))  # nothing is lost


@pytest.mark.slow
def test_the_page_of_somebody_else_is_refused(port: int, browser: Browser) -> None:
    connect = f"""() => new Promise(resolve => {{
        const socket = new WebSocket("ws://127.0.0.1:{port}/ws");
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("refused");
    }})"""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        assert page.evaluate(connect) == "open"
        page.goto(f"http://localhost:{port}/health")  # another origin, in Chromium's eyes and in ours
        with page.expect_console_message(lambda message: "Unexpected response code: 403" in message.text):
            assert page.evaluate(connect) == "refused"
