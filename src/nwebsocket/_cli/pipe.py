"""Not at a terminal: lines of standard input go out as messages, messages that come go to standard output.

    MAIN THREAD    ws.recv() --messages--> Output
    "input"        lines --> ws.send(); at their end it waits for silence, and closes
    "reader"       sees whether standard output is still read, and closes else

Nothing is queued here: who cannot write does not receive, and who cannot send does not read. Descriptors are read and
written without Python's buffers: these have locks, which a thread that blocks would still hold at exit.
"""

from __future__ import annotations

import codecs
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic

from nwebsocket import CloseCode, ConnectionClosed, OutboxFull, WaitTimeout, WebSocket, WebSocketError

from .ending import Failed, Stopped, check_ending, leave, without_query

STDIN, STDOUT = 0, 1

SILENCE = 1.0
"""Seconds without a message after which nothing more is expected, when all has been sent."""

_PONG = 10.0
"""Seconds to wait for the pong that tells that the server has received all."""

_MOMENT = 0.05
"""Seconds until something that stands in the way is looked at again."""


class Output:
    """Standard output: each write is whole, and at once."""

    def __init__(self) -> None:
        if sys.stdout is None:  # closed: the descriptor may be that of a socket of ours by now
            raise Failed("standard output is closed")

    def write(self, data: bytes) -> None:
        """Write all of it. Raises Stopped if nobody reads any more, Failed if there is no room."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(STDOUT, left) :]
        except BrokenPipeError:
            raise _broken_pipe() from None
        except OSError as error:
            raise Failed(f"standard output: {error.strerror}") from None


def _broken_pipe() -> BaseException:
    return Stopped(signal.SIGPIPE) if hasattr(signal, "SIGPIPE") else Failed("nobody reads standard output any more")


def read_chunks() -> Iterator[bytes]:
    """What comes from standard input, as it comes."""
    if sys.stdin is None:
        return
    try:
        while chunk := os.read(STDIN, 65536):
            yield chunk
    except OSError as error:
        raise Failed(f"standard input: {error.strerror}") from None


def read_lines() -> Iterator[bytes]:
    """The lines of standard input as they come, without their ends; the last one needs none."""
    end = os.linesep.encode()
    pieces: list[bytes] = []  # of a line that has not ended
    for chunk in read_chunks():
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for line in others:
            yield (b"".join(pieces) + b"\n").removesuffix(end).removesuffix(b"\n")
            pieces = [line]
    if any(pieces):
        yield b"".join(pieces)


def as_text(data: bytes, where: str) -> str:
    """The text that the bytes are. Raises Failed."""
    try:
        return codecs.decode(data, "utf-8")
    except UnicodeDecodeError as error:
        raise Failed(
            f"{where} is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start + 1}); "
            "with --binary it is sent as it is"
        ) from None


def text_lines() -> Iterator[str]:
    """The lines of standard input as text."""
    for number, line in enumerate(read_lines(), 1):
        yield as_text(line, f"line {number} of standard input")


def ask_once(ws: WebSocket, message: str | bytes, wait: float | None, show: Callable[[str | bytes], None]) -> None:
    """Send a query and show its answer: the first message that comes."""
    ws.wait_open()
    ws.send(message)
    try:
        show(ws.recv(wait))
    except ConnectionClosed as error:
        raise Failed(f"no answer came: {error}") from None
    leave(ws)


class Talk:
    """Sends what `lines` gives, and shows what comes.

    ``send``  does what a line says
    ``wait``  after the end of the lines, close when the server has been silent for so many seconds
    """

    def __init__(
        self,
        ws: WebSocket,
        lines: Iterator[str | bytes],
        send: Callable[[str | bytes], None],
        show: Callable[[str | bytes], None],
        wait: float,
    ) -> None:
        self._ws = ws
        self._lines = lines
        self._send = send
        self._show = show
        self._wait = wait
        # What the other threads have found: written once by one of them, read when the connection is over.
        self._failure: BaseException | None = None
        self._unsent = False
        self._reader_gone = False
        self._silent = False  # all was sent and received, and nothing came any more
        # How many messages are shown, and when the last one was; the main thread's.
        self._shown = 0
        self._shown_at = 0.0
        self._over = threading.Event()

    def run(self) -> str:
        """Talk until the connection is over, and say how it ended. Raises Failed or Stopped unless that is well."""
        self._ws.wait_open()
        sender = threading.Thread(target=self._send_all, name="input", daemon=True)
        sender.start()
        if _is_pipe(STDOUT):
            threading.Thread(target=self._watch_reader, name="reader", daemon=True).start()
        error = self._receive_all()
        sender.join(_MOMENT)  # it may be about to notice; else it waits for input
        if self._failure is not None:
            raise self._failure
        if self._reader_gone and self._unsent:
            raise _broken_pipe()
        if self._silent:
            return "closed"  # whatever the server made of that
        ending = check_ending(self._ws, error)
        if self._unsent or self._ws.bufferedAmount:
            raise Failed(f"{without_query(self._ws.url)}: {ending}, before all of the input was sent")
        return ending

    def _receive_all(self) -> ConnectionClosed:
        try:
            while True:
                self._show(self._ws.recv())
                self._shown_at = monotonic()
                self._shown += 1
        except ConnectionClosed as error:
            return error
        finally:
            self._over.set()

    # ---- the thread "input"

    def _send_all(self) -> None:
        try:
            for line in self._lines:
                self._send_one(line)
        except WebSocketError:
            self._unsent = True  # it is over, and the main thread knows why
        except BaseException as error:
            self._failure = error
        self._close_when_silent()

    def _send_one(self, line: str | bytes) -> None:
        while not self._accepted(line):
            self._ws.wait_open()
            self._over.wait(_MOMENT)

    def _accepted(self, line: str | bytes) -> bool:
        try:
            self._send(line)
        except OutboxFull:  # while there is no connection
            return False
        return True

    def _close_when_silent(self) -> None:
        if self._wait == float("inf"):
            return
        if self._wait > 0:
            self._wait_until_received()
            self._wait_for_silence()
            self._silent = not self._over.is_set()
        self._ws.close(CloseCode.NORMAL_CLOSURE)

    def _wait_until_received(self) -> None:
        """Wait until the server has received all: its pong to what is sent last says so."""
        while not self._over.is_set() and not self._received():
            self._over.wait(_MOMENT)

    def _received(self) -> bool:
        try:
            self._ws.wait_open().ping(_PONG)
        except WaitTimeout:
            return not self._ws.bufferedAmount  # then the server does not answer pings
        except WebSocketError:  # the connection is lost, and perhaps comes back
            return False
        return True

    def _wait_for_silence(self) -> None:
        since = monotonic()
        while not self._over.is_set():
            if self._ws.stats.messages_received > self._shown:
                self._over.wait(min(self._wait, _MOMENT))  # one is being written, and more may wait behind it
                since = monotonic()
            left = max(since, self._shown_at) + self._wait - monotonic()
            if left <= 0:
                return
            self._over.wait(min(left, threading.TIMEOUT_MAX))

    # ---- the thread "reader"

    def _watch_reader(self) -> None:
        """Wait until nobody reads standard output any more. Only what then still comes makes that a broken pipe."""
        poll = select.poll()
        poll.register(STDOUT, 0)
        poll.poll()
        self._reader_gone = True
        self._ws.close(CloseCode.NORMAL_CLOSURE)


def _is_pipe(descriptor: int) -> bool:
    """Whether the system can tell us that its reader has gone."""
    mode = os.fstat(descriptor).st_mode
    return hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))

