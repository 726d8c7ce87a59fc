"""The rows of compare.py: what is measured, in which unit, with which clients, ours first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from _messages import TICK_SIZE
from _server import FLOOD_SIZE

SMALL, LARGE, HUGE = 32, 64 * 2**10, 2**20
FLOOD = 200_000
IDLE = 1000
TICKS = 40_000

BASE = "base"
"""The nwebsocket of another source tree, or without a shortcut, in each of the ways of ours: "base, callbacks"."""
V1, V1_CALLBACKS = "nwebsocket 1.0.0", "nwebsocket 1.0.0, callbacks"
SYNCHRONOUS = ("websockets", "websocket-client", "simple-websocket", "curl_cffi")
PEERS = (*SYNCHRONOUS, "aiohttp")
ALL = (*PEERS, "raw socket")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured.

    ``clients``    ours first: the ratios are its figure to each other's
    ``measure``    how: "rounds" of a job, "default" for rounds with default options, or one of the others of compare.py
    ``job``        for rounds: the method of the clients (see _clients.py), with its ``arguments`` after the URL
    ``server``     with default options: the name of the server (see _real_servers.py)
    ``messages``   how many a round is long; 0: a round is --seconds long
    """

    name: str
    title: str
    clients: tuple[str, ...]
    unit: str = "queries/s"
    measure: str = "rounds"
    job: str = "echo"
    arguments: tuple[Any, ...] = ()
    path: str = "echo"
    server: str = ""
    tls: bool = False
    messages: int = 0

    def with_base(self) -> Row:
        """The same row with BASE next to each of ours."""
        if self.measure == "growth":
            return self
        clients = []
        for client in self.clients:
            clients += [client, base_of(client)] if is_ours(client) else [client]
        return replace(self, clients=tuple(clients))


def library(client: str) -> str:
    return client.partition(",")[0]


def is_ours(client: str) -> bool:
    return library(client) == "nwebsocket"


def base_of(client: str) -> str:
    """The same way of using the other source tree."""
    return BASE + client.removeprefix("nwebsocket")


_WAYS = ("nwebsocket", "nwebsocket, callbacks", "nwebsocket, loop", "nwebsocket, reconnecting")
_RECONNECTING_CALLBACKS = "nwebsocket, reconnecting, callbacks"
_JSON = f"JSON of {TICK_SIZE} B"


def _default(
    name: str,
    title: str,
    clients: tuple[str, ...] = (*_WAYS, _RECONNECTING_CALLBACKS, *ALL),
    server: str = "websockets",
    **how: Any,
) -> Row:
    how = {"job": "echo_texts", "arguments": ("ticks", 1)} | how
    return Row(name, title, clients, measure="default", server=server, **how)


_DEFAULT = (
    _default("json", f"{_JSON}, one at a time"),
    _default("4k", "4 KiB of English, one at a time", arguments=("prose", 1)),
    _default("json-64", f"{_JSON}, 64 in flight", (*_WAYS, *ALL), arguments=("ticks", 64)),
    _default("json-1024", f"{_JSON}, 1,024 in flight", (*_WAYS, *ALL), arguments=("ticks", 1024)),
    _default(
        "received",
        f"{TICKS:,} times {_JSON} received",
        unit="messages/s",
        job="receive_ticks",
        arguments=(),
        path="ticks",
        messages=TICKS,
    ),
    _default(
        "query",
        "that JSON with a tag, made and read: query(), or by hand",
        ("nwebsocket, query", "nwebsocket", *SYNCHRONOUS, "raw socket"),
        job="tagged",
        arguments=(),
    ),
    _default("json-aiohttp", f"{_JSON}, one at a time", server="aiohttp"),
    _default("json-uvicorn", f"{_JSON}, one at a time", server="uvicorn"),
    _default("json-ws", f"{_JSON}, one at a time", server="ws"),
    _default("json-ws-deflate", f"{_JSON}, one at a time", server="ws, perMessageDeflate"),
)


def _echo(name: str, title: str, clients: tuple[str, ...], size: int, kind: str, flight: int, tls: bool = False) -> Row:
    return Row(name, title, clients, arguments=(size, kind, flight), tls=tls)


def _flood(name: str, title: str, clients: tuple[str, ...], job: str, path: str) -> Row:
    return Row(name, title, clients, "messages/s", job=job, arguments=(FLOOD_SIZE,), path=path, messages=FLOOD)


_MAIN = ("nwebsocket", *PEERS, V1, "raw socket")

_PLAIN = (
    _echo("one-main", "32 B text, one at a time, main thread", _MAIN, SMALL, "text", 1),
    _echo(
        "one-callbacks",
        "32 B text, one at a time, callbacks on their thread",
        ("nwebsocket, callbacks", *PEERS, V1_CALLBACKS, "raw socket"),
        SMALL,
        "text",
        1,
    ),
    _echo(
        "one-loop",
        "32 B text, one at a time, callbacks on the loop",
        ("nwebsocket, loop", *PEERS, V1_CALLBACKS, "raw socket"),
        SMALL,
        "text",
        1,
    ),
    # nwebsocket 1.0.0 loses messages when more than one is in flight.
    _echo("flight-64", "32 B text, 64 in flight", ("nwebsocket", *ALL), SMALL, "text", 64),
    _echo("flight-1024", "32 B text, 1,024 in flight", ("nwebsocket", *ALL), SMALL, "text", 1024),
    _echo("64k-text", "64 KiB text", _MAIN, LARGE, "text", 1),
    _echo("64k-bytes", "64 KiB bytes", _MAIN, LARGE, "bytes", 1),
    _echo("1m-text", "1 MiB text", _MAIN, HUGE, "text", 1),
    _echo("1m-bytes", "1 MiB bytes", _MAIN, HUGE, "bytes", 1),
    _echo("1m-bytes-no-numpy", "1 MiB bytes, no NumPy", ("nwebsocket, no NumPy", *_MAIN[1:]), HUGE, "bytes", 1),
    # nwebsocket 1.0.0 speaks TLS to port 443 only.
    _echo("tls-one", "TLS: 32 B text, one at a time", ("nwebsocket", *ALL), SMALL, "text", 1, tls=True),
    _echo("tls-64", "TLS: 32 B text, 64 in flight", ("nwebsocket", *ALL), SMALL, "text", 64, tls=True),
    _flood("receive-flood", "200,000 messages of 32 B received", _MAIN, "receive_flood", "flood"),
    _flood(
        "receive-flood-callbacks",
        "200,000 messages of 32 B received by callbacks",
        ("nwebsocket, callbacks", *PEERS, V1_CALLBACKS, "raw socket"),
        "receive_flood",
        "flood",
    ),
    # nwebsocket 1.0.0 would need a minute for it.
    _flood("send-flood", "200,000 messages of 32 B sent", ("nwebsocket", *ALL), "send_flood", "count"),
    Row("connect", "connect + close", _MAIN, "connections/s", job="connect"),
    Row(
        "idle",
        "an idle connection, of 1,000",
        ("nwebsocket", "nwebsocket, callbacks", "nwebsocket, loop", *PEERS, V1),
        "KiB resident, less is better",
        measure="idle",
    ),
    Row("import", "import, in a fresh interpreter", ("nwebsocket", *PEERS, V1), "ms, less is better", measure="import"),
    Row("growth", "a message's cost as work grows", ("nwebsocket",), "us CPU a message", measure="growth"),
)

ROWS = {row.name: row for row in (*_DEFAULT, *_PLAIN)}
GROUPS = {"default": _DEFAULT, "plain": _PLAIN}
"""With default options on both sides; and without compression, as each client is fastest, against a server in C."""
