"""What this library takes for granted about curio and wsproto that they do not promise: private names, and behaviour.

Each test names one such thing. If a new release of theirs changes it, the test fails and says what to look at here.
Some of them are faults that we work around: then the work-around may go.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import selectors
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

TESTED = {"curio": "1.6", "wsproto": "1.3.2"}
"""The releases that all tests have passed with."""

RANGES = {"curio": ">=1.6,<1.7", "wsproto": ">=1.3.2,<1.4"}
"""What pyproject.toml allows: from the tested release on, what its authors should call compatible."""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Not conftest's: no loop thread can be started without the names that are looked for here."""


@contextlib.contextmanager
def assumed(package: str, what: str, look: str) -> Iterator[None]:
    """Whatever fails within, says this."""
    found = ""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        found = f"{type(error).__name__}: {error}".partition("\n")[0]
    if found:
        release = f"{package} {version(package)} (all tests have passed with {TESTED[package]})"
        pytest.fail(f"{release}: no longer so: {what}\n    look at: {look}\n    found: {found}", pytrace=False)


# ---- curio


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it in a kernel of its own."""
    from nwebsocket._threads.safe_curio import Kernel

    with Kernel() as kernel:
        kernel.run(main)


@pytest.mark.parametrize("package", TESTED)
def test_the_range_in_pyproject_is_the_tested_one(package: str) -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(rf'^    "{package}(.*)",$', pyproject, re.MULTILINE) == [RANGES[package]]


def test_curio_has_the_names_that_are_used() -> None:
    with assumed("curio", "names that it has", "_threads/safe_curio.py, which imports them, the private ones, too"):
        importlib.import_module("nwebsocket._threads.safe_curio")
    with assumed("curio", "traps._io_release()", "close_socket() in tcp.py"):
        from nwebsocket._threads.safe_curio import curio

        assert callable(curio.traps._io_release)


def test_curio_cannot_be_imported_since_python_3_12() -> None:
    found = subprocess.run([sys.executable, "-c", "import curio"], capture_output=True, text=True, check=False)
    with assumed("curio", "import curio needs names that Python 3.12 removed", "_lend_names() in safe_curio.py may go"):
        assert (found.returncode == 0) == (sys.version_info < (3, 12)), found.stderr


def test_curio_s_cancellation_and_time_out_are_no_exceptions() -> None:
    with assumed("curio", "CancelledError and TaskTimeout pass `except Exception`", "every one on the loop's side"):
        from nwebsocket._threads.safe_curio import CancelledError, TaskTimeout

        assert not issubclass(CancelledError, Exception)
        assert not issubclass(TaskTimeout, Exception)


def test_curio_s_deadlines_are_of_the_monotonic_clock_and_can_be_nested() -> None:
    async def main() -> None:
        from nwebsocket._threads.safe_curio import TaskTimeout, before, sleep

        with pytest.raises(TaskTimeout):
            await before(monotonic() + 0.01, before(monotonic() + 9, sleep(9)))
        await before(monotonic() + 9, sleep(0))
        await sleep(0.001)  # nothing is left of them

    with assumed("curio", "how _set_timeout() and _unset_timeout() work", "before() in safe_curio.py"):
        run(main)


def test_curio_s_queue_shows_by_its_descriptor_what_get_gives_without_a_wait() -> None:
    with assumed("curio", "UniversalQueue(withfd=True)", "loop_thread.py: its docstring, _take() and _run()"):
        from nwebsocket._threads.safe_curio import UniversalQueue

        queue = UniversalQueue(withfd=True)
        with queue._put_sock, queue._get_sock, selectors.DefaultSelector() as selector:
            selector.register(queue, selectors.EVENT_READ)
            assert queue.empty()
            assert not selector.select(0)
            queue.put("item")
            assert not queue.empty()
            assert selector.select(0)

            async def get() -> str:
                return str(await queue.get())

            with pytest.raises(StopIteration) as item:
                get().send(None)
            assert item.value.value == "item"
            assert queue.empty()
            assert not selector.select(0)


def test_curio_keeps_a_descriptor_registered_until_it_is_released() -> None:
    ours, theirs = socket.socketpair()

    async def main() -> None:
        from nwebsocket._threads.safe_curio import Descriptor, curio, wait_writable

        registered = (await curio.traps._get_kernel())._selector.get_map()
        descriptor = Descriptor(ours.fileno())
        await wait_writable(descriptor)
        assert ours.fileno() in registered
        await curio.traps._io_release(descriptor)
        assert ours.fileno() not in registered

    with ours, theirs, assumed("curio", "what a task waited for stays registered", "close_socket() in tcp.py"):
        run(main)


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="this system has no epoll")
def test_curio_waits_in_an_epoll_instance_that_can_be_had() -> None:
    async def main() -> None:
        from nwebsocket._threads.safe_curio import epoll_descriptor

        assert await epoll_descriptor() is not None

    with assumed("curio", "Kernel._selector is an EpollSelector", "brief_poll.py, which is never used otherwise"):
        run(main)


def test_curio_s_kernel_knows_by_one_attribute_that_it_was_shut_down() -> None:
    with assumed("curio", "Kernel._shutdown_funcs is None afterwards", "abandon_after_fork() in loop_thread.py"):
        from nwebsocket._threads.safe_curio import Kernel

        kernel = Kernel()
        with kernel, pytest.raises(RuntimeError, match="terminated"):
            kernel.__del__()
        assert kernel._shutdown_funcs is None
        kernel.__del__()


# ---- wsproto


TEXT, PING, CLOSE = 0x81, 0x89, 0x88
RSV1 = 0x40


def frame(first: int, payload: bytes = b"") -> bytes:
    return bytes([first, len(payload)]) + payload


def deflated(payload: bytes, end: int = zlib.Z_SYNC_FLUSH) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    data = stream.compress(payload) + stream.flush(end)
    return data[:-4] if end == zlib.Z_SYNC_FLUSH else data + b"\0"


def client(*extensions: Any) -> Any:
    """wsproto's side of an open connection."""
    from wsproto.connection import Connection, ConnectionType

    return Connection(ConnectionType.CLIENT, list(extensions))


def deflating_client() -> Any:
    """The same with its own extension."""
    from wsproto.extensions import PerMessageDeflate

    deflate = PerMessageDeflate()
    deflate.finalize("permessage-deflate")
    return client(deflate)


def received(connection: Any, *frames: bytes) -> list[Any]:
    connection.receive_data(b"".join(frames))
    return list(connection.events())


@pytest.mark.parametrize("name", ["connection", "handshake", "deflate", "framing"])
def test_wsproto_has_the_names_that_are_used(name: str) -> None:
    with assumed("wsproto", "names that it has", f"_protocol/{name}.py, which imports them"):
        importlib.import_module(f"nwebsocket._protocol.{name}")


def test_wsproto_shows_every_frame_to_every_extension_that_is_enabled() -> None:
    with assumed("wsproto", "when hooks of extensions are called", "FrameGuard in frame_guard.py, all of deflate.py"):
        from wsproto.extensions import Extension
        from wsproto.frame_protocol import RsvBits

        class Recorder(Extension):
            def __init__(self, name: str) -> None:
                self.name = name

            def enabled(self) -> bool:
                return True

            def offer(self) -> bool:
                return False

            def frame_inbound_header(self, proto: Any, opcode: Any, rsv: Any, payload_length: int) -> Any:
                calls.append((self.name, int(opcode), payload_length))
                return RsvBits(False, False, False)

            def frame_inbound_payload_data(self, proto: Any, data: bytes) -> bytes:
                calls.append((self.name, bytes(data)))
                return data

            def frame_inbound_complete(self, proto: Any, fin: bool) -> None:
                calls.append((self.name, fin))

        calls: list[tuple[Any, ...]] = []
        connection = client(Recorder("a"), Recorder("b"))
        received(connection, frame(0x01, b"x"), frame(PING, b"p"), frame(0x80))
        expected: list[tuple[Any, ...]] = []
        for opcode, payload, fin in ((1, b"x", False), (9, b"p", True), (0, b"", True)):
            expected += [("a", opcode, len(payload)), ("b", opcode, len(payload))]
            expected += [("a", payload), ("b", payload), ("a", fin), ("b", fin)]
        assert calls == expected


def test_wsproto_keeps_its_state_when_it_cannot_parse() -> None:
    with assumed("wsproto", "only a Close changes the state, no failure", "_on_close() in connection.py"):
        from wsproto.connection import ConnectionState
        from wsproto.events import CloseConnection

        for data, state in ((b"\x83\x00", ConnectionState.OPEN), (frame(CLOSE), ConnectionState.REMOTE_CLOSING)):
            connection = client()
            (event,) = received(connection, data)
            assert isinstance(event, CloseConnection)
            assert connection.state is state


@pytest.mark.parametrize(
    "data",
    [
        b"\x83\x00",
        frame(TEXT | RSV1),
        frame(PING & 0x7F),
        b"\x89\x7e\x00\x7e",
        b"\x82\x7e\x00\x05",
        b"\x82\x7f\xff" + bytes(7),
        b"\x81\x81abcd",
        frame(0x80),
        frame(0x01) + frame(TEXT),
        frame(CLOSE, b"\x03"),
        frame(CLOSE, b"\x00\x01"),
        frame(CLOSE, b"\x03\xee"),
        frame(CLOSE, b"\x07\xd0"),
        frame(CLOSE, b"\x03\xe8\xff"),
        frame(TEXT, b"\xff"),
    ],
)
def test_wsproto_s_words_for_a_fault_are_known(data: bytes) -> None:
    with assumed("wsproto", "its words for what is wrong with a frame", "_IN_WORDS in faults.py"):
        from nwebsocket._protocol.faults import fault_in_words

        *_, event = received(client(), data)
        assert fault_in_words(event.reason, 1006) != event.reason, event.reason


def test_wsproto_does_not_know_the_close_code_1014() -> None:
    with assumed("wsproto", "it refuses a Close frame with 1014", "FrameGuard.close_code in frame_guard.py may go"):
        (event,) = received(client(), frame(CLOSE, b"\x03\xf6"))
        assert event.code == 1002


def test_wsproto_changes_what_may_not_stand_in_a_close_frame_in_silence() -> None:
    with assumed("wsproto", "it sends 1000 for 1006, and 123 bytes of a reason", "check_close() in close_codes.py"):
        from wsproto.events import CloseConnection

        data = client().send(CloseConnection(1006, "x" * 200))
        code = bytes(byte ^ mask for byte, mask in zip(data[6:8], data[2:4], strict=True))
        assert (int.from_bytes(code, "big"), len(data)) == (1000, 2 + 4 + 125)


def test_wsproto_loses_a_compressed_message_to_a_ping_within() -> None:
    with assumed("wsproto", "it forgets the message under way", "frame_inbound_...() in deflate.py may go"):
        data = deflated(b"hello")
        *_, event = received(deflating_client(), frame(0x41, data[:3]), frame(PING), frame(0x80, data[3:]))
        assert getattr(event, "code", None) == 1007, event


def test_wsproto_loses_a_message_after_the_end_of_a_stream() -> None:
    with assumed("wsproto", "it does not begin a new stream", "_end_stream() in deflate.py may go"):
        connection = deflating_client()
        received(connection, frame(0xC1, deflated(b"end", zlib.Z_FINISH)))
        (event,) = received(connection, frame(0xC1, deflated(b"next")))
        assert getattr(event, "data", None) != "next"


def test_wsproto_sets_no_limit_to_messages() -> None:
    with assumed("wsproto", "it takes any size, deflated, too", "FrameGuard in frame_guard.py, _room() in deflate.py"):
        bomb = deflated(bytes(100_000))
        assert len(bomb) < 126
        (event,) = received(deflating_client(), frame(0xC2, bomb))
        assert len(event.data) == 100_000


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("permessage-deflate; server_max_window_bits=8", ValueError),
        ("permessage-deflate; server_max_window_bits", IndexError),
        ("permessage-deflate; unknown", None),
    ],
)
def test_wsproto_does_not_check_the_parameters_of_compression(answer: str, error: type[Exception] | None) -> None:
    with assumed("wsproto", "finalize() is not fit for use", "finalize() and _parse_parameters() in deflate.py"):
        from wsproto.extensions import PerMessageDeflate

        with pytest.raises(error) if error else contextlib.nullcontext():
            PerMessageDeflate().finalize(answer)


@pytest.mark.parametrize("no_context_takeover", [True, False])
def test_wsproto_compresses_with_the_compressor_that_it_finds(no_context_takeover: bool) -> None:
    with assumed("wsproto", "PerMessageDeflate._compressor", "frame_outbound() in deflate.py"):
        from wsproto.events import BytesMessage

        from nwebsocket import Deflate
        from nwebsocket._protocol.deflate import DeflateExtension

        extension = DeflateExtension(Deflate(level=0, client_no_context_takeover=no_context_takeover), None)
        extension.finalize("permessage-deflate")
        assert len(client(extension).send(BytesMessage(bytes(1000)))) > 1000
        assert (extension._compressor is None) == no_context_takeover


def answered(*lines: str, host: str = "h") -> list[Any]:
    """What wsproto makes of a server's answer."""
    from wsproto.connection import ConnectionType
    from wsproto.events import Request
    from wsproto.extensions import PerMessageDeflate
    from wsproto.handshake import H11Handshake
    from wsproto.utilities import generate_accept_token

    handshake = H11Handshake(ConnectionType.CLIENT)
    request = handshake.send(Request(host=host, target="/", extensions=[PerMessageDeflate()]))
    key = re.search(rb"\r\nSec-WebSocket-Key: (\S+)\r\n", request)
    assert key is not None
    token = generate_accept_token(key[1]).decode()
    handshake.receive_data("\r\n".join([*lines, "", ""]).replace("{accept}", token).encode())
    return list(handshake.events())


ACCEPTED = (
    "HTTP/1.1 101 Yes",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Accept: {accept}",
    "Sec-WebSocket-Extensions: permessage-deflate",
)


def test_wsproto_takes_an_interim_answer_for_a_refusal() -> None:
    with assumed("wsproto", "it takes 103 for the final answer", "http.py: its docstring"):
        from wsproto.events import RejectConnection

        assert [type(event) for event in answered("HTTP/1.1 103 Early Hints", "Link: x")] == [RejectConnection]


def test_wsproto_heeds_the_last_header_of_several() -> None:
    with assumed("wsproto", "the last one counts", "_head_for_wsproto() in handshake.py"):
        from wsproto.events import AcceptConnection

        (event,) = answered(*ACCEPTED, "Connection: keep-alive, Upgrade")
        assert isinstance(event, AcceptConnection)
        (event,) = answered(*ACCEPTED[:2], "Connection: close", *ACCEPTED[2:])
        assert isinstance(event, AcceptConnection)


def test_wsproto_encodes_the_host_with_its_port_as_one_label() -> None:
    with assumed("wsproto", "it refuses a label of 63 characters and a port", "_AsciiHost in handshake.py may go"):
        with pytest.raises(UnicodeError):
            answered(*ACCEPTED, host="x" * 63 + ":8080")
        answered(*ACCEPTED, host="x" * 58 + ":8080")


def test_wsproto_masks_a_copy() -> None:
    with assumed("wsproto", "XorMaskerSimple(mask).process(payload)", "_masked_by_tables() in framing.py"):
        from wsproto.frame_protocol import XorMaskerSimple

        payload = b"\0\1\2\3\4"
        assert b"" + XorMaskerSimple(b"\x10\x20\x30\x40").process(payload) == b"\x10\x21\x32\x43\x14"  # type: ignore[arg-type]
        assert payload == b"\0\1\2\3\4"
