"""permessage-deflate: fed by wsproto's frame parser with frames made by hand and with zlib, and with real servers."""

from __future__ import annotations

import functools
import random
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from compressed import short_ones_too  # noqa: F401 - used by all tests
from hypothesis import given
from hypothesis import strategies as st
from peers import LIMIT, Peer, RawServer, Server, echo_server, uvicorn_server
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as ReceivedRequest
from websockets.server import ServerProtocol
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping
from wsproto.extensions import PerMessageDeflate

from nwebsocket import Deflate, HandshakeError, InvalidArgument, Options, WebSocket
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.deflate import DeflateExtension
from nwebsocket._protocol.handshake import Request

BINARY, PING, CONTINUATION = 2, 9, 0
FIN, RSV1 = 0x80, 0x40
TAIL = b"\x00\x00\xff\xff"


def frame(opcode: int, payload: bytes, flags: int = FIN | RSV1) -> bytes:
    if len(payload) < 126:
        return bytes([flags | opcode, len(payload)]) + payload
    short = len(payload) < 65_536
    return bytes([flags | opcode, 126 if short else 127]) + len(payload).to_bytes(2 if short else 8, "big") + payload


def accepted(
    parameters: str = "", max_size: int | None = None, settings: Deflate = Deflate()  # noqa: B008  # it is immutable
) -> DeflateExtension:
    deflate = DeflateExtension(replace(settings, threshold=0), max_size)
    deflate.finalize("permessage-deflate" + parameters)
    return deflate


def received(deflate: DeflateExtension, data: bytes) -> list[Event]:
    connection = Connection(ConnectionType.CLIENT, [deflate])
    connection.receive_data(data)
    return list(connection.events())


def joined(events: list[Event]) -> list[bytes]:
    """The messages among the events; anything but messages and pings is an error."""
    messages, parts = [], b""
    for event in events:
        if isinstance(event, BytesMessage):
            parts += event.data
            if event.message_finished:
                messages.append(parts)
                parts = b""
        else:
            assert isinstance(event, Ping)
    return messages


def failure(deflate: DeflateExtension, data: bytes) -> int:
    """The code with which the last event fails the connection."""
    last = received(deflate, data)[-1]
    assert isinstance(last, CloseConnection)
    assert deflate.fault
    return int(last.code)


class Sender:
    """A server's compressor."""

    def __init__(self, bits: int = 15) -> None:
        self._stream = zlib.compressobj(wbits=-bits)

    def __call__(self, payload: bytes) -> bytes:
        data = self._stream.compress(payload) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        assert data.endswith(TAIL)
        return data[:-4]


def ended(payload: bytes) -> bytes:
    """A whole DEFLATE stream: its last block has BFINAL set."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(payload) + stream.flush()


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            *(("level", value, "from 0 to 9, not") for value in (-1, 10, 6.0, "6", None, True)),
            *(("mem_level", value, "from 1 to 9, not") for value in (0, 10, 8.0, None, True)),
            *(("threshold", value, "from 0 to 2147483647, not") for value in (-1, 2**31, 32.0, None, True)),
            *(("client_max_window_bits", value, "from 9 to 15, not") for value in (8, 16, "15", None, True)),
            *(("server_max_window_bits", value, "from 8 to 15 or None, not") for value in (7, 16, "8", False)),
            *(
                (f"{side}_no_context_takeover", value, "True or False, not")
                for side in ("client", "server")
                for value in (1, None, "yes")
            ),
        ],
    )
    def test_that_are_wrong_are_named_with_what_was_expected(self, name: str, value: Any, expected: str) -> None:
        kind = InvalidArgument if type(value) is int and "takeover" not in name else TypeError
        with pytest.raises(kind, match=rf"^{name} must be .*{expected} {value!r}$"):
            Deflate(**{name: value})

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            *((value, InvalidArgument) for value in ("gzip", "", "Deflate", "permessage-deflate")),
            *((value, TypeError) for value in (True, False, 15, b"deflate", Deflate, {"level": 9}, ["deflate"])),
        ],
    )
    def test_a_wrong_compression_is_refused_at_once(self, value: Any, kind: type[Exception]) -> None:
        for make in (Options, lambda compression: WebSocket("ws://127.0.0.1:9/", compression=compression)):
            with pytest.raises(kind, match=r"compression must be 'deflate', a Deflate\(...\) or None, not "):
                make(compression=value)


class TestParameters:
    @pytest.mark.parametrize(
        ("settings", "offer"),
        [
            (Deflate(), "client_max_window_bits"),  # as browsers do
            (Deflate(level=0, mem_level=1), "client_max_window_bits"),
            (Deflate(client_max_window_bits=9), "client_max_window_bits=9"),
            (Deflate(server_max_window_bits=15), "client_max_window_bits; server_max_window_bits=15"),
            (Deflate(client_no_context_takeover=True), "client_max_window_bits; client_no_context_takeover"),
            (
                Deflate(client_max_window_bits=14, server_max_window_bits=8, server_no_context_takeover=True),
                "client_max_window_bits=14; server_max_window_bits=8; server_no_context_takeover",
            ),
        ],
    )
    def test_are_offered(self, settings: Deflate, offer: str) -> None:
        assert DeflateExtension(settings, None).offer() == offer
        assert not DeflateExtension(settings, None).enabled()

    @pytest.mark.parametrize(
        ("answer", "client_bits", "client_flag"),
        [
            ("", 12, True),
            ("; client_max_window_bits=15", 12, True),  # section 7.1.2.2: what we offered was a promise
            ("; client_max_window_bits=12", 12, True),
            ("; client_max_window_bits=10; client_no_context_takeover", 10, True),
        ],
    )
    def test_that_we_offered_about_us_hold_whatever_the_answer(
        self, answer: str, client_bits: int, client_flag: bool
    ) -> None:
        deflate = accepted(answer, settings=Deflate(client_max_window_bits=12, client_no_context_takeover=True))
        assert (deflate.client_max_window_bits, deflate.client_no_context_takeover) == (client_bits, client_flag)

    @pytest.mark.parametrize(
        ("settings", "answer"),
        [
            (Deflate(server_max_window_bits=12), "; server_max_window_bits=12"),
            (Deflate(server_max_window_bits=12), "; server_max_window_bits=8"),
            (Deflate(server_max_window_bits=15), ""),  # none is as good as 15
            (Deflate(server_no_context_takeover=True), "; server_no_context_takeover"),
        ],
    )
    def test_that_were_asked_for_may_be_granted(self, settings: Deflate, answer: str) -> None:
        assert accepted(answer, settings=settings).enabled()

    @pytest.mark.parametrize(
        ("settings", "answer", "error"),
        [
            (Deflate(server_max_window_bits=12), "", "server_max_window_bits is missing; at most 12 had been"),
            (
                Deflate(server_max_window_bits=12),
                "; server_max_window_bits=13",
                "server_max_window_bits is 13; at most 12 had been",
            ),
            (
                Deflate(server_no_context_takeover=True),
                "; client_no_context_takeover",
                "server_no_context_takeover is missing; it had been",
            ),
        ],
    )
    def test_that_were_asked_for_and_not_granted_are_an_error(
        self, settings: Deflate, answer: str, error: str
    ) -> None:
        deflate = DeflateExtension(settings, None)
        with pytest.raises(ValueError, match=f"permessage-deflate: {error} asked for"):
            deflate.finalize("permessage-deflate" + answer)
        assert not deflate.enabled()

    @pytest.mark.parametrize(
        ("parameters", "client_bits", "client_flag", "server_flag"),
        [
            ("", 15, False, False),
            ("; server_no_context_takeover; client_no_context_takeover", 15, True, True),
            (";client_max_window_bits=10 ; server_max_window_bits = 12", 10, False, False),
            ('; server_max_window_bits="10"; client_max_window_bits="15"', 15, False, False),
        ],
    )
    def test_are_taken_over(self, parameters: str, client_bits: int, client_flag: bool, server_flag: bool) -> None:
        deflate = accepted(parameters)
        assert deflate.enabled()
        assert deflate.client_max_window_bits == client_bits
        assert deflate.client_no_context_takeover is client_flag
        assert deflate.server_no_context_takeover is server_flag

    @pytest.mark.parametrize(
        ("parameters", "error"),
        [
            ("; x-unknown", "unknown parameter 'x-unknown'"),
            ("; server_no_context_takeover_too", "unknown parameter"),
            ("; Server_No_Context_Takeover", "unknown parameter"),
            (";", "unknown parameter ''"),
            ("; server_no_context_takeover; server_no_context_takeover", "came twice"),
            ("; server_max_window_bits=9; server_max_window_bits=9", "came twice"),
            ("; client_no_context_takeover=true", "value 'true'; none was expected"),
            ("; client_no_context_takeover=", "value ''; none was expected"),
            ("; server_max_window_bits", "no value; a whole number from 8 to 15"),
            ("; client_max_window_bits=", "value ''; a whole number from 8 to 15"),
            *(
                (f"; {side}_max_window_bits={value}", f"{side}_max_window_bits .*; a whole number from 8 to 15")
                for side in ("client", "server")
                for value in ("7", "16", "08", "-9", "+9", "9.0", "ten", '""', '"', '"9', "٩", "1_0")
            ),
        ],
    )
    def test_trap_11_that_are_wrong_are_refused(self, parameters: str, error: str) -> None:
        deflate = DeflateExtension(Deflate(), None)
        with pytest.raises(ValueError, match=error):
            deflate.finalize("permessage-deflate" + parameters)
        assert not deflate.enabled()

    @pytest.mark.parametrize("bits", range(8, 16))
    def test_trap_11_all_legal_window_sizes_of_the_server_work(self, bits: int) -> None:
        payload = random.Random(bits).randbytes(700) * 100
        deflate = accepted(f"; server_max_window_bits={bits}")
        assert joined(received(deflate, frame(BINARY, Sender(max(9, bits))(payload)))) == [payload]

    @pytest.mark.parametrize(
        ("bits", "parameters", "settings"),
        [
            *((bits, f"; client_max_window_bits={bits}", Deflate()) for bits in range(8, 16)),
            *((bits, "", Deflate(client_max_window_bits=bits)) for bits in range(9, 16)),
        ],
    )
    def test_our_messages_keep_to_the_window_the_server_can_hold(
        self, bits: int, parameters: str, settings: Deflate
    ) -> None:
        deflate = accepted(parameters, settings=settings)
        inflate = zlib.decompressobj(-bits)
        source = random.Random(bits)
        for period in (1, 240, 249, 250, 251, 255, 256, 257, 300, 2**bits, 2**bits + 1):
            payload = source.randbytes(period) * 3
            connection = Connection(ConnectionType.CLIENT, [deflate])
            data = unmasked(connection.send(BytesMessage(payload))) + TAIL
            # Byte by byte, so that zlib has nothing but its window to look back at.
            assert b"".join(inflate.decompress(data[i : i + 1]) for i in range(len(data))) == payload


def unmasked(data: bytes) -> bytes:
    """The payload of a client's frame."""
    start = {126: 4, 127: 10}.get(data[1] & 0x7F, 2)
    mask, payload = data[start : start + 4], data[start + 4 :]
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


class TestReceiving:
    def test_trap_1_control_frames_leave_a_compressed_message_alone(self) -> None:
        sender = Sender()
        first, second = sender(b"Hello, world! " * 9), sender(b"Hello again")
        data = (
            frame(BINARY, first[:5], RSV1)
            + frame(PING, b"one", FIN)
            + frame(CONTINUATION, first[5:9], 0)
            + frame(PING, b"", FIN)
            + frame(CONTINUATION, first[9:], FIN)
            + frame(PING, b"two", FIN)
            + frame(BINARY, second)
        )
        assert joined(received(accepted(), data)) == [b"Hello, world! " * 9, b"Hello again"]

    def test_compressed_and_uncompressed_messages_alternate(self) -> None:
        sender = Sender()
        data = frame(BINARY, sender(b"same")) + frame(BINARY, b"plain", FIN) + frame(BINARY, sender(b"same"))
        assert joined(received(accepted(), data)) == [b"same", b"plain", b"same"]

    def test_each_message_may_have_its_own_context(self) -> None:
        data = frame(BINARY, Sender()(b"same")) + frame(BINARY, Sender()(b"same"))
        assert joined(received(accepted("; server_no_context_takeover"), data)) == [b"same", b"same"]

    @pytest.mark.parametrize("rest", [b"", b"\x00"], ids=["bare", "with the octet of RFC 7692 section 7.2.3.5"])
    def test_trap_11_a_stream_that_ended_is_followed_by_a_new_one(self, rest: bytes) -> None:
        sender = Sender()
        messages = [b"one" * 2000, b"", b"two"]
        data = b"".join(frame(BINARY, ended(message) + rest) for message in messages)
        data += frame(BINARY, sender(b"three")) + frame(BINARY, sender(b"three"))
        assert joined(received(accepted(), data)) == [*messages, b"three", b"three"]

    def test_a_message_may_consist_of_several_streams(self) -> None:
        payload = ended(b"one" * 5000) + ended(b"two") + Sender()(b"three")
        expected = b"one" * 5000 + b"twothree"
        assert joined(received(accepted(), frame(BINARY, payload))) == [expected]
        pieces = frame(BINARY, payload[:3], RSV1) + frame(CONTINUATION, payload[3:], FIN)
        assert joined(received(accepted(), pieces)) == [expected]

    def test_an_empty_frame_is_an_empty_message(self) -> None:
        sender = Sender()
        data = frame(BINARY, sender(b"one")) + frame(BINARY, b"") + frame(BINARY, sender(b"one"))
        assert joined(received(accepted(), data)) == [b"one", b"", b"one"]

    def test_a_connection_without_compressed_messages_does_without_zlibs_memory(self) -> None:
        accepted()
        tracemalloc.start()
        try:
            idle = [accepted() for _ in range(100)]
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size < len(idle) * 2048  # a stream alone takes 7 KiB

    def test_a_message_of_very_many_streams_takes_no_more_than_linear_time(self) -> None:
        payload = ended(b"") * 100_000
        assert joined(received(accepted(), frame(BINARY, payload))) == [b""]

    @given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 50))
    def test_what_zlib_deflates_comes_back(self, messages: list[bytes], size: int) -> None:
        connection = Connection(ConnectionType.CLIENT, [accepted(max_size=300)])
        sender = Sender()
        data = b"".join(frame(BINARY, sender(message)) for message in messages)
        events: list[Event] = []
        for start in range(0, len(data), size):
            connection.receive_data(data[start : start + size])
            events += connection.events()
        assert joined(events) == messages


class TestRefusing:
    @pytest.mark.parametrize(
        "data",
        [
            frame(PING, b""),
            frame(BINARY, b"", RSV1) + frame(CONTINUATION, b""),
            frame(BINARY, b"plain", 0) + frame(CONTINUATION, b""),
        ],
    )
    def test_rsv1_belongs_to_the_first_frame_of_a_message(self, data: bytes) -> None:
        assert failure(accepted(), data) == 1002

    def test_damaged_data_is_1007(self) -> None:
        assert failure(accepted(), frame(BINARY, b"\xff\xff\xff")) == 1007

    def test_a_distance_beyond_the_window_is_1007(self) -> None:
        payload = random.Random(1).randbytes(2000) * 2
        data = b"".join(frame(CONTINUATION, bytes([octet]), 0) for octet in Sender()(payload))
        assert failure(accepted("; server_max_window_bits=8"), frame(BINARY, b"", RSV1) + data) == 1007

    @pytest.mark.parametrize("size", [0, 1, 4096, 70_000])
    def test_trap_2_one_byte_over_the_limit_is_1009(self, size: int) -> None:
        sender = Sender()
        data = frame(BINARY, sender(bytes(size)))
        assert joined(received(accepted(max_size=size), data)) == [bytes(size)]
        deflate = accepted(max_size=size)
        assert failure(deflate, data + frame(BINARY, sender(bytes(size + 1)))) == 1009
        assert f"{size:,} bytes" in deflate.fault

    def test_trap_2_the_limit_holds_for_the_sum_of_the_fragments(self) -> None:
        sender = Sender()
        first, second = sender(bytes(60)) + TAIL, sender(bytes(41))
        data = frame(BINARY, first, RSV1) + frame(PING, b"", FIN) + frame(CONTINUATION, second, FIN)
        assert joined(received(accepted(max_size=101), data)) == [bytes(101)]
        assert failure(accepted(max_size=100), data) == 1009

    def test_trap_2_no_more_is_inflated_than_the_limit_allows(self) -> None:
        deflate = accepted(max_size=1000)
        events = received(deflate, frame(BINARY, Sender()(bytes(200 * 2**20))))
        assert [type(event) for event in events] == [CloseConnection]


def sent(deflate: DeflateExtension, *messages: bytes) -> list[bytes]:
    """The payloads of the frames of messages, compressed."""
    connection = Connection(ConnectionType.CLIENT, [deflate])
    return [unmasked(connection.send(BytesMessage(message))) for message in messages]


class TestSending:
    @pytest.mark.parametrize("parameters", ["", "; client_no_context_takeover"])
    @pytest.mark.parametrize("level", range(10))
    @pytest.mark.parametrize("mem_level", [1, 8, 9])
    def test_a_wsproto_server_understands_it(self, parameters: str, level: int, mem_level: int) -> None:
        extension = PerMessageDeflate()
        assert extension.accept("permessage-deflate" + parameters) is not None
        deflate = accepted(parameters, settings=Deflate(level=level, mem_level=mem_level))
        client = Connection(ConnectionType.CLIENT, [deflate])
        server = Connection(ConnectionType.SERVER, [extension])
        messages = [b"", b"", b"one", b"one", bytes(100_000), b""]
        for message in messages:
            data = client.send(BytesMessage(message))
            assert data[0] & RSV1
            server.receive_data(data)
            assert joined(list(server.events())) == [message]

    def test_a_higher_level_gives_fewer_bytes(self) -> None:
        source = random.Random(1)
        message = " ".join(str(int(source.gauss(0, 100))) for _ in range(5000)).encode()
        sizes = [len(sent(accepted(settings=Deflate(level=level)), message)[0]) for level in (0, 1, 9)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] > len(message) > sizes[1] > 1.05 * sizes[2]

    @pytest.mark.parametrize(
        ("parameters", "settings"),
        [("", Deflate(client_no_context_takeover=True)), ("; client_no_context_takeover", Deflate())],
        ids=["our wish", "the server's"],
    )
    def test_without_context_takeover_each_message_stands_alone(self, parameters: str, settings: Deflate) -> None:
        message = random.Random(1).randbytes(100)
        first, second = sent(accepted(parameters, settings=settings), message, message)
        assert second == first
        first, second = sent(accepted(), message, message)
        assert len(second) < len(first) / 5


def held(settings: Deflate, parameters: str = "") -> float:
    """The bytes that a connection holds on to after one message each way."""
    data = frame(BINARY, Sender()(b"message"))
    connections = []
    tracemalloc.start()
    try:
        for _ in range(20):
            connection = Connection(ConnectionType.CLIENT, [accepted(parameters, settings=settings)])
            connection.send(BytesMessage(b"message"))
            connection.receive_data(data)
            assert joined(list(connection.events())) == [b"message"]
            connections.append(connection)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return size / len(connections)


class TestMemory:
    def test_without_context_takeover_nothing_is_kept_between_messages(self) -> None:
        settings = Deflate(client_no_context_takeover=True, server_no_context_takeover=True)
        assert held(settings, "; server_no_context_takeover") < 4096

    @pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng takes other amounts than zlib")
    @pytest.mark.parametrize(
        "settings",
        [
            Deflate(server_max_window_bits=15),
            Deflate(server_max_window_bits=15, mem_level=1),
            Deflate(server_max_window_bits=15, client_max_window_bits=9),
            Deflate(server_max_window_bits=9, level=9, mem_level=9),
            Deflate(server_max_window_bits=9, client_max_window_bits=9, mem_level=1),
        ],
    )
    def test_it_is_what_the_documentation_says(self, settings: Deflate) -> None:
        bits = settings.server_max_window_bits
        assert bits is not None
        compressing = 2 ** (settings.client_max_window_bits + 2) + 2 ** (settings.mem_level + 9) + 6 * 1024
        expected = compressing + 2**bits + 7 * 1024
        # Newer releases take up to an eighth more to compress; and there are some KiB of wsproto's and ours.
        assert expected <= held(settings, f"; server_max_window_bits={bits}") + 1024 <= expected * 9 / 8 + 5 * 1024


ALL_SETTINGS = st.builds(
    Deflate,
    level=st.integers(0, 9),
    mem_level=st.integers(1, 9),
    client_max_window_bits=st.integers(9, 15),
    server_max_window_bits=st.none() | st.integers(9, 15),  # `websockets` cannot do 8, nor declines it before 17
    client_no_context_takeover=st.booleans(),
    server_no_context_takeover=st.booleans(),
)

SERVERS = st.builds(
    ServerPerMessageDeflateFactory,
    server_no_context_takeover=st.booleans(),
    client_no_context_takeover=st.booleans(),
    server_max_window_bits=st.none() | st.integers(9, 15),
    client_max_window_bits=st.none() | st.integers(8, 15),
)


# A message: text or binary, and the (size, period) of its fragments. What repeats itself after `period` bytes does so
# from message to message, too; what has a period longer than its size does not.
MESSAGES = st.tuples(
    st.sampled_from([str, bytes]),
    st.lists(
        st.tuples(st.integers(0, 100) | st.integers(0, 50_000), st.sampled_from([1, 7, 250, 300, 5000, 40_000])),
        min_size=1,
        max_size=3,
    ),
)


def fragment_of(kind: type[str | bytes], size: int, period: int) -> Any:
    data = (random.Random(period).randbytes(period) * (size // period + 1))[:size]
    return data if kind is bytes else data.hex()


class EchoProtocol:
    """The server of the `websockets` package without its sockets: it sends back every frame."""

    def __init__(self, deflate: ServerPerMessageDeflateFactory) -> None:
        self._protocol = ServerProtocol(extensions=[deflate], max_size=None)
        self._senders = {
            Opcode.TEXT: self._protocol.send_text,
            Opcode.BINARY: self._protocol.send_binary,
            Opcode.CONT: self._protocol.send_continuation,
        }

    def accept(self, data: bytes) -> bytes:
        self._protocol.receive_data(data)
        (request,) = self._protocol.events_received()
        assert isinstance(request, ReceivedRequest)
        self._protocol.send_response(self._protocol.accept(request))
        return b"".join(self._protocol.data_to_send())

    def echo(self, data: bytes) -> bytes:
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            assert isinstance(frame, Frame)
            self._senders[frame.opcode](frame.data, frame.fin)
        return b"".join(self._protocol.data_to_send())


@pytest.mark.slow
@given(ALL_SETTINGS, SERVERS, st.lists(MESSAGES, max_size=6))
def test_whatever_is_set_on_either_side_messages_come_back(
    ours: Deflate, factory: ServerPerMessageDeflateFactory, messages: list[tuple[Any, list[tuple[int, int]]]]
) -> None:
    client, server = Protocol(Request("localhost", "/", compression=ours, max_size=None)), EchoProtocol(factory)
    assert client.receive_response(server.accept(client.handshake()))
    assert client.extensions
    for kind, parts in messages:
        *fragments, last = [fragment_of(kind, *part) for part in parts]
        frames = [client.message(fragment, fin=False) for fragment in fragments] + [client.message(last)]
        received = client.receive(server.echo(b"".join(frames)))
        assert received.failure is None
        assert received.messages == [kind().join([*fragments, last])]


CONVERSATION: list[Any] = ["", b"", "häß" * 30, "häß" * 30, bytes(70_000), random.Random(1).randbytes(70_000)]

SOME_SETTINGS = {
    "small": Deflate(level=9, mem_level=5, client_max_window_bits=10, server_max_window_bits=10),
    "no takeover": Deflate(client_no_context_takeover=True, server_no_context_takeover=True),
    "stored": Deflate(level=0),
}


class TestRealServers:
    @pytest.mark.parametrize("name", SOME_SETTINGS)
    @pytest.mark.parametrize("implementation", ["websockets", "wsproto"])
    def test_do_what_they_are_asked(self, name: str, implementation: str) -> None:
        settings = SOME_SETTINGS[name]
        server: Any = echo_server if implementation == "websockets" else uvicorn_server
        with server() as running, WebSocket(running.url, compression=settings) as ws:
            assert ("server_max_window_bits=10" in ws.extensions) is (settings.server_max_window_bits == 10)
            assert ("server_no_context_takeover" in ws.extensions) is settings.server_no_context_takeover
            for message in CONVERSATION:
                ws.send(message)
                assert ws.recv(LIMIT) == message
            ws.send(["one", "", "one"])
            assert ws.recv(LIMIT) == "oneone"

    def test_may_ask_for_less_than_they_are_offered(self) -> None:
        factory = ServerPerMessageDeflateFactory(True, True, 9, 8)
        server = echo_server(compression=None, extensions=[factory])
        with server, WebSocket(server.url) as ws:
            assert {part.strip() for part in ws.extensions.split(";")} == {
                "permessage-deflate",
                "server_no_context_takeover",
                "client_no_context_takeover",
                "server_max_window_bits=9",
                "client_max_window_bits=8",
            }
            for message in CONVERSATION:
                ws.send(message)
                assert ws.recv(LIMIT) == message

    @pytest.mark.parametrize(
        ("settings", "server"),
        [
            ("deflate", functools.partial(echo_server, compression=None)),
            (Deflate(server_max_window_bits=8), uvicorn_server),  # wsproto cannot do 8
        ],
    )
    def test_may_decline(self, settings: Any, server: Callable[[], Server]) -> None:
        with server() as running, WebSocket(running.url, compression=settings) as ws:
            assert ws.extensions == ""
            ws.send("plain")
            assert ws.recv(LIMIT) == "plain"

    def test_that_do_not_do_what_they_were_asked_are_refused(self) -> None:
        def script(peer: Peer) -> None:
            peer.accept(extensions="permessage-deflate; server_max_window_bits=11")
            assert peer.read_eof() == b""

        with RawServer(script) as server:
            ws = WebSocket(server.url, compression=Deflate(server_max_window_bits=10))
            with pytest.raises(HandshakeError, match="server_max_window_bits is 11; at most 10 had been asked"):
                ws.wait_open(LIMIT)


@pytest.mark.parametrize("fast_lane", [True, False])
@pytest.mark.parametrize("threshold", [0, 5, 32])
def test_shorter_messages_than_the_threshold_go_out_as_they_are(fast_lane: bool, threshold: int) -> None:
    deflate = DeflateExtension(Deflate(threshold=threshold), None)
    deflate.finalize("permessage-deflate")
    connection = Connection(ConnectionType.CLIENT, [deflate])
    for size in (0, 4, 5, 31, 32, 1000):
        payload = bytes(size)
        if fast_lane:
            (data,) = deflate.frames_of([(BINARY, payload, size)])
            deflate.keep_context()
        else:
            data = connection.send(BytesMessage(payload))
        assert bool(data[0] & RSV1) == (size >= threshold), size
    (data,) = deflate.frames_of([(BINARY, (b"a", b"b"), 2)])
    assert data[0] & RSV1, "the size of a message in fragments is not known at the first one"
