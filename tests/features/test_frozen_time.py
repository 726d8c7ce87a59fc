"""Users freeze the time in their tests: the library's clock, and its loop's, go on."""

from __future__ import annotations

import email.utils
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from peers import LIMIT, Peer, RawServer, echo_server

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
    with echo_server() as server:
        check_done(script, server.url)


def check_done(script: str, url: str) -> None:
    source = str(Path(nwebsocket.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", script, url],
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert (ran.stdout, ran.stderr) == ("done\n", "")


REFUSED = """
import sys, threading
from freezegun import freeze_time
with freeze_time("{year}-01-14 12:00:00"):
    from nwebsocket import ReconnectingWebSocket
    failed = threading.Event()
    ws = ReconnectingWebSocket(sys.argv[1])
    ws.addEventListener("error", lambda event: failed.set())
    assert failed.wait(5)
    _, seconds = ws._nwebsocket.bridge.to_be_heard()
    assert 20 <= seconds <= 23, seconds
    ws.close()
    ws.wait_closed(5)
print("done")
"""


@pytest.mark.parametrize("year", [2012, 2035])
def test_the_date_until_which_a_server_asks_to_wait_is_a_length_of_time(year: int) -> None:
    pytest.importorskip("freezegun")

    def refuse(peer: Peer) -> None:
        _ = peer.request
        now = time.time()
        date, after = (email.utils.formatdate(seconds, usegmt=True) for seconds in (now, now + 20))
        head = f"HTTP/1.1 503 Busy\r\nDate: {date}\r\nRetry-After: {after}\r\nContent-Length: 0\r\n\r\n"
        peer.send(head.encode())

    with RawServer(refuse) as server:
        check_done(REFUSED.format(year=year), server.url)
