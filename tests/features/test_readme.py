"""Every code block of the README and of `docs` is run, against servers of its own, and must do what it says.

What a block may count on:

- Each ``ws://host`` or ``wss://host`` in it, but 127.0.0.1, is replaced by that of a local server; the path stays. The
  server sends each message back; an answer to a JSON object with an "id" has the fields of `REPLY` besides. With the
  path ``/feed`` it says "news" first, and closes (1000) when it has answered "hello". A block with ``ssl=`` gets TLS:
  ``ca.pem`` is the server's CA, ``me.pem`` a certificate that the server asks for. `PROXIES` are replaced by real ones.
- A name `url`. A block that imports nothing from nwebsocket is an excerpt: it gets the package's public names, the
  modules of `MODULES` and, if it uses `ws` without assigning it, an open socket of that name.
- ``<!-- continues -->`` on the line before its fence: it goes on where the block before it ended, with all names.
- ``<!-- file: chat.py -->``: what it imports and defines is also that module, for the other blocks.
- One with ``__name__ == "__main__"`` is a script, run by a Python of its own; one with ``def test_`` is a test file,
  run by pytest, with ``local_server.py`` as its ``conftest.py``. Warnings are errors in both.
- A block of shell is run by bash, with an empty standard input, ``python`` and the tests' commands in its PATH.

What it must do:

- Run to its end without an exception, also in handlers and threads; nor may a warning or an error be logged.
- Open every socket that it makes. Those that it leaves open are closed after it.
- Print what it promises: ``# -> text`` at the end of a line says that `text` is a printed line; several come in this
  order, perhaps with others between them. ``...`` stands for anything.

What cannot be run here is in `ELSEWHERE`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import http.cookiejar
import io
import json
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_server
import programs
import pytest
from conftest import Log
from peers import CLOSE, CONTINUATION, LIMIT, PING, TEXT, Authority, Peer, RawServer, close_frame, frame, pong, text
from until import until

import nwebsocket

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Blocks that are not run here, by their first lines, and why.
ELSEWHERE = {
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[examples]' && .venv/bin/python examples/quickstart.py": (
        "test_examples.py runs the example, and .ci/run installs as the next block does"
    ),
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[tests]' && .venv/bin/python -m pytest -q": (
        ".ci/run takes it from the README"
    ),
    "pip install -e '.[examples]' && python examples/chat/server.py": "test_chat.py runs the server",
    "from client import ChatClient, find_token": "test_chat.py runs this with that server",
    "python tests/system/simulate.py --runs 1000                 # every scenario so often, by all cores": (
        "test_simulation.py runs it"
    ),
    "pip install --no-deps --target old nwebsocket==1.0.0": "the benchmarks take many minutes",
}

MODULES = {"http": http, "json": json, "logging": logging, "ssl": ssl, "threading": threading, "time": time}

#: What an answer has besides the fields of its query.
REPLY = {"users": ["Ada", "Grace"]}

PROXIES: dict[str, Callable[[], contextlib.AbstractContextManager[programs.Program]]] = {
    "user:password@proxy.example:3128": lambda: programs.tinyproxy(("user", "password")),
    "localhost:1080": programs.microsocks,
}


# --- The blocks


@dataclass
class Block:
    """A fenced block of a page. ``line`` is that of its first line of code, ``notes`` the comments before its fence."""

    page: str
    language: str
    line: int
    code: str
    notes: dict[str, str]

    @property
    def first_line(self) -> str:
        return self.code.partition("\n")[0].strip()

    @property
    def promises(self) -> list[str]:
        """What it says that it prints."""
        return re.findall(r"# -> (.*?) *$", self.code, re.MULTILINE)

    def is_script(self) -> bool:
        return "__name__ ==" in self.code

    def is_test(self) -> bool:
        return bool(re.search(r"^def test_", self.code, re.MULTILINE))


def blocks_of(markdown: str, page: str = "README.md") -> Iterator[Block]:
    """Find the blocks that name a language."""
    lines = iter(enumerate(markdown.splitlines(), 1))
    notes: dict[str, str] = {}
    for number, line in lines:
        if note := re.fullmatch(r"\s*<!-- (\w+)(?:: (.*?))? -->", line):
            notes[note[1]] = note[2] or ""
            continue
        if fence := re.fullmatch(r"\s*```(\w+)", line):
            code = []
            for _, line in lines:
                if line.strip() == "```":
                    break
                code.append(line)
            yield Block(page, fence[1], number + 1, textwrap.dedent("\n".join(code)) + "\n", notes)
        notes = {}


BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(encoding="utf-8"), page.name)]


def chains(blocks: list[Block]) -> list[list[Block]]:
    """Each block together with those that continue it, but for what is run elsewhere."""
    found: list[list[Block]] = []
    for block in blocks:
        if "continues" in block.notes:
            found[-1].append(block)
        elif block.first_line not in ELSEWHERE:
            found.append([block])
    return found


# --- The server


def converse(peer: Peer) -> None:
    """Take one frame after the other, so that all messages are answered before the Close frame that follows them."""
    with contextlib.suppress(EOFError, OSError):  # a client that has been closed while it connected
        offered = peer.headers.get("sec-websocket-protocol")
        is_feed = peer.path.startswith("/feed")
        peer.accept(protocol=offered and offered.split(",")[0], after=text("news") if is_feed else b"")
        for opcode, payload in messages(peer):
            peer.send(answer(opcode, payload))
            if is_feed and payload == b"hello":
                peer.send(close_frame(1000))
                peer.read_until_close()
                return


def messages(peer: Peer) -> Iterator[tuple[int, bytes]]:
    """The messages up to the Close frame, which is answered like the pings."""
    kind, message = TEXT, b""
    while (received := peer.read_frame()).opcode != CLOSE:
        if received.opcode == PING:
            peer.send(pong(received.payload))
            continue
        kind = kind if received.opcode == CONTINUATION else received.opcode
        message += received.payload
        if received.fin:
            yield kind, message
            message = b""
    peer.send(frame(CLOSE, received.payload))


def answer(opcode: int, payload: bytes) -> bytes:
    """The message itself; a query's with an answer."""
    with contextlib.suppress(ValueError):
        query = json.loads(payload) if opcode == TEXT else None
        if isinstance(query, dict) and "id" in query:
            payload = json.dumps({**query, **REPLY}).encode()
    return frame(opcode, payload)


class Surroundings:
    """What a block needs around it, started when it is first asked for: servers, proxies, certificates."""

    def __init__(self, ca: Authority, stack: contextlib.ExitStack) -> None:
        self._ca = ca
        self._stack = stack
        self._started: dict[str, str] = {}

    def url(self, code: str) -> str:
        """That of the server for this code, without a path."""
        scheme, serve = ("wss", self._serve_tls) if "ssl=" in code else ("ws", self._serve)
        return self._once(scheme, serve)

    def localized(self, code: str) -> str:
        """The code with the servers and proxies of here."""
        for address in PROXIES:
            if address in code:
                code = code.replace(address, self._once(address, functools.partial(self._start_proxy, address)))
        return re.sub(r"wss?://(?!127\.)[^/\"'`\s)]+", self.url(code), code)

    def _once(self, name: str, start: Callable[[], str]) -> str:
        if name not in self._started:
            self._started[name] = start()
        return self._started[name]

    def _serve(self, context: ssl.SSLContext | None = None) -> str:
        return self._stack.enter_context(RawServer(converse, ssl=context)).url.rstrip("/")

    def _serve_tls(self) -> str:
        self._ca.root.cert_pem.write_to_path("ca.pem")
        self._ca.root.issue_cert("me.example").private_key_and_cert_chain_pem.write_to_path("me.pem")
        context = self._ca.server()
        self._ca.root.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._serve(context)

    def _start_proxy(self, address: str) -> str:
        program = self._stack.enter_context(PROXIES[address]())
        return re.sub(r"[\w.]+:\d+$", f"127.0.0.1:{program.port}", address)


@pytest.fixture
def surroundings(ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    """Those of one test, with a working directory for the files."""
    monkeypatch.chdir(tmp_path)
    write_modules(BLOCKS)
    with contextlib.ExitStack() as stack:
        yield Surroundings(ca, stack)


def write_modules(blocks: list[Block]) -> None:
    for block in blocks:
        if name := block.notes.get("file"):
            Path(name).write_text(definitions(block.code), encoding="utf-8")


def definitions(code: str) -> str:
    """What a module of this code imports and defines, without what it does."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return "\n".join(ast.unparse(node) for node in ast.parse(code).body if isinstance(node, kept))


# --- Running them


class Output(io.StringIO):
    """What is printed, by any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = threading.Condition()

    def write(self, text: str) -> int:
        with self._grown:
            self._grown.notify_all()
            return super().write(text)

    def expect(self, block: Block) -> None:
        """Wait until all that the block promises has been printed."""
        with self._grown:
            if not self._grown.wait_for(lambda: missing(block, self.getvalue()) is None, LIMIT):
                check_promises(block, self.getvalue())


def missing(block: Block, printed: str) -> str | None:
    """The first promise that was not kept."""
    lines = iter(printed.splitlines())
    for promise in block.promises:
        pattern = re.escape(promise).replace(r"\.\.\.", ".*")
        if not any(re.fullmatch(pattern, line) for line in lines):
            return promise
    return None


def check_promises(block: Block, printed: str) -> None:
    promise = missing(block, printed)
    assert promise is None, f"{block.page}:{block.line}: {promise!r} was not printed, or not in its turn:\n{printed}"


class Session:
    """Runs blocks in one namespace, as the cells of a notebook: what an expression gives is kept."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._kept: list[Any] = []
        self._names: dict[str, Any] = {"__name__": "readme", "_keep": self._kept.append}

    def run(self, block: Block) -> None:
        tree = ast.parse(self._surroundings.localized(block.code), block.page)
        self._names["url"] = self._surroundings.url(block.code) + "/"
        if not imports_package(tree):
            self._give(tree)
        tree.body = [keeping(node) for node in tree.body]
        ast.increment_lineno(tree, block.line - 1)
        exec(compile(ast.fix_missing_locations(tree), block.page, "exec"), self._names)

    def _give(self, tree: ast.Module) -> None:
        """Have what an excerpt may use without importing it."""
        given = MODULES | {name: getattr(nwebsocket, name) for name in nwebsocket.__all__}
        self._names = given | self._names
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "ws"]
        if names and "ws" not in self._names and not any(isinstance(node.ctx, ast.Store) for node in names):
            self._names["ws"] = nwebsocket.connect(self._names["url"])

    def sockets(self) -> list[nwebsocket.WebSocket]:
        """All that the blocks have made, as far as they can be found."""
        values = [*self._names.values(), *self._kept, *nwebsocket.open_sockets()]
        return [value for value in values if isinstance(value, nwebsocket.WebSocket)]


def imports_package(tree: ast.Module) -> bool:
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return any("nwebsocket" in line for line in imports)


def keeping(node: ast.stmt) -> ast.stmt:
    """The statement; one that is an expression keeps its value."""
    if not isinstance(node, ast.Expr):
        return node
    call = ast.Call(ast.Name("_keep", ast.Load()), [node.value], [])
    return ast.copy_location(ast.Expr(ast.copy_location(call, node)), node)


def run_here(chain: list[Block], surroundings: Surroundings) -> None:
    """Run them in this process; whatever they open must open, and is closed."""
    session, output = Session(surroundings), Output()
    with contextlib.redirect_stdout(output):
        try:
            for block in chain:
                session.run(block)
                output.expect(block)
            for ws in session.sockets():
                settle(ws)
        finally:
            nwebsocket.close_all()
            for ws in session.sockets():
                ws.wait_closed(LIMIT)


def settle(ws: nwebsocket.WebSocket) -> None:
    """Wait until it has been open, and all answers have come and been heard by the handlers."""
    ws.wait_open(LIMIT)
    with contextlib.suppress(ConnectionError):
        ws.ping(LIMIT)
    until(ws._nwebsocket.callbacks.settled, f"a handler of {ws!r} does not return")


def run_program(block: Block, surroundings: Surroundings, *command: str) -> None:
    """Run a command on the block, in a file; it must end well and say nothing on standard error."""
    Path(command[-1]).write_text(surroundings.localized(block.code), encoding="utf-8")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(Path(nwebsocket.__file__).parent.parent),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take longer to import than the tests to run
    }
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{block.page}:{block.line}:\n{done.stdout}{done.stderr}"
    check_promises(block, done.stdout)


def run(chain: list[Block], surroundings: Surroundings) -> None:
    """Run a block, and those that continue it, in the way that fits it."""
    block, python = chain[0], (sys.executable, "-W", "error")
    if block.language == "sh":
        run_program(block, surroundings, "bash", "-eu", "commands.sh")
    elif block.is_test():
        shutil.copy(local_server.__file__, "conftest.py")
        run_program(block, surroundings, *python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    elif block.is_script():
        run_program(block, surroundings, *python, "script.py")
    else:
        run_here(chain, surroundings)


# --- The tests


@pytest.mark.parametrize("chain", chains(BLOCKS), ids=lambda chain: f"{chain[0].page} line {chain[0].line}")
def test_block(chain: list[Block], surroundings: Surroundings, log: Log) -> None:
    run(chain, surroundings)
    assert [record.getMessage() for record in log.warnings()] == []


def test_no_block_is_overlooked() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert sum(len(re.findall(r"^ *```\w", text, re.MULTILINE)) for text in texts) == len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"python", "sh"}
    assert ELSEWHERE.keys() <= {block.first_line for block in BLOCKS}


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / ".github").glob("*.md")], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if not target.startswith("https://"):
            goal = (page.parent / path).resolve() if path else page
            assert goal.exists(), target
            assert not anchor or anchor in anchors(goal), target


def anchors(page: Path) -> set[str]:
    """Those of its headings, as hosts for code make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


# --- The tests of these tests

GOOD = {
    "a promise kept by a handler": """
        ```python
        from nwebsocket import WebSocket
        ws = WebSocket("wss://example.org/chat").wait_open()
        ws.onmessage = print
        ws.send("hello")                # -> hello
        ```
        <!-- continues -->
        ```python
        ws.send("you there")            # -> you ...
        ```""",
    "an excerpt": """
        ```python
        ws.send(json.dumps([1]))
        print(ws.recv(timeout=5))       # -> [1]
        ```""",
    "a script": """
        ```python
        from nwebsocket import connect
        if __name__ == "__main__":
            with connect("wss://example.org/feed") as ws:
                print(ws.recv())        # -> news
        ```""",
    "a module and its test": """
        <!-- file: calculator.py -->
        ```python
        def double(number):
            return 2 * number
        print(double(2))                # -> 4
        ```
        ```python
        from calculator import double
        from nwebsocket import connect
        def test_double(server):
            with connect(server.url) as ws:
                ws.send(str(double(2)))
                assert server.recv() == "4"
        ```""",
    "shell": """
        ```sh
        python -c 'import nwebsocket; print(nwebsocket.connect("wss://example.org/feed").recv())'  # -> news
        ```""",
}

BAD = {
    "a promise": ("README.md:3: 'two' was not printed", """
        ```python
        print("one")                    # -> two
        ```"""),
    "what is not imported": ("name 'Deflate' is not defined", """
        ```python
        from nwebsocket import WebSocket
        WebSocket(url, compression=Deflate())
        ```"""),
    "a socket that does not open": ("127.0.0.1 port 1 ", """
        ```python
        WebSocket("ws://127.0.0.1:1")
        ```"""),
    "a script": ("ZeroDivisionError", """
        ```python
        if __name__ == "__main__":
            1 / 0
        ```"""),
    "a test": ("1 failed", """
        ```python
        def test_sum():
            assert 1 + 1 == 3
        ```"""),
    "shell": ("README.md:3", """
        ```sh
        false
        ```"""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("markdown", GOOD.values(), ids=GOOD)
def test_good_blocks_pass(markdown: str, surroundings: Surroundings) -> None:
    blocks = list(blocks_of(markdown))
    write_modules(blocks)
    for chain in chains(blocks):
        run(chain, surroundings)


@pytest.mark.slow
@pytest.mark.parametrize(("message", "markdown"), BAD.values(), ids=BAD)
def test_bad_blocks_fail(
    message: str, markdown: str, surroundings: Surroundings, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", 0.2)
    (chain,) = chains(list(blocks_of(markdown)))
    with pytest.raises((AssertionError, NameError, OSError), match=re.escape(message)):
        run(chain, surroundings)
    log.warnings()


def test_an_error_in_a_handler_is_noticed(surroundings: Surroundings, log: Log) -> None:
    (block,) = blocks_of("""
        ```python
        ws.onmessage = lambda message: 1 / 0
        ws.send("hello")
        ```""")
    run([block], surroundings)
    assert len(log.errors()) == 1
