"""The command `nwebsocket` as its users meet it: a process with pipes, or one at a (pseudo-)terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

#: Nothing here takes longer (seconds).
LIMIT = 20.0

_COMMAND = [sys.executable, "-W", "error", "-m", "nwebsocket"]

# A process that makes the terminal its own, and lacks what it is told to lack.
_AT_A_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
missing, *sys.argv[1:] = sys.argv[1:]
sys.modules.update(dict.fromkeys(missing.split()))
runpy.run_module("nwebsocket", run_name="__main__", alter_sys=True)
"""

_ESCAPE_SEQUENCE = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])")


def run(*arguments: str | Path, stdin: bytes = b"", **options: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a pipe to its end. ``options`` are environment variables."""
    command = [*_COMMAND, *map(str, arguments)]
    environment = {**os.environ, **options}
    return subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT, env=environment)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command running in pipes, of which none has a buffer; killed at the end if it has not ended."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*_COMMAND, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.wait(LIMIT)
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of its output."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], [], [], LIMIT)[0], f"nothing after {line!r}"
        byte = process.stdout.read(1)
        assert byte, f"the end after {line!r}"
        line += byte
    return line


class Terminal:
    """The command at a terminal of its own.

    ``missing``  modules that it shall not find, separated by spaces
    ``raw``      all that it has written
    ``text``     the same without escape sequences
    """

    def __init__(self, *arguments: str, missing: str = "", state: Path, **options: str) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.modes = termios.tcgetattr(slave)
        environment = {"TERM": "xterm", "XDG_STATE_HOME": str(state), **options}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _AT_A_TERMINAL, missing, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        self._slave = slave
        self.raw = b""
        self._seen = 0  # of the text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.text, file=sys.stderr)
        self._process.kill()
        self._process.wait(LIMIT)
        os.close(self._master)
        os.close(self._slave)

    @property
    def text(self) -> str:
        return _ESCAPE_SEQUENCE.sub(b"", self.raw).replace(b"\r", b"").decode()

    def type(self, keys: str) -> None:
        """Press these keys; "\\r" is the Enter key."""
        os.write(self._master, keys.encode())

    def expect(self, text: str) -> None:
        """Wait until it has written this, after what was expected before."""
        deadline = time.monotonic() + LIMIT
        while (at := self.text.find(text, self._seen)) < 0:
            if not self._read(0.2) and (time.monotonic() > deadline or self._process.poll() is not None):
                raise AssertionError(f"{text!r} was expected after {self.text[self._seen :]!r}")
        self._seen = at + len(text)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait until it has ended, and return its status."""
        deadline = time.monotonic() + LIMIT
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end after {self.text!r}"
            self._read(0.02)
        while self._read(0.0):
            pass
        return self._process.returncode

    def modes_now(self) -> list[object]:
        """The modes of the terminal: whether it echoes, and so on."""
        import termios

        return termios.tcgetattr(self._slave)

    def _read(self, patience: float) -> bool:
        """Take what comes within so many seconds, and answer as terminals do when asked where the cursor is."""
        if not select.select([self._master], [], [], patience)[0]:
            return False
        data = os.read(self._master, 65536)
        self.raw += data
        os.write(self._master, b"\x1b[1;1R" * data.count(b"\x1b[6n"))
        return True
