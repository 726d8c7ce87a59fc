"""In a Jupyter notebook: where output appears, the hint at a second socket, the card, interrupts, and the example."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import kernels
import peers
import pytest
from peers import LIMIT

from nwebsocket import InvalidArgument, Options, QueryMixin, ReconnectingWebSocket, WebSocket
from nwebsocket._base.log import Trace
from nwebsocket._connection.bridge import Bridge
from nwebsocket._notebook.card import _message, duration, latency, size
from nwebsocket._notebook.record import PREFIX, Cell, Record, Remembered

EXAMPLE = Path(__file__).parents[2] / "examples" / "notebook.ipynb"

pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kernel() -> Iterator[kernels.Kernel]:
    with kernels.kernel() as running:
        running.run("imports", "import logging, threading\nfrom nwebsocket import *\nfrom IPython.display import *")
        yield running


@pytest.fixture
def notebook(kernel: kernels.Kernel) -> Iterator[kernels.Kernel]:
    """The kernel of all tests here, with no sockets open before and after."""
    kernel.outputs.clear()
    yield kernel
    kernel.run("end", f"for ws in close_all(): ws.wait_closed({LIMIT})")
    assert kernel.error("end") is None


# ---- the card


class Chat(WebSocket):
    pass


class Asking(QueryMixin, WebSocket):
    pass


def words(html: str) -> str:
    """What is to be read on the card."""
    return re.sub(r"\s+", " ", unescape(re.sub("<[^>]*>", " ", html))).strip()


def test_the_card_of_an_open_socket_says_how_it_is() -> None:
    def script(peer: peers.Peer) -> None:
        peer.accept(protocol="chat.v2")
        peer.send(peers.text("one") + peers.binary(b"two"))
        assert peer.read_frame().opcode == peers.TEXT
        peer.send(peers.pong(peer.read_frame().payload))
        peer.read_until_close()

    with peers.RawServer(script) as server, Chat(server.url, "chat.v2") as ws:
        assert ws.recv(LIMIT) == "one"
        ws.send("three")
        ws.ping(LIMIT)
        text = words(ws._repr_html_())
    assert text.startswith(f"● Chat OPEN {ws.url}")
    assert re.search(r"open for \d+\.\d s sub-protocol chat\.v2 sent 1 message · \d+ bytes on the wire", text)
    assert re.search(r"received 2 messages · \d+ bytes on the wire · 1 not taken yet latency [\d.]+ m?s$", text)


def test_the_card_of_a_closed_socket_says_how_it_ended(echo: str) -> None:
    with WebSocket(echo) as ws:
        ws.close(4001, "<b>done</b>\nhere")
    html = ws._repr_html_()
    assert "<b>done" not in html
    assert words(html).endswith("closed 4001 “<b>done</b>↵here” · by the client")
    assert "was open for" in words(html)


@pytest.mark.parametrize("evil", ["\u202e", "\u2066", "\u200f", "\u2028", "\u2029", "\x1b", "\x85", "\r", "\ufeff"])
def test_nothing_on_the_card_turns_its_text_around_or_breaks_it(echo: str, evil: str) -> None:
    with WebSocket(echo) as ws:
        ws.close(4001, f"a{evil}b")
    assert evil not in ws._repr_html_()
    for text in (f"a{evil}b", f"{evil * 200}"):
        assert evil not in _message(Remembered(sent=False, at=0, start=text, size=len(text), cut=False))


def test_the_card_of_a_socket_that_failed_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"ws://user:secret@127.0.0.1:{nobody.getsockname()[1]}/<script>?token=secret"
    ws = WebSocket(url)
    ws.wait_closed(LIMIT)
    html = ws._repr_html_()
    assert not re.search("secret|<script", html)
    assert re.search(r"/%3Cscript%3E\?\.\.\. .* closed 1006 · cannot connect to 127\.0\.0\.1 port \d+", words(html))


def test_the_card_of_a_socket_that_comes_back_says_when() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"ws://127.0.0.1:{nobody.getsockname()[1]}/"
    ws = ReconnectingWebSocket(url)
    failed = threading.Event()
    ws.addEventListener("error", lambda _: failed.set())
    ws.send("kept")
    assert failed.wait(LIMIT)
    text = words(ws._repr_html_())
    ws.close()
    ws.wait_closed(LIMIT)
    waiting = r"attempts \d+ since .* next attempt (in [\d.]+ s|now) outbox 1 message · 4 bytes"
    assert re.search(f"CONNECTING .* {waiting}", text)
    assert "last close 1006 · cannot connect" in text
    assert "open for" not in text


def test_the_card_of_a_socket_that_came_back_no_more(echo: str) -> None:
    with ReconnectingWebSocket(echo) as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
        assert re.search(r"open for \d+\.\d s sent 1 message", words(ws._repr_html_()))
    text = words(ws._repr_html_())
    assert text.startswith("● ReconnectingWebSocket CLOSED")
    assert text.endswith("closed 1005 (no code) · by the client")
    assert re.search(r"was open for \d+\.\d s sent 1 message", text)


def test_the_card_of_a_socket_never_opened() -> None:
    class Forgetful(WebSocket):
        def __init__(self) -> None:
            pass

    assert words(Forgetful()._repr_html_()) == "● Forgetful never opened"


def test_the_card_has_no_colours_that_need_a_light_or_a_dark_page(echo: str) -> None:
    with WebSocket(echo) as ws:
        html = ws._repr_html_()
    assert not re.search(r"background|black|white|#000|#fff", html.replace("white-space", ""))


def test_a_subclass_may_have_a_card_of_its_own(echo: str) -> None:
    class Own(WebSocket):
        def _repr_html_(self) -> str:
            return "mine"

    with Own(echo) as ws:
        assert ws._repr_html_() == "mine"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3660, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000512, "0.0512 ms"), (0.123456, "123 ms"), (0.9996, "1.0 s"), (12.34, "12.3 s")]
)
def test_latencies(seconds: float, text: str) -> None:
    assert latency(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1234, "1.23 kB"), (45_600_000, "45.6 MB"), (7e12, "7e+03 GB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_of_a_large_message_only_the_beginning_is_remembered() -> None:
    record = Record(Cell({}, []), Bridge(Options(), Trace()))
    for message in ["é" * 2**20, bytes(2**20)] * 100:
        assert not record.takes(message, [])
    assert all(len(message.start) == PREFIX and message.cut for message in record.messages)
    assert len(record.messages) < 10


# ---- outside of a notebook


def test_outside_of_a_notebook_nothing_is_remembered_and_output_does_nothing(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ipykernel  # noqa: F401 - imported, but no kernel: it may be there for something else

    with Asking(echo, output="cell") as ws:
        assert ws._nwebsocket.bridge.inbox.sifter is ws._nwebsocket.sifter
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


def test_output_is_checked() -> None:
    with pytest.raises(InvalidArgument, match="output must be one of 'cell', None, not 'socket'"):
        WebSocket("ws://127.0.0.1:1", output="socket")  # type: ignore[arg-type]


# ---- output


TALKATIVE = """
def talk(where, **options):
    ws = WebSocket({url!r}, callbacks=where, **options)
    def onmessage(message):
        print("printed", message)
        logging.getLogger("somebody").warning("logged %s", message)
        display(HTML("shown " + message))
    ws.onmessage = onmessage
    return ws.wait_open({limit})
"""


def has_all(notebook: kernels.Kernel, cell: str, message: str) -> bool:
    """Whether all that the handler says of this message is shown under this cell."""
    return (
        f"printed {message}\n" in notebook.printed(cell)
        and f"logged {message}\n" in notebook.printed(cell, "stderr")
        and f"shown {message}" in notebook.displayed(cell, "text/html")
    )


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_handlers_print_under_the_cell_that_runs(notebook: kernels.Kernel, echo: str, where: str) -> None:
    notebook.run("first", TALKATIVE.format(url=echo, limit=LIMIT) + f"ws = talk({where!r}); ws.send('1')")
    notebook.wait(lambda: has_all(notebook, "first", "1"))
    notebook.run("second", "ws.send('2')")
    notebook.wait(lambda: has_all(notebook, "second", "2"))


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_while_no_cell_runs_handlers_print_under_the_last_one(notebook: kernels.Kernel, where: str) -> None:
    """Also when the front end has asked for something else since, as it does while its user types."""
    typed = threading.Event()

    def say(connection: peers.Connection) -> None:
        assert typed.wait(LIMIT)
        connection.send("now")
        peers.echo(connection)

    with peers.echo_server(handler=say) as server:
        notebook.run("first", TALKATIVE.format(url=server.url, limit=LIMIT) + f"ws = talk({where!r})")
        notebook.run("second", "1 + 1")
        notebook.type("typing", "threading.Thread")
        typed.set()
        notebook.wait(lambda: has_all(notebook, "second", "now"))
        notebook.run("close", "ws.close(); ws.wait_closed()")


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_with_output_cell_handlers_print_under_the_cell_that_opened_the_socket(
    notebook: kernels.Kernel, echo: str, where: str
) -> None:
    notebook.run("first", TALKATIVE.format(url=echo, limit=LIMIT) + f"ws = talk({where!r}, output='cell')")
    notebook.run("second", "ws.send('2')")
    notebook.wait(lambda: has_all(notebook, "first", "2"))
    notebook.run("third", "other = talk('thread'); other.send('3')")
    notebook.wait(lambda: has_all(notebook, "third", "3"))
    notebook.run("fourth", "print(42); ws.send('4')")
    notebook.wait(lambda: has_all(notebook, "first", "4"))
    assert notebook.printed("fourth") == "42\n"


def test_exceptions_in_handlers_are_logged_where_they_would_print(notebook: kernels.Kernel, echo: str) -> None:
    notebook.run("first", f"ws = WebSocket({echo!r}, output='cell'); ws.onmessage = int; ws.wait_open({LIMIT})")
    notebook.run("second", "ws.send('no number')")
    notebook.wait(lambda: "ValueError: invalid literal" in notebook.printed("first", "stderr"))


# ---- the hint


def test_a_second_socket_to_the_same_url_from_another_cell_is_hinted_at_once(
    notebook: kernels.Kernel, echo: str
) -> None:
    opening = f"ws = WebSocket({echo!r}).wait_open({LIMIT}); kept = [*globals().get('kept', []), ws]"
    for cell in ("first", "second", "third"):
        notebook.run(cell, opening)
    hints = [notebook.printed(cell, "stderr") for cell in ("first", "second", "third")]
    assert [bool(hint) for hint in hints] == [False, True, False]
    assert echo.rstrip("/") in hints[1]
    assert "nwebsocket.close_all()" in hints[1]


def test_there_is_no_hint_at_sockets_of_one_cell_nor_after_close_all(notebook: kernels.Kernel, echo: str) -> None:
    several = f"sockets = [WebSocket({echo!r}) for _ in range(3)]\nfor ws in sockets: ws.wait_open({LIMIT})"
    notebook.run("first", several)
    notebook.run("second", f"close_all()\n{several}")
    notebook.run("third", f"other = WebSocket({echo + 'elsewhere'!r}).wait_open({LIMIT})")
    assert [notebook.printed(cell, "stderr") for cell in ("first", "second", "third")] == ["", "", ""]
    assert notebook.error("third") is None


# ---- interrupts


def test_an_interrupt_stops_the_cell_and_not_the_socket(notebook: kernels.Kernel, echo: str) -> None:
    notebook.run("open", f"ws = WebSocket({echo!r}).wait_open({LIMIT})")
    notebook.start("waiting", "print('waiting'); ws.recv()")
    notebook.wait(lambda: notebook.printed("waiting"))
    notebook.interrupt()
    notebook.wait(lambda: notebook.idle("waiting"))
    assert notebook.error("waiting") == "KeyboardInterrupt"
    notebook.run("after", f"ws.send('still here'); print(ws.recv({LIMIT}), ws.readyState.name)")
    assert notebook.printed("after") == "still here OPEN\n"
    assert [notebook.printed(cell, "stderr") for cell in ("open", "waiting", "after")] == ["", "", ""]


def test_an_interrupt_does_not_stop_the_handlers(notebook: kernels.Kernel, echo: str) -> None:
    opening = f"import queue; heard = queue.Queue(); ws = WebSocket({echo!r}); ws.onmessage = heard.put"
    notebook.run("open", f"{opening}; ws.wait_open({LIMIT})")
    notebook.start("busy", "print('busy')\nwhile True: pass")
    notebook.wait(lambda: notebook.printed("busy"))
    notebook.interrupt()
    notebook.wait(lambda: notebook.idle("busy"))
    assert notebook.error("busy") == "KeyboardInterrupt"
    notebook.run("after", f"ws.send('one'); print(heard.get(timeout={LIMIT}))")
    notebook.wait(lambda: notebook.printed("after"))
    assert notebook.printed("after") == "one\n"


# ---- the card in a notebook


WAYS = {
    "callback thread": ("ws = {kind}({url!r}); ws.onmessage = heard.put", "heard.get(timeout=10)"),
    "loop": ("ws = {kind}({url!r}, callbacks='loop'); ws.onmessage = heard.put", "heard.get(timeout=10)"),
    "recv": ("ws = {kind}({url!r})", "ws.recv(10)"),
}
ROUND_TRIPS = """
import queue
class Asking(QueryMixin, WebSocket): pass
heard = queue.Queue()
{opening}
ws.wait_open(10)
for number in range(20):
    ws.send(f"number {{number}}")
    {taking}
ws.{sending}
{taking_last}
ws
"""


@pytest.mark.parametrize("kind", ["WebSocket", "Asking"])
@pytest.mark.parametrize("way", WAYS)
def test_the_last_messages_are_on_the_card_whoever_takes_them(
    notebook: kernels.Kernel, way: str, kind: str
) -> None:
    """recv() would read the socket itself after a few answers; here it must not, or they would not be remembered."""
    opening, taking = WAYS[way]
    asks = kind == "Asking"
    with peers.echo_server(compression=None) as server:
        code = ROUND_TRIPS.format(
            opening=opening.format(kind=kind, url=server.url),
            taking=taking,
            sending="query({'q': '<script>'}).result(10)" if asks else """send('{"q": "<script>"}')""",
            taking_last="" if asks else taking,
        )
        notebook.run("cell", code)
        notebook.run("close", "ws.close(); ws.wait_closed()")
    (html,) = notebook.displayed("cell", "text/html")
    lines = re.findall(r"([↑↓]) \d\d:\d\d:\d\d (number \d+|\{.*?\})", words(html))
    assert lines[:-2] == [(arrow, f"number {number}") for number in (18, 19) for arrow in "↑↓"]
    assert [(arrow, json.loads(text)["q"]) for arrow, text in lines[-2:]] == [("↑", "<script>"), ("↓", "<script>")]
    assert "<script" not in html
    assert notebook.displayed("cell", "text/plain")[0].startswith(f"<{kind} OPEN")


def test_long_and_binary_messages_are_shortened_on_the_card(notebook: kernels.Kernel, echo: str) -> None:
    notebook.run("open", f"ws = WebSocket({echo!r}).wait_open({LIMIT})")
    for message in ("'é' * 100_000", "bytes(range(100))", "'two\\nlines'", "['frag', 'ments']"):
        notebook.run(message, f"ws.send({message}); _ = ws.recv({LIMIT})")
    notebook.run("card", "ws")
    text = words(notebook.displayed("card", "text/html")[0])
    assert re.search(r"↓ [\d:]+ 00 01 02 [0-9a-f ]+ … 100 bytes", text)
    assert re.search(r"↓ [\d:]+ two↵lines ↑ [\d:]+ frag… 9 bytes ↓ [\d:]+ fragments$", text)
    notebook.run("long", f"for _ in range(3): ws.send('é' * 100_000); _ = ws.recv({LIMIT})\nws")
    text = words(notebook.displayed("long", "text/html")[0])
    assert re.search(r"↑ [\d:]+ é{80}… 200,000 bytes ↓ [\d:]+ é{100}… 100,000 characters", text)


# ---- the example


class Client(nbclient.NotebookClient):  # type: ignore[misc,name-defined]
    """Executes a notebook, and interrupts the cell that counts seconds, in the first one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pictures = 0
        self._interrupting: asyncio.Future[None] | None = None

    def process_message(self, message: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if "second 0" in message["content"].get("text", "") and self._interrupting is None:
            self._interrupting = asyncio.ensure_future(self.km.interrupt_kernel())
        self.pictures += "image/png" in message["content"].get("data", {})
        return super().process_message(message, cell, cell_index)


def said(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def shown(cell: Any, mime: str) -> str:
    return "".join(output.get("data", {}).get(mime, "") for output in cell.outputs)


@pytest.mark.slow
def test_the_example_with_an_interrupt_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    nbformat.validate(notebook)
    with tempfile.TemporaryDirectory(prefix="nws-") as directory:
        for name, value in kernels.environment(directory).items():
            monkeypatch.setenv(name, value)
        client = Client(notebook, timeout=LIMIT * 3, allow_errors=True)
        asyncio.run(client.async_execute())  # on a loop that is closed afterwards, unlike the one of execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    errors = {output.ename: cell for cell in cells for output in cell.outputs if output.output_type == "error"}
    assert errors.keys() == {"KeyboardInterrupt"}
    _check_story(cells, errors["KeyboardInterrupt"], client.pictures)


def _check_story(cells: list[Any], interrupted: Any, pictures: int) -> None:
    querying = said(next(cell for cell in cells if '"Lagos", "Lima", "Oslo"' in cell.source))
    assert re.search(r"Lagos: 1538 mm.*Lima: 16 mm.*Oslo: 836 mm", querying, re.DOTALL)
    assert re.search(r"^(Ann|Bob|Cem): ", querying, re.MULTILINE)
    assert interrupted.source.startswith("for second in range(3)")
    after = cells[cells.index(interrupted) + 1 :]
    assert "Chat OPEN" in words(shown(after[0], "text/html"))
    plotting = next(cell for cell in after if "class Plot" in cell.source)
    assert shown(plotting, "image/png")
    assert pictures >= 2
    assert "Lagos: 1538 mm" in said(after[after.index(plotting) + 1])
    assert re.findall(r"<(\w+) CLOSED, 1005", said(cells[-2])) == ["Chat", "Plot"]
    assert "Chat CLOSED" in words(shown(cells[-1], "text/html"))


def test_the_example_is_kept_with_what_it_shows_and_no_errors() -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert EXAMPLE.stat().st_size < 200_000
