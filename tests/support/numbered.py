"""The server `servers/numbered.py`, to be killed and started again at the same port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SERVER = Path(__file__).parent / "servers" / "numbered.py"


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else gets: it is bound, and does not listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def start_server(port: int, log: Path) -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, str(SERVER), str(port), str(log)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def kill(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()
