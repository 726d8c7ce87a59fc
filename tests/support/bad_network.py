"""A bad network: a client and a server, each in a network namespace of its own, and the link between them.

    CLIENT'S PROCESS               TEST'S PROCESS
    script ── TCP/IP ── TUN <──> a thread that delays and drops <──> TUN ── TCP/IP ── listening sockets
    its own namespaces                                               the server's namespace

    missing()            why there can be no such network on this machine
    Link(directory)      the link, a context manager; its `delay` and `drop` say what becomes of a packet
    Link.client(script)  a Python process at the client's end
    NameServer(socket)   what the client asks for the address of a host name

A namespace, and the device in it, lives as long as a process in it or a descriptor from it. The server's is made by a
process that hands over descriptors and ends; a client ends itself when its time is over. So nothing is left behind,
whatever becomes of a test. It needs no root where user namespaces are allowed and everybody may open /dev/net/tun.

Nothing but the standard library is imported: this file is also the script that sets up the namespaces.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

#: Nothing here waits for longer, and no client lives for longer that has not been given more time (seconds).
LIMIT = 15.0

PORT, DNS_PORT = 8000, 53
SERVER_IPV4, SERVER_IPV6 = "198.51.100.2", "2001:db8::2"  # no real host's (RFC 5737, RFC 3849)

#: A host name with both addresses of the server.
HOST = "both.test"

_ADDRESSES = {"client": ("198.51.100.1/24", "2001:db8::1/64"), "server": (f"{SERVER_IPV4}/24", f"{SERVER_IPV6}/64")}

_DEVICE = "tun0"
_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h

# What the client sees in place of the machine's own files, so far as the machine has them.
_FILES = {
    "/etc/hosts": f"127.0.0.1 localhost\n{SERVER_IPV6} {HOST}\n{SERVER_IPV4} {HOST}\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
    "/etc/resolv.conf": f"nameserver {SERVER_IPV4}\noptions timeout:1 attempts:1\n",
    "/etc/gai.conf": "",
}

_PRELUDE = """
import faulthandler, json, sys, time
faulthandler.dump_traceback_later({limit}, exit=True)
from nwebsocket import *

url, options = sys.argv[1], json.loads(sys.argv[2])

def tell(**facts):
    print(json.dumps(facts), flush=True)

"""


# --- What becomes of a packet: the choices for Link.drop

Drop = Callable[[bytes], bool]


def nothing(packet: bytes) -> bool:
    """Drop no packet."""
    return False


def everything(packet: bytes) -> bool:
    """Drop every packet, as a cut cable does: nobody is told."""
    return True


def ipv6(packet: bytes) -> bool:
    """Drop IPv6."""
    return packet[0] >> 4 == 6


def some(share: float) -> Drop:
    """Drop this share of the packets, by chance."""
    chance = random.Random(1)
    return lambda packet: chance.random() < share


def everything_for(seconds: float) -> Drop:
    """Drop every packet until the time has passed, which begins now."""
    end = monotonic() + seconds
    return lambda packet: monotonic() < end


# --- The link


def _unshare() -> list[str]:
    """The command that runs another in new namespaces; who is not root becomes root there."""
    return ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@functools.cache
def missing() -> str | None:
    """Say what this machine lacks for a Link, if anything."""
    for program in ("unshare", "ip", "mount"):
        if shutil.which(program) is None:
            return f"needs the command `{program}`"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"needs {_TUN}, which is not there or may not be opened"
    probe = [*_unshare(), "ip", "-batch", "-"]
    commands = f"tuntap add dev {_DEVICE} mode tun\naddr add {SERVER_IPV6}/64 dev {_DEVICE}\n"
    tried = subprocess.run(probe, input=commands, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"needs network namespaces with a TUN device and IPv6 in them: {' '.join(tried.stderr.split())}"
    return None


class Link:
    """The server's end, and the way there, which carries packets while there is a client.

    ``ipv4``, ``ipv6``   sockets that listen on PORT of SERVER_IPV4 and of SERVER_IPV6
    ``dns``              a UDP socket on DNS_PORT of SERVER_IPV4, for a NameServer
    ``delay``            how long a packet is under way, either way (seconds)
    ``drop``             is asked about each packet that enters the link; may be changed at any time
    ``packets``          how many have entered the link; and ``dropped``, how many of them were dropped
    ``cut_at``           when cut() was called, on the monotonic clock, which all processes share
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.delay = 0.0
        self.drop: Drop = nothing
        self.packets = self.dropped = 0
        self.cut_at = 0.0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            with _set_up("server") as (process, descriptors):
                self._server_tun = _owned(stack, descriptors[0])
                sockets = (stack.enter_context(socket.socket(fileno=fd)) for fd in descriptors[1:])
                self.ipv4, self.ipv6, self.dns = sockets
                process.wait(LIMIT)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def cut(self) -> None:
        """Drop everything from now on."""
        self.drop = everything
        self.cut_at = monotonic()

    @contextlib.contextmanager
    def client(self, script: str, url: str, *, limit: float = LIMIT, **options: Any) -> Iterator[Client]:
        """Run a Python script at the client's end, for `limit` seconds at most. It must end well and without a warning.

        It finds all public names of nwebsocket, the module time, `url`, the dictionary `options`, and
        `tell(name=value, ...)` for what Client.hear() is to return.
        """
        file = self._directory / "client.py"
        file.write_text(_PRELUDE.format(limit=limit) + script)
        for path, text in _FILES.items():
            (self._directory / Path(path).name).write_text(text)
        with _set_up("client", str(self._directory), str(file), url, json.dumps(options)) as (process, descriptors):
            with contextlib.ExitStack() as stack, self._relaying(_owned(stack, descriptors[0])):
                yield Client(process)
                _, complaints = process.communicate(timeout=limit)
            assert (process.returncode, complaints) == (0, ""), f"exit code {process.returncode}: {complaints}"

    @contextlib.contextmanager
    def _relaying(self, client_tun: int) -> Iterator[None]:
        receiver, stop = socket.socketpair()
        with receiver, selectors.DefaultSelector() as selector:
            selector.register(client_tun, selectors.EVENT_READ, self._server_tun)
            selector.register(self._server_tun, selectors.EVENT_READ, client_tun)
            selector.register(receiver, selectors.EVENT_READ)
            relay = threading.Thread(target=self._relay, args=(selector,), name="link", daemon=True)
            relay.start()
            try:
                yield
            finally:
                stop.close()
                relay.join()

    def _relay(self, selector: selectors.BaseSelector) -> None:
        """Carry packets until the one readable descriptor is ready that leads nowhere."""
        under_way: deque[tuple[float, int, bytes]] = deque()
        while True:
            ready = selector.select(under_way[0][0] - monotonic() if under_way else None)
            for key, _ in ready:
                if key.data is None:
                    return
                for packet in self._entering(key.fd):
                    under_way.append((monotonic() + self.delay, key.data, packet))
            while under_way and under_way[0][0] <= monotonic():
                _, tun, packet = under_way.popleft()
                os.write(tun, packet)

    def _entering(self, tun: int) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(tun, 65536)
                self.packets += 1
                if self.drop(packet):
                    self.dropped += 1
                else:
                    yield packet


class Client:
    """A script that runs at the client's end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> dict[str, Any]:
        """Wait for what the script tells next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise AssertionError(f"the client has ended: {self._process.stderr.read()}")
        told: dict[str, Any] = json.loads(line)
        return told


# --- Names

NO_ANSWER, SERVFAIL, NXDOMAIN = "no answer", 2, 3  # RFC 1035 section 4.1.1

_A = 1


class NameServer:
    """Answers all questions alike: with an IPv4 address, with an error, or not at all.

    ``answer``  which; may be changed at any time
    ``given``   how often each answer has been given
    """

    def __init__(self, sock: socket.socket, answer: str | int) -> None:
        self.answer = answer
        self.given: Counter[str | int] = Counter()
        self._socket = sock
        self._thread = threading.Thread(target=self._serve, name="name server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(512)
            if not question:
                return
            answer = self.answer
            if answer != NO_ANSWER:
                self._socket.sendto(_reply(question, answer), client)
            self.given[answer] += 1


def _reply(message: bytes, answer: str | int) -> bytes:
    """The reply to a message with one question; one for something else than an IPv4 address has no answer."""
    end = message.index(0, 12) + 5  # the name ends with an empty label; then come the type and the class
    question = message[12:end]
    (kind,) = struct.unpack("!H", question[-4:-2])
    code = answer if isinstance(answer, int) else 0
    records = b""
    if isinstance(answer, str) and kind == _A:
        records = struct.pack("!HHHIH4s", 0xC00C, _A, 1, 0, 4, socket.inet_aton(answer))
    return message[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, bool(records), 0, 0) + question + records


# --- Descriptors and processes


def _owned(stack: contextlib.ExitStack, descriptor: int) -> int:
    """Have the stack close the descriptor."""
    stack.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _set_up(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run this file in new namespaces; give the process, killed in the end, and the descriptors that it hands over."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [*_unshare(), sys.executable, __file__, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno()],
            )
        with process:
            try:
                yield process, _handed_over(process, ours)
            finally:
                process.kill()


def _handed_over(process: subprocess.Popen[str], ours: socket.socket) -> list[int]:
    ours.settimeout(LIMIT)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 4)
    if not descriptors:
        raise RuntimeError(f"cannot set up a namespace: {process.communicate(timeout=LIMIT)[1]}")
    return descriptors


# --- In the new namespaces


def _open_tun(side: str) -> int:
    """Make a TUN device with the addresses of the side; it goes when the descriptor is closed."""
    import fcntl  # this far we come on Linux only

    tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    ipv4, ipv6 = _ADDRESSES[side]
    commands = f"""
        link set lo up
        link set {_DEVICE} up
        addr add {ipv4} dev {_DEVICE}
        addr add {ipv6} dev {_DEVICE} nodad
    """
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
    # Without this the kernel keeps a namespace for minutes after all, when the link was cut: it goes on sending what
    # closed sockets had left unsent.
    with contextlib.suppress(OSError):  # read-only in some containers
        Path("/proc/sys/net/ipv4/tcp_orphan_retries").write_text("1")
    return tun


def _be_server(handover: socket.socket) -> None:
    tun = _open_tun("server")
    with (
        socket.create_server((SERVER_IPV4, PORT)) as ipv4,
        socket.create_server((SERVER_IPV6, PORT), family=socket.AF_INET6) as ipv6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns,
    ):
        dns.bind((SERVER_IPV4, DNS_PORT))
        socket.send_fds(handover, [b"+"], [tun, ipv4.fileno(), ipv6.fileno(), dns.fileno()])


def _be_client(handover: socket.socket, directory: str, script: str, *arguments: str) -> None:
    tun = _open_tun("client")
    for path in _FILES:
        if os.path.exists(path):
            subprocess.run(["mount", "--bind", os.path.join(directory, os.path.basename(path)), path], check=True)
    socket.send_fds(handover, [b"+"], [tun])
    handover.close()
    os.execv(sys.executable, [sys.executable, script, *arguments])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as handover:
        if sys.argv[2] == "server":
            _be_server(handover)
        else:
            _be_client(handover, *sys.argv[3:])
