"""Programs that the tests run against: started on free ports of 127.0.0.1, and stopped again.

    tinyproxy()          an HTTP proxy (CONNECT)
    microsocks()         a SOCKS5 proxy
    danted()             a SOCKS4 proxy, of Dante
    socks4a()            a SOCKS4 and 4a proxy of our own (`servers/socks4.py`): no packaged one speaks 4a
    nginx(...)           what its configuration says: TLS, HTTP's refusals and redirects, a proxy in front of others
    node_ws()            a WebSocket server of Node's package `ws` (`servers/node_ws.js`)
    aiohttp_server()     ... and one of aiohttp (`servers/aiohttp_server.py`)

Each is a context manager that gives a `Program`, or skips the test and says what is missing. All need neither root nor
files outside a temporary directory, but for Node's packages, which are installed once into the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing_extensions import Self

#: A program has so long to listen on its ports, and to end when it is told to (seconds).
LIMIT = 10.0

SERVERS = Path(__file__).parent / "servers"

#: Where a user's PATH often does not lead.
_SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


class Program:
    """A running program. If it ends before it is told to, or does not listen, that fails the test with its output.

    ``ports``  where it listens, on 127.0.0.1; ``port`` is the first of them
    """

    def __init__(self, command: Sequence[str | Path], ports: Sequence[int], directory: Path) -> None:
        self.ports = ports
        self.port = ports[0]
        self._command = command
        self._directory = directory
        self._log = directory / "output"
        self._killed = False

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
            )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended_early = self._process.poll() is not None and not self._killed
        self._stop()
        if error is not None:
            print(self._told(), file=sys.stderr)
        elif ended_early:
            raise RuntimeError(f"ended by itself, status {self._process.returncode}: {self._told()}")

    def kill(self) -> None:
        """End it as a crash would: the kernel closes its connections."""
        self._killed = True
        self._process.kill()
        self.wait()

    def freeze(self) -> None:
        """Have it do nothing more, as a machine that hangs; kill() still ends it. Not on Windows."""
        self._process.send_signal(signal.SIGSTOP)

    def wait(self) -> int:
        """Wait until it has ended, and return its status."""
        return self._process.wait(LIMIT)

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + LIMIT
        for port in self.ports:
            while not _listens(port):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"does not listen on port {port} within {LIMIT:g} s: {self._told()}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.01)
                    raise RuntimeError(f"ended at once, status {self._process.returncode}: {self._told()}")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"had to be killed: {self._told()}") from None

    def _told(self) -> str:
        return f"{' '.join(map(str, self._command))}\n{self._log.read_text(errors='replace')}"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), LIMIT).close()
    except ConnectionRefusedError:
        return False
    return True


@contextlib.contextmanager
def free_ports(count: int = 1) -> Iterator[list[int]]:
    """Give ports of 127.0.0.1 that the system gives to nobody else meanwhile."""
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            # As both set this and the holder does not listen, the program may bind the port, too.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        ports = [holder.getsockname()[1] for holder in holders]
        if sys.platform != "linux":
            stack.close()
        yield ports


def _find(name: str) -> str:
    """The path of a program; skips the test without it."""
    path = shutil.which(name, path=_SYSTEM_PATH)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nwebsocket-tests-") as name:
        yield Path(name)


@contextlib.contextmanager
def _script(command: Sequence[str | Path]) -> Iterator[Program]:
    """Run a command that takes its port as the last argument."""
    with (
        _temporary_directory() as directory,
        free_ports() as ports,
        Program([*command, str(ports[0])], ports, directory) as program,
    ):
        yield program


# --- Proxies


@contextlib.contextmanager
def tinyproxy(auth: tuple[str, str] | None = None, connect_ports: Sequence[int] = ()) -> Iterator[Program]:
    """An HTTP proxy that asks for Basic credentials, and connects to certain ports only, if such are given."""
    path = _find("tinyproxy")
    with _temporary_directory() as directory, free_ports() as ports:
        lines = ["Listen 127.0.0.1", f"Port {ports[0]}", "Timeout 60", "LogLevel Connect"]
        lines += [f"BasicAuth {auth[0]} {auth[1]}"] if auth else []
        lines += [f"ConnectPort {port}" for port in connect_ports]
        config = directory / "tinyproxy.conf"
        config.write_text("\n".join([*lines, ""]))
        with Program([path, "-d", "-c", config], ports, directory) as program:
            yield program


@contextlib.contextmanager
def microsocks(auth: tuple[str, str] | None = None) -> Iterator[Program]:
    """A SOCKS5 proxy that asks for a user and a password if they are given."""
    credentials = ["-u", auth[0], "-P", auth[1]] if auth else []
    with _script([_find("microsocks"), "-i", "127.0.0.1", *credentials, "-p"]) as program:
        yield program


_DANTE = """
logoutput: stderr
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
client pass {{
    from: 0/0 to: 0/0
}}
socks pass {{
    from: 0/0 to: 0/0
    command: connect
    log: error
}}
"""


@contextlib.contextmanager
def danted() -> Iterator[Program]:
    """A SOCKS4 and 5 proxy without 4a: it takes 0.0.0.1 for an address."""
    path = _find("danted")
    with _temporary_directory() as directory, free_ports() as ports:
        config = directory / "danted.conf"
        config.write_text(_DANTE.format(port=ports[0]))
        with Program([path, "-f", config, "-p", directory / "danted.pid"], ports, directory) as program:
            yield program


@contextlib.contextmanager
def socks4a(user: str = "") -> Iterator[Program]:
    """A SOCKS4 and 4a proxy that refuses all users but one."""
    with _script([sys.executable, SERVERS / "socks4.py", user]) as program:
        yield program


# --- Servers

_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
{modules}
events {{
    worker_connections 256;
}}
http {{
    access_log off;
    client_body_temp_path body;
    fastcgi_temp_path fastcgi;
    proxy_temp_path proxy;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
{http}
}}
{stream}
"""


@contextlib.contextmanager
def nginx(ports: Sequence[int], *, http: str = "", stream: str = "") -> Iterator[Program]:
    """nginx with what the blocks `http` and `stream` of its configuration shall hold; it listens on all `ports`."""
    path = _find("nginx")
    if stream and not _STREAM_MODULE.exists():
        pytest.skip(f"nginx has no stream module ({_STREAM_MODULE})")
    config = _NGINX.format(
        modules=f"load_module {_STREAM_MODULE};" if stream else "",
        http=http,
        stream=f"stream {{\n{stream}\n}}" if stream else "",
    )
    with _temporary_directory() as directory:
        (directory / "nginx.conf").write_text(config)
        command: list[str | Path] = [path, "-e", "stderr", "-p", directory, "-c", directory / "nginx.conf"]
        with Program(command, ports, directory) as program:
            yield program


@contextlib.contextmanager
def aiohttp_server() -> Iterator[Program]:
    """An aiohttp server; see the script for what its paths do."""
    with _script([sys.executable, SERVERS / "aiohttp_server.py"]) as program:
        yield program


@contextlib.contextmanager
def node_ws() -> Iterator[Program]:
    """A server of Node's package `ws`; see the script for what its paths do."""
    with _script([_find("node"), SERVERS / "node_ws.js", _node_modules(_find("npm"))]) as program:
        yield program


def _node_modules(npm: str) -> Path:
    """Install what `servers/package-lock.json` says, unless that has been done, and return where it is."""
    lock = (SERVERS / "package-lock.json").read_bytes()

    def install(directory: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SERVERS / name, directory)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode:
            pytest.skip(f"npm cannot install the package ws: {result.stderr.strip()[-300:]}")

    return installed(f"node-{hashlib.sha256(lock).hexdigest()[:16]}", install) / "node_modules"


# --- What is installed once, into the user's cache


def installed(name: str, install: Callable[[Path], None]) -> Path:
    """Return the directory of this name in the cache, which `install(directory)` fills if there is none yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "nwebsocket-tests" / name
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            made = Path(temporary, "made")
            made.mkdir()
            install(made)
            try:
                made.rename(directory)
            except OSError:
                if not directory.exists():  # another run was faster
                    raise
    return directory
