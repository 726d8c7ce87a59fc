"""Each shortcut can be switched off, and the library does the same without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nwebsocket
from nwebsocket._base.shortcuts import KNOWN

LIMIT = 30.0

CONVERSATION = """
import sys, threading
from nwebsocket import WebSocket
url, callbacks = sys.argv[1:]
with WebSocket(url) as ws:
    for size in (1, 100, 1):
        for number in range(size):
            ws.send(f"{number} " + "x" * 100)
        for number in range(size):
            assert ws.recv(20) == f"{number} " + "x" * 100
heard, over = [], threading.Event()
class Asking(WebSocket):
    def onmessage(self, message):
        heard.append(message)
        if len(heard) < 50:
            self.send(str(len(heard)))
        else:
            over.set()
with Asking(url, callbacks=callbacks) as ws:
    ws.send("0")
    assert over.wait(20)
assert heard == [str(number) for number in range(50)], heard
print("done")
"""


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NWEBSOCKET_")}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("without", [*sorted(KNOWN), " ".join(KNOWN)])
def test_the_same_is_said_without(without: str, callbacks: str, echo: str) -> None:
    result = run(CONVERSATION, echo, callbacks, NWEBSOCKET_WITHOUT=without)
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


def test_a_shortcut_that_there_is_not_is_an_error() -> None:
    result = run("import nwebsocket; nwebsocket.WebSocket", NWEBSOCKET_WITHOUT="lending, lingering")
    assert result.returncode
    assert "NWEBSOCKET_WITHOUT: there is no shortcut lingering; there are brief_poll, " in result.stderr


def test_the_older_name_for_one_of_them_goes_on_working() -> None:
    script = "from nwebsocket._base.shortcuts import taken; print(taken('fast_lane'), taken('lending'))"
    assert run(script, NWEBSOCKET_FAST_LANE="0").stdout == "False True\n"
    assert run(script, NWEBSOCKET_FAST_LANE="1").stdout == "True True\n"
    assert run(script).stdout == "True True\n"


def test_each_is_asked_for_in_one_place() -> None:
    files = Path(nwebsocket.__file__).parent.rglob("*.py")
    asked = [name for file in files for name in re.findall(r'taken\("(\w+)"\)', file.read_text(encoding="utf-8"))]
    assert sorted(asked) == sorted(KNOWN)
