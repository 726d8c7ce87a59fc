"""The command `nwebsocket` at a terminal: with prompt_toolkit and rich, and without."""

from __future__ import annotations

import contextlib
import signal
import stat
import sys
from pathlib import Path

import peers
import pytest
from command import Terminal

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

with_and_without = pytest.mark.parametrize("missing", ["", "rich"], ids=["extra", "plain"])


def chat(connection: peers.Connection) -> None:
    """Do what the message says, or send it back."""
    for message in connection:
        if message == "leave":
            connection.close(1000, "bye \x1b[2J")
        elif message == "break":
            connection.close(1011, "oh no")
        elif message == "evil":
            connection.send("\x1b]0;owned\x07 [red]\u202e\n> faked")
        else:
            connection.send(message)


@with_and_without
def test_a_conversation(missing: str, tmp_path: Path) -> None:
    with peers.echo_server(handler=chat) as server, Terminal(server.url, missing=missing, state=tmp_path) as terminal:
        terminal.expect(f"* connected to {server.url} (compressed); /help shows the commands")
        for typed, shown in {
            "hello": "< hello\n",
            "": "(an empty message)",
            "//slash": "< /slash\n",
            '{"a":[1.50]}': '< {"a": [1.50]}\n',
            "evil": "< \\x1b]0;owned\\x07 [red]\\u202e\n  > faked",
            "/binary c0 ff ee": "< c0 ff ee  ...  (3 bytes)" if not missing else "< c0 ff ee  ...\n  (3 bytes)",
            "/binary c0f": "* /binary needs pairs of hexadecimal digits, such as c0 ff ee, not 'c0f'",
            "/ping": "* pong after ",
            "/ping 3": "* /ping takes nothing after it, not '3'; to send such a line, begin it with //",
            "/stats": "sent          6 messages, ",
            "/help": "Ctrl-D or Ctrl-C closes the connection",
            "/shrug": "* there is no command /shrug: /help shows all; to send such a line, begin it with //",
            "/close 99": "* the close code must be 1000 or 3000-4999, not 99",
            "/close now": "* /close takes a code and a reason, such as /close 4000 that is all, not 'now'",
        }.items():
            terminal.type(f"{typed}\r")
            terminal.expect(shown)
        terminal.type("/close 4000 that is all\r")
        terminal.expect("* closed")
        assert terminal.end() == 0
    assert b"\x1b]0;" not in terminal.raw
    assert "\u202e" not in terminal.text


@pytest.mark.slow
@with_and_without
@pytest.mark.parametrize(("word", "status"), [("leave", 0), ("break", 1)])
def test_the_server_closes_while_a_line_is_typed(word: str, status: int, missing: str, tmp_path: Path) -> None:
    told = "1011 (internal error): oh no" if status else "1000 (normal closure): bye \\x1b[2J"
    with peers.echo_server(handler=chat) as server, Terminal(server.url, missing=missing, state=tmp_path) as terminal:
        terminal.expect("* connected")
        terminal.type(f"{word}\rhalf a li")
        terminal.expect(f"closed by the server, {told}")
        assert terminal.end() == status
        assert terminal.modes_now() == terminal.modes


@pytest.mark.slow
@with_and_without
@pytest.mark.parametrize("way", ["Ctrl-D", "Ctrl-C", "SIGTERM"])
def test_leaving(way: str, missing: str, tmp_path: Path) -> None:
    frames: list[peers.Frame] = []

    def script(peer: peers.Peer) -> None:
        peer.accept()
        frames.extend(peer.read_until_close())
        peer.send(peers.close_frame(1000))

    with peers.RawServer(script) as server, Terminal(server.url, missing=missing, state=tmp_path) as terminal:
        terminal.expect("* connected")
        terminal.expect("nwebsocket[cli]" if missing else "open ")
        if way in ("Ctrl-D", "Ctrl-C"):
            terminal.type({"Ctrl-D": "\x04", "Ctrl-C": "\x03"}[way])
            expected = {"Ctrl-D": 0, "Ctrl-C": -signal.SIGINT}[way]
        else:
            terminal.signal(signal.Signals[way])
            expected = -signal.Signals[way]
        assert terminal.end() == expected
        assert terminal.modes_now() == terminal.modes
    assert "Traceback" not in terminal.text
    assert frames[-1].payload == (1000).to_bytes(2, "big")


@pytest.mark.slow
def test_history(echo: str, tmp_path: Path) -> None:
    for keys in ("a secret\r", "\x1b[A\r"):  # the second time: arrow up
        with Terminal(echo, state=tmp_path) as terminal:
            terminal.expect("open ")
            terminal.type(keys)
            terminal.expect("< a secret")
            terminal.type("\x04")
            assert terminal.end() == 0
    path = tmp_path / "nwebsocket" / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.slow
def test_history_that_cannot_be_kept(echo: str) -> None:
    with Terminal(echo, state=Path("/dev/null")) as terminal:
        terminal.expect("open ")
        terminal.type("hello\r")
        terminal.expect("< hello")
        terminal.type("\x1b[A!\r")
        terminal.expect("< hello!")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_long_history_loses_its_older_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nwebsocket._cli import history

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    kept = history.history()
    for number in range(3):
        kept.append_string(f"{number}" * (history.MAX_BYTES * 2 // 5))
    assert [line[0] for line in history.history().load_history_strings()] == ["2"]


@pytest.mark.slow
def test_it_asks_for_a_password(tmp_path: Path) -> None:
    with peers.echo_server() as server, Terminal("-u", "ana", server.url, missing="rich", state=tmp_path) as terminal:
        terminal.expect("Password of ana: ")
        terminal.type("pass:word\r")
        terminal.expect("* connected")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert server.requests[0].headers["Authorization"] == "Basic YW5hOnBhc3M6d29yZA=="
    assert "pass:word" not in terminal.text


@pytest.mark.slow
def test_ctrl_c_stops_a_flood(tmp_path: Path) -> None:
    def flood(peer: peers.Peer) -> None:
        peer.accept()
        message = peers.text("x" * 100) * 100
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(message)

    with peers.RawServer(flood) as server, Terminal(server.url, state=tmp_path) as terminal:
        for _ in range(500):
            terminal.expect("< xxx")
        terminal.type("\x03")
        assert terminal.end() == -signal.SIGINT


@pytest.mark.slow
def test_reconnect(tmp_path: Path) -> None:
    def script(peer: peers.Peer) -> None:
        peer.accept()
        if peer.number == 0:
            peer.read_frame()
            peer.reset()
        else:
            peer.send(peers.text(f"again {peer.read_frame().payload.decode()}"))
            peer.read_until_close()
            peer.send(peers.close_frame(1000))

    arguments = ["--reconnect", "--no-compression"]
    with peers.RawServer(script) as server, Terminal(*arguments, server.url, state=tmp_path) as terminal:
        terminal.expect("open ")
        terminal.type("x\r")
        terminal.expect("the connection was lost: Connection reset by peer; 1 message sent last may not have arrived; ")
        terminal.expect("connected again")
        terminal.type("y\r")
        terminal.expect("< again y")
        terminal.type("\x04")
        assert terminal.end() == 0
