"""What a type checker and an editor know of the options and the methods, and what they refuse."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nwebsocket
from nwebsocket import (
    Options,
    QueryMixin,
    ReconnectingOptions,
    ReconnectingWebSocket,
    WebSocket,
    WebSocketOptions,
    connect,
)
from nwebsocket.options import CommonOptions

FIELDS = {field.name: field for field in dataclasses.fields(Options)}


class Asking(QueryMixin, WebSocket):
    pass


class AskingAgain(QueryMixin, ReconnectingWebSocket):
    pass


# --- One list of options


def types_of(kind: Any) -> dict[str, str]:
    return {name: annotation.__forward_arg__ for name, annotation in kind.__annotations__.items()}


def test_options_are_those_that_may_be_given() -> None:
    assert WebSocketOptions.__optional_keys__ == FIELDS.keys()
    assert ReconnectingOptions.__optional_keys__ == (FIELDS.keys() | {"max_outbox"}) - {"sock"}
    assert not WebSocketOptions.__required_keys__ | ReconnectingOptions.__required_keys__


def test_options_have_the_types_that_may_be_given() -> None:
    """But for the headers, which they hold as pairs, and the proxy, which they hold parsed."""
    types = {name: field.type for name, field in FIELDS.items()}
    assert types.pop("headers") == "tuple[tuple[str, str], ...]"
    assert types.pop("proxy") == "str | Proxy | Literal[True] | None"
    given = types_of(WebSocketOptions)
    assert {name: given[name] for name in types} == types
    assert (given["headers"], given["proxy"]) == ("Headers", "str | Literal[True] | None")


def test_the_descriptions_are_in_order_and_name_the_defaults() -> None:
    rows = re.findall(r"^``(\w+)`` +(\S+(?: \S+)*)  ", str(inspect.getdoc(WebSocketOptions)), re.MULTILINE)
    assert [(name, eval(default)) for name, default in rows] == [(name, each.default) for name, each in FIELDS.items()]


@pytest.mark.parametrize("function", [WebSocket, Asking, WebSocket.__init__, connect])
def test_help_shows_every_option(function: Any) -> None:
    types = types_of(WebSocketOptions)
    assert shown(function) == {name: (field.default, types[name]) for name, field in FIELDS.items()}


of_python_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 looks at WebSocket.__new__")


@pytest.mark.parametrize("function", [ReconnectingWebSocket, pytest.param(AskingAgain, marks=of_python_3_11)])
def test_help_shows_every_option_of_a_socket_that_comes_back(function: Any) -> None:
    common = {name: (FIELDS[name].default, annotation) for name, annotation in types_of(CommonOptions).items()}
    ours = {"headers": ((), "Headers | Callable[[], Headers]"), "max_outbox": (10_000, "int")}
    assert shown(function) == common | ours


def shown(function: Any) -> dict[str, tuple[object, str]]:
    """The default and the type of each option in a signature."""
    parameters = list(inspect.signature(function).parameters.values())
    options = [each for each in parameters if each.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert {each.kind for each in options} == {inspect.Parameter.KEYWORD_ONLY}
    assert [each.name for each in parameters if each not in options and each.name != "self"] == ["url", "protocols"]
    return {each.name: (each.default, each.annotation) for each in options}


# --- mypy

ACCEPTED = '''
from __future__ import annotations

import ssl

import numpy as np
from typing_extensions import Unpack, assert_type

from nwebsocket import (
    CloseEvent,
    Deflate,
    MessageEvent,
    Outbox,
    Query,
    QueryMixin,
    QueryStats,
    ReadyState,
    ReconnectingOptions,
    ReconnectingWebSocket,
    Response,
    Stats,
    WebSocket,
    WebSocketOptions,
    close_all,
    connect,
    open_sockets,
)

URL = "ws://host/"


class Chat(WebSocket):
    def __init__(self, url: str, room: str, **options: Unpack[WebSocketOptions]) -> None:
        super().__init__(url, ["chat"], **options)
        self.room = room

    def onopen(self) -> None:
        self.send(self.room)

    def onmessage(self, message: str | bytes) -> None:
        print(message)

    def onerror(self, error: Exception) -> None:
        print(error)

    def onclose(self, event: CloseEvent) -> None:
        print(event.code)


class Untyped(WebSocket):
    def onmessage(self, message):  # type: ignore[no-untyped-def]
        print(message)


class Feed(QueryMixin, WebSocket):
    pass


class LastingFeed(QueryMixin, ReconnectingWebSocket):
    def __init__(self, **options: Unpack[ReconnectingOptions]) -> None:
        super().__init__(lambda: URL, **options)


class LastingChat(Chat, ReconnectingWebSocket):
    pass


def text_only(message: str) -> None:
    print(message.upper())


def heard(event: MessageEvent) -> None:
    assert_type(event.data, "str | bytes")


# What may be given.
some: WebSocketOptions = {"max_size": None, "callbacks": "loop"}
ws = WebSocket(URL, "chat", **some)
WebSocket(URL, max_size=2**20, headers={"X": "y"}, auth=("me", "secret"), proxy=None, compression=Deflate(level=1))
WebSocket(URL, headers=[("X", "y"), ("X", "z")], ssl=ssl.create_default_context(), open_timeout=5, unix=b"/path")
assert_type(connect(URL, ["a", "b"], ping_interval=None, output="cell", compression=None), WebSocket)
chat = Chat(URL, "kitchen", max_queue=10, cookies={"a": "b"})
LastingChat(URL, "kitchen")
feed = Feed(URL, (), open_timeout=1.5)
lasting = ReconnectingWebSocket(URL, headers={"X": "y"}, max_outbox=5, max_size=None)
ReconnectingWebSocket(lambda: URL, lambda: ["chat"], headers=lambda: {"X": "y"}, ping_timeout=None)
ReconnectingWebSocket(lambda: URL, lambda: "chat", headers=lambda: [("X", "y")])
LastingFeed(headers=lambda: {"X": "y"}, max_outbox=5)

# Handlers.
ws.onopen = lambda: ws.send("hello")
ws.onopen = lambda event: print(event)
ws.onmessage = lambda message: print(message)
ws.onmessage = text_only
ws.onmessage = print
ws.onclose = None
ws.addEventListener("message", heard)
ws.addEventListener("close", lambda event: print(event.wasClean), once=True)

# What may be sent.
ws.send("text")
ws.send(b"bytes")
ws.send(bytearray(8))
ws.send(memoryview(b"bytes"))
ws.send(np.zeros(8))
ws.send(["in", "fragments"])
ws.send((b"in", b"fragments"))
ws.send(piece for piece in "fragments")
lasting.send("text", keep=False)

# What comes.
assert_type(ws.recv(), "str | bytes")
assert_type(ws.recv(timeout=5), "str | bytes")
assert_type(list(ws), "list[str | bytes]")
for message in ws:
    assert_type(message, "str | bytes")
with chat as entered:
    assert_type(entered, Chat)
assert_type(chat.wait_open(5), Chat)
assert_type(ws.wait_closed(), CloseEvent)
assert_type(ws.ping(), float)
assert_type(ws.readyState, ReadyState)
assert_type(ws.url, str)
assert_type(ws.protocol, str)
assert_type(ws.extensions, str)
assert_type(ws.binaryType, str)
assert_type(ws.bufferedAmount, int)
assert_type(ws.latency, "float | None")
assert_type(ws.stats, Stats)
assert_type(ws.response, "Response | None")
assert_type(feed.query({"type": "users"}), Query)
assert_type(feed.stats, QueryStats)
assert_type(lasting.outbox, Outbox)
assert_type(list(lasting.outbox), "list[str | bytes]")
assert_type(lasting.at_risk, int)
assert_type(lasting.retry_count, int)
assert_type(open_sockets(), "list[WebSocket]")
assert_type(close_all(), "list[WebSocket]")
'''

REFUSED = '''
import socket

from nwebsocket import QueryMixin, ReconnectingWebSocket, WebSocket, connect


class Feed(QueryMixin, WebSocket):
    pass


def number() -> int:
    return 5


URL = "ws://host/"
ws, lasting = WebSocket(URL), ReconnectingWebSocket(URL)

WebSocket(URL, max_sise=1)  # call-arg
connect(URL, max_sise=1)  # call-arg
Feed(URL, max_sise=1)  # call-arg
ReconnectingWebSocket(URL, max_sise=1)  # call-arg
WebSocket(URL, max_outbox=1)  # call-arg
ReconnectingWebSocket(URL, sock=socket.socket())  # call-arg
WebSocket(URL, (), None)  # call-arg

WebSocket(URL, max_size="1")  # arg-type
WebSocket(URL, close_timeout=None)  # arg-type
WebSocket(URL, callbacks="threads")  # arg-type
WebSocket(URL, auth="me:secret")  # arg-type
WebSocket(URL, headers="X: y")  # arg-type
WebSocket(URL, headers=lambda: {"X": "y"})  # arg-type
connect(URL, ping_interval="20")  # arg-type
Feed(URL, compression="gzip")  # arg-type
ReconnectingWebSocket(URL, max_size="1")  # arg-type
ReconnectingWebSocket(URL, headers=number)  # arg-type
ReconnectingWebSocket(number)  # arg-type
WebSocket(lambda: URL)  # arg-type

ws.send({"a": 1})  # arg-type
ws.send({"a": "b"}.values())  # arg-type
ws.send(5)  # arg-type
ws.send(None)  # arg-type
lasting.send({"a": 1})  # arg-type
ws.recv(timeout="5")  # arg-type
ws.addEventListener("opened", print)  # call-overload

ws._nwebsocket.bridgee  # attr-defined
ws._nwebsocket.bridge.sent  # attr-defined
'''


@pytest.mark.slow
def test_a_type_checker_accepts_what_is_right_and_refuses_what_is_not(tmp_path: Path) -> None:
    """By mypy, in one run: most of its time goes to the package itself."""
    for name, program in {"accepted": ACCEPTED, "refused": REFUSED}.items():
        (tmp_path / f"{name}.py").write_text(program, encoding="utf-8")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"),
            *("--no-pretty", "--show-error-codes", "--cache-dir", str(tmp_path / "cache"), "accepted.py", "refused.py"),
        ],
        env=os.environ | {"MYPYPATH": str(Path(nwebsocket.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
    )
    found = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.MULTILINE)
    expected = [
        ("refused", str(number), code)
        for number, line in enumerate(REFUSED.splitlines(), 1)
        for code in [line.partition("  # ")[2]]
        if code
    ]
    assert len(expected) > 25
    assert set(found) == set(expected), result.stdout + result.stderr
