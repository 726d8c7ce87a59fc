"""What may be given to options, time-outs and send(), and what a WebSocket and its events may not be used for."""

from __future__ import annotations

import array
import copy
import ctypes
import dataclasses
import io
import math
import mmap
import pickle
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import garbage
import numpy as np
import pytest
from peers import LIMIT, echo_server

from nwebsocket import (
    CloseEvent,
    Deflate,
    InvalidArgument,
    InvalidClose,
    QueryMixin,
    ReconnectingWebSocket,
    WebSocket,
    WebSocketError,
    connect,
)
from nwebsocket._connection.sender import message_of
from nwebsocket.options import Options, check_timeout


class Client(QueryMixin, WebSocket):
    pass


@pytest.fixture
def ws(echo: str) -> Iterator[Client]:
    with Client(echo) as ws:
        yield ws


# --- Names


@pytest.mark.parametrize(
    ("make", "given", "hint"),
    [
        (WebSocket, "max_sise", r"\. Did you mean 'max_size'\?"),
        (WebSocket, "header", r"\. Did you mean 'headers'\?"),
        (WebSocket, "subprotocols", r"\. Did you mean 'protocols'\?"),
        (WebSocket, "timeout", ""),
        (WebSocket, "max_outbox", ""),
        (Client, "ping_timout", r"\. Did you mean 'ping_timeout'\?"),
        (connect, "max_sise", r"\. Did you mean 'max_size'\?"),
        (ReconnectingWebSocket, "max_sise", r"\. Did you mean 'max_size'\?"),
        (ReconnectingWebSocket, "max_outbux", r"\. Did you mean 'max_outbox'\?"),
    ],
)
def test_a_misspelt_option_is_refused_at_the_call(make: Any, given: str, hint: str) -> None:
    name = "ReconnectingWebSocket" if make is ReconnectingWebSocket else "WebSocket"
    expected = rf"{name}\.__init__\(\) got an unexpected keyword argument '{given}'{hint}"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        make("ws://127.0.0.1:1/", close_timeout=1, **{given: 1})


@pytest.mark.parametrize("make", [WebSocket, Client, connect, ReconnectingWebSocket])
def test_options_go_by_keyword(make: Any) -> None:
    with pytest.raises(TypeError, match=r"takes from \d to \d positional arguments but \d were given"):
        make("ws://127.0.0.1:1/", (), None)


# --- Numbers


def named(value: Any) -> str:
    """Python refuses to write an int of thousands of digits."""
    return f"{type(value).__name__}-{'huge' if isinstance(value, int) and abs(value) > 2**64 else value}"


TIMES = [math.inf, 1e308, 1e9, 10**400, Fraction(5), np.float32(5), np.int64(5), np.float64(7.5), 86_400 * 30]
WHOLES = [2**31, 2**63, 2**64, 10**400, np.int64(2**40), np.uint8(200)]
EXTREMES: list[dict[str, Any]] = [
    *({name: value} for name in ("open_timeout", "close_timeout", "ping_interval", "ping_timeout") for value in TIMES),
    *({name: value} for name in ("max_size", "max_queue", "write_limit") for value in WHOLES),
    {"max_size": 2**63, "compression": Deflate()},
    {"max_queue": 1, "write_limit": 1},
    {"ping_interval": 1e-9, "ping_timeout": math.inf},
]


@pytest.mark.parametrize("options", EXTREMES, ids=lambda options: str(options)[:40])
def test_an_accepted_number_works(echo: str, options: dict[str, Any]) -> None:
    with WebSocket(echo, **options) as ws:
        ws.send("hello " * 30)
        assert ws.recv(LIMIT) == "hello " * 30


@pytest.mark.parametrize("timeout", [math.inf, 1e308, 1e9, 10**400, np.float32(50), np.int64(50)])
def test_a_timeout_of_any_size_works(ws: Client, timeout: Any) -> None:
    assert ws.wait_open(timeout) is ws
    assert ws.query({"a": 1}, timeout=timeout).result(timeout)["a"] == 1
    ws.send("hello")
    assert ws.recv(timeout) == "hello"
    assert ws.ping(timeout) < LIMIT


NO_NUMBERS = [np.timedelta64(5, "s"), np.timedelta64(5, "ns"), np.timedelta64("NaT", "s"), timedelta(5)]
NO_TIMES = [-1, math.nan, -math.inf, -(10**5000), True, np.bool_(True), Decimal(1), "1", 1j, *NO_NUMBERS]
TIME_OPTIONS = ("open_timeout", "close_timeout", "ping_interval", "ping_timeout")


@pytest.mark.parametrize("name", TIME_OPTIONS)
@pytest.mark.parametrize("value", [0, *NO_TIMES], ids=named)
def test_any_other_number_of_seconds_is_refused_at_the_call(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} must be seconds, more than 0"):
        Options(**{name: value})


@pytest.mark.parametrize("value", NO_TIMES, ids=named)
def test_any_other_timeout_is_refused_at_the_call(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        check_timeout(value)


@pytest.mark.parametrize("name", ["max_size", "max_queue", "write_limit"])
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, math.inf, True, np.bool_(True), np.float64(8), -(10**5000), *NO_NUMBERS], ids=named
)
def test_any_other_whole_number_is_refused_at_the_call(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} must be a whole number"):
        Options(**{name: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Deflate(level=10**5000),
        lambda: Deflate(client_no_context_takeover=10**5000),  # type: ignore[arg-type]
        lambda: Options(callbacks=10**5000),  # type: ignore[arg-type]
        lambda: Options(compression=10**5000),  # type: ignore[arg-type]
        lambda: ReconnectingWebSocket("ws://host/", max_outbox=-(10**5000)),
    ],
)
def test_an_error_about_a_number_of_thousands_of_digits_names_the_argument(make: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"must be .* not a number of thousands of digits"):
        make()


def test_numpys_whole_numbers_are_whole_numbers_everywhere(echo: str) -> None:
    assert Deflate(level=np.int64(6)).level == 6
    with ReconnectingWebSocket(echo, max_outbox=np.int64(5), compression=Deflate(level=np.int8(9))) as ws:
        ws.send("hello " * 30)
        assert ws.recv(LIMIT) == "hello " * 30


def test_numpys_small_numbers_do_not_overflow(echo: str) -> None:
    settings = Deflate(
        level=np.uint8(6),
        mem_level=np.int8(8),
        client_max_window_bits=np.uint8(12),
        server_max_window_bits=np.uint8(12),
    )
    assert {type(value) for value in dataclasses.astuple(settings)} == {int, bool}
    with WebSocket(echo, compression=settings) as ws:
        ws.send("hello " * 30)
        assert ws.recv(LIMIT) == "hello " * 30


@pytest.mark.parametrize("code", [10**5000, -(10**5000), 999], ids=named)
def test_a_close_code_of_any_size_is_refused(ws: Client, code: int) -> None:
    with pytest.raises(InvalidClose, match=r"must be 1000 or 3000-4999, not (a number of thousands of digits|999)"):
        ws.close(code)


# --- Paths


@pytest.mark.parametrize("path", ["/tmp/\ud800", "/tmp/a\0b", b"/tmp/a\0b", Path("/tmp/\ud800"), Path("a\0")])
def test_a_path_that_cannot_be_one_is_refused_at_the_call(path: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"unix: the path .* has (a zero byte|no form in utf-8)"):
        WebSocket("ws://host/", unix=path)


@pytest.mark.parametrize("path", ["\0name", b"\0na\0me", "/tmp/\udcff", "relative"])
def test_other_paths_are_taken_as_they_are(path: Any) -> None:
    assert Options(unix=path).unix == path


# --- Messages


class Frame:
    """As a DataFrame: iterating gives the names of its columns."""

    def __iter__(self) -> Iterator[str]:
        return iter(["price", "size"])

    def to_json(self) -> str:
        return "{}"


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class Named(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("name", ctypes.c_wchar_p)]


def released() -> memoryview:
    view = memoryview(b"ab")
    view.release()
    return view


def closed_mmap() -> mmap.mmap:
    memory = mmap.mmap(-1, 16)
    memory.close()
    return memory


NO_MESSAGES: list[tuple[Any, str]] = [
    (Frame(), "to_json"),
    ({"a", "b"}, "json.dumps"),
    (frozenset("ab"), "json.dumps"),
    ({"a": 1}, "json.dumps"),
    ({"a": 1}.keys(), "json.dumps"),
    ({"a": "b"}.values(), "json.dumps"),
    (deque(["a"]), "json.dumps"),
    (range(3), "json.dumps"),
    (np.float64(1.5), "tobytes"),
    (np.int32(1), "tobytes"),
    (np.array(5), "tobytes"),
    (5, "json.dumps"),
    (None, "json.dumps"),
    (Point(1, 2), r"bytes\(\.\.\.\) of it"),
    (ctypes.c_int(1), r"bytes\(\.\.\.\) of it"),
    (released(), "memoryview; send it before it is of no use any more .*released"),
    (closed_mmap(), "mmap; send it before it is of no use any more .*closed"),
]


@pytest.mark.parametrize(("data", "hint"), NO_MESSAGES, ids=lambda value: type(value).__name__)
def test_what_is_no_message_is_refused_with_what_to_write_instead(ws: Client, data: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        ws.send(data)
    assert ws.stats.messages_sent == 0


@pytest.mark.parametrize("data", [["a", "b"], ("a", "b"), iter(["a", "b"]), (text for text in "ab"), io.StringIO("ab")])
def test_a_list_a_tuple_or_an_iterator_is_one_message_in_fragments(ws: Client, data: Any) -> None:
    ws.send(data)
    assert ws.recv(LIMIT) == "ab"


def test_a_structured_array_is_its_bytes_whatever_its_fields_are_called() -> None:
    prices = np.zeros(2, [("Open", "<f8"), ("O", "<i4")])
    assert message_of(prices) == (2, prices.tobytes(), 24)
    with pytest.raises(TypeError, match="Python objects"):
        message_of(np.array([None]))
    with pytest.raises(TypeError, match="Python objects"):
        message_of(np.zeros(1, [("x", "<f8"), ("y", object)]))


POINTERS = [
    ctypes.c_char_p,
    ctypes.c_wchar_p,
    ctypes.c_void_p,
    ctypes.py_object,
    ctypes.POINTER(ctypes.c_int),
    ctypes.CFUNCTYPE(ctypes.c_int),
    Named,
]


@pytest.mark.parametrize("kind", POINTERS)
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: [data]], ids=["message", "fragment"])
def test_addresses_are_no_message(kind: Any, wrap: Any) -> None:
    with pytest.raises(TypeError, match="or of pointers: its buffer holds addresses"):
        message_of(wrap((kind * 2)()))


@pytest.mark.parametrize(
    "data",
    [
        *(np.zeros(2, kind) for kind in ("F", "D", "G", "U3", "S3", "?", "e", "g")),
        np.zeros(2, [("P", "f8"), ("Z", "c8"), ("z", "c16"), ("O&X{", "i4", (2,))]),
        (ctypes.c_double * 2)(),
        (ctypes.c_wchar * 2)(),
        (Point * 2)(),
    ],
    ids=lambda data: memoryview(data).format,
)
def test_numbers_and_characters_of_any_kind_are_their_bytes(data: Any) -> None:
    assert message_of(data)[1] == bytes(data)


def test_buffers_are_messages() -> None:
    for data in (bytearray(b"ab"), memoryview(b"ab"), array.array("B", b"ab"), np.frombuffer(b"ab", np.uint8)):
        assert message_of(data) == (2, b"ab", 2)
    assert message_of(np.array([], np.uint8)) == (2, b"", 0)


# --- Copies


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_outbox_cannot_be_copied_but_taken_as_a_list(how: Any) -> None:
    ws = ReconnectingWebSocket("ws://127.0.0.1:1/")
    ws.send("kept")
    with pytest.raises(TypeError, match=r"an outbox cannot be copied or pickled: take list\(ws.outbox\)"):
        how(ws.outbox)
    assert list(ws.outbox) == ["kept"]
    ws.close()
    ws.wait_closed(LIMIT)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_socket_cannot_be_copied(ws: Client, how: Any) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        how(ws)
    query = ws.query({"a": 1})
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        how(query)
    assert query.result(LIMIT)["a"] == 1


def test_the_fields_of_an_event_can_be_taken_without_its_socket(ws: Client) -> None:
    event = CloseEvent("close", ws, 1000, "bye", True)
    expected = {"type": "close", "code": 1000, "reason": "bye", "wasClean": True, "retry_in": None}
    assert dataclasses.asdict(event) == expected
    assert copy.copy(event) is event
    assert copy.deepcopy([event])[0] is event
    assert event.target is event.currentTarget is ws
    assert event == CloseEvent("close", ws, 1000, "bye", True) != CloseEvent("close", ws, 1000, "bye", False)
    assert len({event, CloseEvent("close", ws, 1000, "bye", True)}) == 1
    with pytest.raises(TypeError, match="asdict"):
        pickle.dumps(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.code = 1  # type: ignore[misc]


# --- Warnings


def test_a_dropped_socket_is_closed_also_if_its_warning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    raised: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: raised.append(unraisable.exc_type))
    with echo_server() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        ws = WebSocket(server.url).wait_open(LIMIT)
        bridge = ws._nwebsocket.bridge
        del ws
        garbage.collect()
        assert bridge.wait(lambda: bridge.life.ending is not None, LIMIT)
        ended.set()
    assert raised == [ResourceWarning]
    assert bridge.life.ending.code == 1001


def test_a_reconnecting_socket_takes_any_accepted_number(echo: str) -> None:
    with ReconnectingWebSocket(echo, open_timeout=math.inf, close_timeout=10**400, max_size=2**64) as ws:
        ws.send("hello")
        assert ws.recv(LIMIT) == "hello"
    with pytest.raises(WebSocketError):
        ws.send("hello")
