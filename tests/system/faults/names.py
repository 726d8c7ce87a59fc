"""The faults of looking up a name: a DNS server that commits them, and a network of its own in which it is asked.

    python names.py        run all cells of the phase "dns" here, and print what was wrong; see `run_apart()`

The C library asks the server that /etc/resolv.conf names, at port 53. So the cells run in a process with a network and
a view of that file of its own, as in tests/support/bad_network.py, which needs root or user namespaces. The host names
say which fault befalls the answer: cut.test, for one.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

#: Seconds after which the C library gives up, which is later than our time-out is.
_RESOLVER_TIMEOUT = 3

_FILES = {
    "/etc/resolv.conf": f"nameserver 127.0.0.1\noptions timeout:{_RESOLVER_TIMEOUT} attempts:1\n",
    "/etc/nsswitch.conf": "hosts: dns\n",
}

_TYPE_A, _CLASS_IN = 1, 1
_ANSWER, _SERVER_FAILURE = 0x8180, 0x8182  # RFC 1035 section 4.1.1: flags, and the code


# --- The server


def _reply(question: bytes, flags: int) -> bytes:
    """The answer to a question: the address 127.0.0.1, if it is asked for and the flags do not say otherwise."""
    (kind,) = struct.unpack_from("!H", question, _end_of_name(question))
    found = kind == _TYPE_A and flags == _ANSWER
    head = question[:2] + struct.pack("!HHHHH", flags, 1, int(found), 0, 0)
    body = question[12 : _end_of_name(question) + 4]
    record = b"\xc0\x0c" + struct.pack("!HHIH", _TYPE_A, _CLASS_IN, 60, 4) + socket.inet_aton("127.0.0.1")
    return head + body + record * found


def _end_of_name(question: bytes) -> int:
    return question.index(0, 12) + 1


def _corrupt(question: bytes) -> bytes:
    """An answer with one bit of its number changed: it belongs to no question."""
    reply = _reply(question, _ANSWER)
    return bytes((reply[0] ^ 1,)) + reply[1:]


def _late(question: bytes) -> bytes:
    time.sleep(0.1)
    return _reply(question, _ANSWER)


_REPLIES: dict[bytes, Callable[[bytes], bytes]] = {
    b"delay": _late,
    b"cut": lambda question: _reply(question, _ANSWER)[:6],
    b"reset": lambda question: _reply(question, _SERVER_FAILURE),
    b"corrupt": _corrupt,
    b"black-hole": lambda question: b"",
}


def _answer(sock: socket.socket, question: bytes, client: tuple[str, int]) -> None:
    label = question[13 : 13 + question[12]]
    if reply := _REPLIES[label](question):
        sock.sendto(reply, client)


def _serve(sock: socket.socket) -> None:
    while True:
        question, client = sock.recvfrom(512)
        threading.Thread(target=_answer, args=(sock, question, client), daemon=True).start()


# --- The network of its own


def run_apart() -> subprocess.CompletedProcess[str]:
    """Run this file in a network of its own."""
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--net", "--mount", *root, sys.executable, __file__]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def _set_up(directory: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for path, text in _FILES.items():
        file = directory / Path(path).name
        file.write_text(text)
        subprocess.run(["mount", "--bind", file, path], check=True)


def _main() -> None:
    import matrix  # now that they can be found
    import peers
    from trial import try_all

    with tempfile.TemporaryDirectory() as directory:
        _set_up(Path(directory))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 53))
        threading.Thread(target=_serve, args=(sock,), daemon=True).start()
        cells = [cell for cell in matrix.cells() if cell.stage.phase == "dns"]
        found = try_all(peers.tls_contexts(), cells)
    print(f"{len(found)} tried")
    for complaint in (complaint for complaints in found.values() for complaint in complaints):
        print(complaint)


if __name__ == "__main__":
    _main()
