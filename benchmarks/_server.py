"""The server that is measured against, in a process of its own: picows, whose hot paths are C.

What a connection gets depends on the URL's path:

    /echo    every message back
    /flood   "200000": so many messages of 32 bytes, as fast as the client takes them
    /count   "200000": count the next so many messages, then acknowledge with "<messages> <bytes of payload>"

    python _server.py DIRECTORY    prints its addresses as JSON; ends when its standard input does
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

FLOOD_SIZE = 32
"""Bytes of payload of a flood's messages."""

BLOCK = 1024
"""How many frames of a flood are written at once."""

MAX_FRAME = 64 * 2**20
"""Bytes; picows' default of 10 MiB would do for our own rows, but not for whoever tries larger ones."""


class Address(NamedTuple):
    ws: str  # base URLs, without a path
    wss: str
    ca: str  # the file with the certificate that wss:// is signed with

    def url(self, path: str, *, tls: bool) -> str:
        return f"{self.wss if tls else self.ws}/{path}"


@contextlib.contextmanager
def running_server() -> Iterator[Address]:
    """Start the server, give its address, and end it."""
    if missing := [name for name in ("picows", "trustme") if importlib.util.find_spec(name) is None]:
        sys.exit(f"{' and '.join(missing)} not installed, which the server needs: pip install '.[benchmarks]'")
    with TemporaryDirectory() as directory:
        command = [sys.executable, __file__, directory]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            try:
                yield Address(*json.loads(process.stdout.readline() or sys.exit("the server did not start")))
            finally:
                process.kill()


def split_processors() -> tuple[set[int], set[int]]:
    """Return the server's processor and the clients': the last that we may use, and all others.

    On one processor a round trip costs no waking of another, which can be a third of it or more; left to itself the
    system changes between the two from one second to the next, and with it every figure. Both sets are empty where
    there is nothing to split, or no way to.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    usable = sorted(os.sched_getaffinity(0))
    return (set(usable[-1:]), set(usable[:-1])) if len(usable) > 1 else (set(), set())


def stay_on(processors: set[int]) -> None:
    """Keep this process on these processors; on any, if there are none."""
    if processors:
        os.sched_setaffinity(0, processors)


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us; does nothing where there is no such limit (Windows)."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(directory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that measures; it ends us
    threading.Thread(target=end_with_stdin, daemon=True).start()
    stay_on(split_processors()[0])
    raise_descriptor_limit()
    asyncio.run(_serve(Path(directory)))


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


async def _serve(directory: Path) -> None:
    import picows

    logging.getLogger("picows").setLevel(logging.ERROR)  # it warns of each pause of a flood

    listeners = _listeners(picows)

    def listener(request: Any) -> Any:
        return listeners[request.path.decode()]()

    def serve(context: ssl.SSLContext | None = None) -> Any:
        return picows.ws_create_server(
            listener, "127.0.0.1", 0, ssl=context, max_frame_size=MAX_FRAME, enable_auto_pong=False, backlog=1024
        )

    context, ca = certificate(directory)
    plain, secure = await serve(), await serve(context)
    ports = [server.sockets[0].getsockname()[1] for server in (plain, secure)]
    print(json.dumps([f"ws://127.0.0.1:{ports[0]}", f"wss://127.0.0.1:{ports[1]}", ca]), flush=True)
    await asyncio.gather(plain.serve_forever(), secure.serve_forever())


def certificate(directory: Path) -> tuple[ssl.SSLContext, str]:
    """Make a certificate for 127.0.0.1, and the file of the authority that signed it."""
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    return context, str(ca)


def _listeners(picows: Any) -> dict[str, Any]:
    """The listener of each path. (In a function: only this process imports picows.)"""
    kinds = picows.WSMsgType
    text, binary, close, ping = kinds.TEXT, kinds.BINARY, kinds.CLOSE, kinds.PING

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type is close:
                transport.send(close, frame.get_payload_as_bytes())
                transport.disconnect()
            elif frame.msg_type is ping:
                transport.send_pong(frame.get_payload_as_bytes())
            else:
                self.on_message(transport, frame)

    class Echo(Listener):
        """What came in one piece goes back in one: with a system call a message the server would be the slower side."""

        def __init__(self) -> None:
            self.replies = bytearray()

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            size = frame.payload_size
            if size < len(_HEADS[0]) and (frame.msg_type is text or frame.msg_type is binary) and frame.fin:
                self.replies += _HEADS[frame.msg_type is text][size]
                self.replies += frame.get_payload_as_memoryview()
                if frame.last_in_buffer:
                    self.flush(transport)
            else:
                self.flush(transport)
                super().on_ws_frame(transport, frame)

        def flush(self, transport: Any) -> None:
            if self.replies:
                replies, self.replies = self.replies, bytearray()
                transport.underlying_transport.write(replies)

        def on_message(self, transport: Any, frame: Any) -> None:
            transport.send(frame.msg_type, frame.get_payload_as_bytes(), fin=frame.fin)

    class Flood(Listener):
        left = 0
        paused = False

        def on_message(self, transport: Any, frame: Any) -> None:
            self.transport = transport.underlying_transport
            self.left = int(frame.get_payload_as_ascii_text())
            self.pump()

        def pump(self) -> None:
            while self.left and not self.paused:
                frames = min(BLOCK, self.left)
                self.left -= frames
                self.transport.write(_FLOOD_FRAME * frames)

        def pause_writing(self) -> None:
            self.paused = True

        def resume_writing(self) -> None:
            self.paused = False
            self.pump()

    class Count(Listener):
        expected = 0

        def on_message(self, transport: Any, frame: Any) -> None:
            if not self.expected:
                self.expected = int(frame.get_payload_as_ascii_text())
                self.messages = self.bytes = 0
                return
            self.messages += 1
            self.bytes += frame.payload_size
            if self.messages == self.expected:
                self.expected = 0
                transport.send(text, f"{self.messages} {self.bytes}".encode())

    return {"/echo": Echo, "/flood": Flood, "/count": Count}


# RFC 6455 section 5.2: the first two bytes of short, whole messages, binary and text, by their length.
_HEADS = [[bytes([0x80 | opcode, size]) for size in range(126)] for opcode in (2, 1)]
_FLOOD_FRAME = _HEADS[True][FLOOD_SIZE] + b"x" * FLOOD_SIZE

if __name__ == "__main__":
    main(sys.argv[1])
