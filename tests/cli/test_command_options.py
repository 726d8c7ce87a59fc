"""The command line of `nwebsocket`: what its options do, and what it says of wrong ones."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import command
import peers
import pytest
from command import run

from nwebsocket import ConnectionFailed, ProxyError, ReconnectingWebSocket, WebSocket
from nwebsocket._cli.arguments import make_socket, parse
from nwebsocket._cli.ending import UsageError


def opened(*arguments: str) -> WebSocket:
    """A socket as these arguments make it, opened and closed again."""
    with make_socket(parse(arguments)) as ws:
        return ws


def test_what_the_request_says(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("X-Two: b\n\nAuthorization: Bearer secret\n")
    arguments = ["-H", "X-One: a", "-H", f"@{tmp_path}/headers", "-s", "other", "-s", "chat", "-o", "http://o.example"]
    with peers.echo_server(subprotocols=["chat"]) as server:
        assert opened(server.url, *arguments).protocol == "chat"
    headers = server.requests[0].headers
    assert [headers[name] for name in ("X-One", "X-Two", "Authorization")] == ["a", "b", "Bearer secret"]
    assert (headers["Sec-WebSocket-Protocol"], headers["Origin"]) == ("other, chat", "http://o.example")


def test_a_password_and_a_url_without_a_scheme() -> None:
    with peers.echo_server() as server:
        opened(server.url.replace("ws://", ""), "-u", "ana:pass:word", "--no-compression")
    headers = server.requests[0].headers
    assert headers["Authorization"] == "Basic YW5hOnBhc3M6d29yZA=="
    assert "Sec-WebSocket-Extensions" not in headers


def test_certificates(ca: peers.Authority, tmp_path: Path) -> None:
    authority = str(tmp_path / "ca.pem")
    ca.root.cert_pem.write_to_path(authority)
    with peers.echo_server(ssl=ca.server()) as server:
        assert opened(server.url, "--cacert", authority).response is not None
        assert opened(server.url, "-k").response is not None
        done = run("--once", server.url, "a")
    assert done.returncode == 1
    assert b"; if this server uses a private CA, name it with --cacert ca.pem\n" in done.stderr


def test_a_client_certificate(ca: peers.Authority, tmp_path: Path) -> None:
    authority, both, key, chain = (str(tmp_path / name) for name in ("ca.pem", "both.pem", "key.pem", "chain.pem"))
    ca.root.cert_pem.write_to_path(authority)
    mine = ca.root.issue_cert("ana@example.org")
    mine.private_key_and_cert_chain_pem.write_to_path(both)
    mine.private_key_pem.write_to_path(key)
    mine.cert_chain_pems[0].write_to_path(chain)
    context = ca.server()
    ca.root.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with peers.echo_server(ssl=context) as server:
        assert opened(server.url, "--cacert", authority, "--cert", both).response is not None
        assert opened(server.url, "--cacert", authority, "--cert", chain, "--key", key).response is not None


def test_other_ways_to_the_server() -> None:
    with pytest.raises(ConnectionFailed, match="the Unix socket '/nowhere/s'"):
        opened("ws://localhost/", "--unix", "/nowhere/s")
    with peers.refusing_address() as (host, port):
        proxy = f"http://{host}:{port}"
        with pytest.raises(ProxyError):
            opened("ws://server.example/", "-x", proxy)
        done = run("--no-proxy", f"ws://{host}:{port}/", ws_proxy="http://127.0.0.1:1")
    assert f"cannot connect to {host} port {port}".encode() in done.stderr


def test_limits() -> None:
    found = parse(["--open-timeout=0", "--ping-interval=1.5", "--ping-timeout=0", "--max-size=0", "ws://a/"])
    assert (found.open_timeout, found.ping_interval, found.ping_timeout, found.max_size) == (None, 1.5, None, None)
    found = parse(["--connect-timeout=2", "ws://a/"])
    assert (found.open_timeout, found.ping_interval, found.ping_timeout, found.max_size) == (2.0, 20.0, 20.0, 2**24)
    with peers.dead_address() as (host, port):
        done = run("--open-timeout=0.1", f"{host}:{port}")
    assert done.stderr.endswith(f"--open-timeout 0.1 s has passed while connecting to {host} port {port}\n".encode())


@pytest.mark.slow
def test_verbose_tells_the_story(echo: str) -> None:
    done = run("-v", "--once", echo, "a")
    assert (done.returncode, done.stdout) == (0, b"a\n")
    assert b" #1 < HTTP/1.1 101" in done.stderr


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "URL"),
        ("ws://a/ hello", "there is more than the URL: a message on the command line goes with --once"),
        ("--once --reconnect ws://a/", "--once and --reconnect contradict"),
        ("--key k.pem ws://a/", "give that with --cert"),
        ("-H nothing ws://a/", "--header: 'nothing' is not of the form 'Name: value'"),
        ("-H @/nowhere ws://a/", "--header @/nowhere: No such file or directory"),
        ("-H Upgrade:h2c ws://a/", "the header Upgrade is set by the handshake itself"),
        ("-s a,b ws://a/", "a,b"),
        ("--cacert /nowhere ws://a/", "--cacert /nowhere: No such file or directory"),
        ("--cert /nowhere ws://a/", "--cert /nowhere: No such file or directory"),
        ("--wait soon ws://a/", "'soon' is no number of seconds, 0 or more"),
        ("--ping-timeout -1 ws://a/", "'-1' is no number of seconds"),
        ("--max-size 1M ws://a/", "'1M' is no number of bytes"),
        ("--proxy http://a/ --no-proxy ws://a/", "not allowed with"),
        ("--proxy gopher://a/ ws://a/", "gopher"),
        ("--unix /s --proxy http://a/ ws://a/", "unix and proxy contradict each other"),
        ("--verb ws://a/", "unrecognized arguments: --verb"),
        ("ws://a:b/", "ws://a:b/"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(line: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint.replace("(", r"\(")):
        make_socket(parse(line.split()))


@pytest.mark.parametrize(
    "arguments",
    [
        ["-H", "Authorization Bearer s3cr3t", "ws://a/"],
        ["-H", "Cookie=s3cr3t", "ws://a/"],
        ["-H", "Authorization Bearer s3cr3t:x", "ws://a/"],
        ["ws://a/", "s3cr3t"],
        ["--once", "ws://a/", "hello", "s3cr3t"],
        ["--token=s3cr3t", "ws://a/"],
        ["--max-size", "9" * 5000, "ws://a/"],
        ["--max-size", "s" * 5000, "ws://a/"],
        ["--wait", "s" * 5000, "ws://a/"],
    ],
)
def test_what_is_wrong_is_named_without_secrets_and_in_short(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make_socket(parse(arguments))
    assert "s3cr3t" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "empty.pem"
    path.touch()
    for option in ("--cacert", "--cert"):
        with pytest.raises(UsageError, match=f"{option} {path}: "):
            make_socket(parse([option, str(path), "ws://a/"]))


def test_help_needs_little() -> None:
    script = """
import sys, nwebsocket._cli.main as command
status = command.main(["--help"]), command.main(["--version"])
print(status, {"curio", "wsproto", "asyncio", "rich", "prompt_toolkit"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=command.LIMIT)
    *said, version, last = done.stdout.splitlines()
    assert (said[0], version, last) == ("usage: nwebsocket [options] URL", "nwebsocket 2.0.0", "(0, 0) set()")


def test_reconnect_makes_the_socket_that_comes_back() -> None:
    ws = make_socket(parse(["--reconnect", "ws://127.0.0.1:1/"]))
    assert isinstance(ws, ReconnectingWebSocket)
    ws.close()
    ws.wait_closed(command.LIMIT)
