"""permessage-deflate, fed by wsproto's frame parser with frames made by hand and with zlib."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping
from wsproto.extensions import PerMessageDeflate

from nwebsocket._deflate import Deflate

BINARY, PING, CONTINUATION = 2, 9, 0
FIN, RSV1 = 0x80, 0x40
TAIL = b"\x00\x00\xff\xff"


def frame(opcode: int, payload: bytes, flags: int = FIN | RSV1) -> bytes:
    if len(payload) < 126:
        return bytes([flags | opcode, len(payload)]) + payload
    short = len(payload) < 65_536
    return bytes([flags | opcode, 126 if short else 127]) + len(payload).to_bytes(2 if short else 8, "big") + payload


def accepted(parameters: str = "", max_size: int | None = None) -> Deflate:
    deflate = Deflate(max_size)
    deflate.finalize("permessage-deflate" + parameters)
    return deflate


def received(deflate: Deflate, data: bytes) -> list[Event]:
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


def failure(deflate: Deflate, data: bytes) -> int:
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


class TestParameters:
    def test_offered_are_those_of_browsers(self) -> None:
        assert Deflate(None).offer() == "client_max_window_bits"
        assert not Deflate(None).enabled()

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
        deflate = Deflate(None)
        with pytest.raises(ValueError, match=error):
            deflate.finalize("permessage-deflate" + parameters)
        assert not deflate.enabled()

    @pytest.mark.parametrize("bits", range(8, 16))
    def test_trap_11_all_legal_window_sizes_of_the_server_work(self, bits: int) -> None:
        payload = random.Random(bits).randbytes(700) * 100
        deflate = accepted(f"; server_max_window_bits={bits}")
        assert joined(received(deflate, frame(BINARY, Sender(max(9, bits))(payload)))) == [payload]

    @pytest.mark.parametrize("bits", range(8, 16))
    def test_our_messages_keep_to_the_window_the_server_can_hold(self, bits: int) -> None:
        deflate = accepted(f"; client_max_window_bits={bits}")
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


class TestSending:
    @pytest.mark.parametrize("parameters", ["", "; client_no_context_takeover"])
    def test_a_wsproto_server_understands_it(self, parameters: str) -> None:
        extension = PerMessageDeflate()
        assert extension.accept("permessage-deflate" + parameters) is not None
        client = Connection(ConnectionType.CLIENT, [accepted(parameters)])
        server = Connection(ConnectionType.SERVER, [extension])
        messages = [b"", b"", b"one", b"one", bytes(100_000), b""]
        for message in messages:
            data = client.send(BytesMessage(message))
            assert data[0] & RSV1
            server.receive_data(data)
            assert joined(list(server.events())) == [message]
