"""Servers as users run them, started and ended: those of _real_server.py, and Node's."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from _server import Address, stay_on

HERE = Path(__file__).parent
LOCK = HERE.parent / "tests" / "support" / "servers" / "package-lock.json"
"""Says which version of `ws` is used, and what it must look like."""

COMPRESSING = {"websockets": True, "aiohttp": True, "uvicorn": True, "ws": False, "ws, perMessageDeflate": True}
"""The servers, and whether they accept an offer to compress."""


class ServerMissing(Exception):
    """What a server needs is not installed."""


class RealServer(NamedTuple):
    address: Address
    about: str


@contextlib.contextmanager
def real_server(name: str, processors: tuple[set[int], set[int]], directory: str | None = None) -> Iterator[RealServer]:
    """Start a server on its processors, and stay on ours; give its address, and end it.

    With a `directory`, `websockets` listens with TLS too. Raises ServerMissing.
    """
    command = _command(name) + ([directory] if directory else [])
    stay_on(processors[0])  # its threads begin where we are
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        stay_on(processors[1])
    with process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise ServerMissing(f"the server {name} did not start")
            told = json.loads(line)
            addresses = [f"{kind}://127.0.0.1:{port}" for kind, port in zip(("ws", "wss"), told["ports"], strict=False)]
            yield RealServer(Address(addresses[0], addresses[-1], told["ca"]), told["about"])
        finally:
            process.kill()


def _command(name: str) -> list[str]:
    if name.startswith("ws"):
        if (node := shutil.which("node")) is None:
            raise ServerMissing("Node is not installed")
        deflate = ["deflate"] if COMPRESSING[name] else []
        return [node, str(HERE / "_node_server.js"), str(_node_modules()), *deflate]
    if importlib.util.find_spec(name) is None:
        raise ServerMissing(f"{name} is not installed")
    return [sys.executable, str(HERE / "_real_server.py"), name]


def _node_modules() -> Path:
    """Install the package `ws` into the user's cache, unless that has been done, and return where it is."""
    try:
        lock = LOCK.read_bytes()
    except OSError:
        raise ServerMissing(f"{LOCK} is missing, which says what to install for Node") from None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nwebsocket-benchmarks"
    directory = cache / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not directory.exists():
        if (npm := shutil.which("npm")) is None:
            raise ServerMissing("npm is not installed, which fetches the package ws")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _install(npm, Path(temporary, "made"))
            with contextlib.suppress(OSError):  # another run was faster
                Path(temporary, "made").rename(directory)
    return directory / "node_modules"


def _install(npm: str, directory: Path) -> None:
    directory.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(LOCK.with_name(file), directory)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        raise ServerMissing(f"npm cannot install the package ws: {result.stderr.strip()[-300:]}")
