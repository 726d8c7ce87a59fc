"""Users freeze the time in their tests: the library's clock, and its loop's, go on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from peers import LIMIT, echo_server

import nwebsocket

SCRIPT = """
import sys, time
from {freezer} import {function} as freeze
{before}
with freeze("2012-01-14 12:00:00", tick={tick}):
    from nwebsocket import WebSocket, WaitTimeout
    with WebSocket(sys.argv[1], open_timeout=5) as ws:
        ws.send("hello")
        assert ws.recv(5) == "hello"
        try:
            ws.recv(timeout=0.2)
        except WaitTimeout:
            pass
        assert 0 <= ws.ping(5) < 5
print("done")
"""


@pytest.mark.parametrize("tick", [False, True], ids=["whole", "ticking"])
@pytest.mark.parametrize("before", ["import nwebsocket", ""], ids=["imported before", "imported frozen"])
@pytest.mark.parametrize(("freezer", "function"), [("freezegun", "freeze_time"), ("time_machine", "travel")])
def test_a_socket_works_while_time_stands_still(freezer: str, function: str, before: str, tick: bool) -> None:
    pytest.importorskip(freezer)
    script = textwrap.dedent(SCRIPT.format(freezer=freezer, function=function, before=before, tick=tick))
    source = str(Path(nwebsocket.__file__).parents[1])
    with echo_server() as server:
        ran = subprocess.run(
            [sys.executable, "-c", script, server.url],
            capture_output=True,
            text=True,
            timeout=2 * LIMIT,
            env={**os.environ, "PYTHONPATH": source},
        )
    assert (ran.stdout, ran.stderr) == ("done\n", "")
