"""What the command line says: the parser, and the WebSocket that its answers describe."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn

from nwebsocket import InvalidArgument, InvalidURL, WebSocket, __version__

from .ending import UsageError
from .returning import ReturningWebSocket

if TYPE_CHECKING:
    import ssl

    from nwebsocket import WebSocketOptions

_DESCRIPTION = """\
Talk to a WebSocket server.

At a terminal this is a conversation: what you type is sent, what comes is shown, and /help shows the commands.
In a pipe each line of standard input is sent as a message, and each message that comes is written to standard output,
unchanged, with a line end after it; --json tells messages that have line ends of their own from one another.
"""

_EPILOG = """\
When standard input ends, all has been sent and the server has been silent for a second (--wait), the connection is
closed. To listen only: nwebsocket --wait inf URL </dev/null

exit status:
  0  closed by either side, with the code 1000, 1001 or none
  1  could not connect, lost the connection, or the server closed it with another code
  2  the command line is wrong
  A signal ends the command with the signal's status, after closing politely: 130 for Ctrl-C, 141 for a broken pipe.

examples:
  nwebsocket ws://localhost:8000/
  nwebsocket --once wss://example.org/api '{"type": "users"}'
  printf 'a\\nb\\n' | nwebsocket localhost:8000
  nwebsocket --json --wait inf wss://example.org/feed </dev/null | jq -r .data
  nwebsocket -H @secret-headers.txt -s chat --reconnect wss://example.org/
"""

_MOST_DIGITS = 40  # of a number; Python reads no more than some thousands
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[/\\]{2}")


class Arguments(argparse.Namespace):
    """What the parser finds."""

    url: str
    message: str | None
    once: bool
    binary: bool
    json: bool
    wait: float | None
    header: list[str]
    subprotocol: list[str]
    origin: str | None
    user: str | None
    proxy: str | Literal[True] | None
    unix: str | None
    cacert: str | None
    cert: str | None
    key: str | None
    insecure: bool
    no_compression: bool
    open_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    max_size: int | None
    reconnect: bool
    verbose: bool


class Asked(Exception):
    """The command line asks for something to be said, and no more."""

    def __init__(self, answer: str) -> None:
        self.answer = answer


class _Ask(argparse.Action):
    """Like argparse's own actions for --help and --version, which hide it if that cannot be written."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise Asked(self.const or parser.format_help())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(arguments: Sequence[str] | None) -> Arguments:
    """Read the command line, or these arguments. Raises UsageError and Asked."""
    found, surplus = _parser().parse_known_intermixed_args(arguments, Arguments())
    if surplus:
        raise UsageError(f"unrecognized arguments: {' '.join(map(_option_in_part, surplus))}")
    if found.message is not None and not found.once:
        raise UsageError("there is more than the URL: a message on the command line goes with --once")
    if found.once and found.reconnect:
        raise UsageError("--once and --reconnect contradict each other: an answer that was lost does not come again")
    if found.key is not None and found.cert is None:
        raise UsageError("--key is the key of a certificate: give that with --cert")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nwebsocket",
        usage="%(prog)s [options] URL\n       %(prog)s [options] --once URL [MESSAGE]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("url", metavar="URL", help="ws:// or wss:// (or http://, https://); without any, ws://")
    parser.add_argument("message", metavar="MESSAGE", nargs="?", help="with --once: what to send")
    _add_messages(parser.add_argument_group("messages"))
    _add_request(parser.add_argument_group("request"))
    _add_connection(parser.add_argument_group("connection"))
    group = parser.add_argument_group("others")
    group.add_argument("-v", "--verbose", action="store_true", help="tell on standard error what the connection does")
    group.add_argument("-h", "--help", action=_Ask, nargs=0, help="show this and exit")
    group.add_argument(
        "-V", "--version", action=_Ask, nargs=0, const=f"nwebsocket {__version__}\n", help="show the version and exit"
    )
    return parser


def _option_in_part(argument: str) -> str:
    """The name of an unknown option; what else there is may be a secret."""
    name = re.match("--[a-z-]+|-[A-Za-z]", argument)
    return name[0] if name else "..."


_Group = argparse._ArgumentGroup


def _add_messages(group: _Group) -> None:
    group.add_argument(
        "--once",
        action="store_true",
        help="send MESSAGE, or all of standard input without its last line end; print the first message that comes",
    )
    group.add_argument("--binary", action="store_true", help="send binary messages: the bytes as they are")
    group.add_argument(
        "--json",
        action="store_true",
        help='write messages as {"time": ..., "type": "text" or "binary", "data": ...}; binary data in base64',
    )
    group.add_argument(
        "-w",
        "--wait",
        metavar="SECONDS",
        type=_wait,
        help="after the end of the input, close when the server has been silent for so long (default 1; 0: at once; "
        "inf: never); with --once: fail if there is no answer within that time (default: wait for it)",
    )


def _add_request(group: _Group) -> None:
    add = group.add_argument
    add(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this header; may be repeated; @FILE: those in the file, one a line",
    )
    add("-s", "--subprotocol", action="append", default=[], metavar="NAME", help="offer this one; may be repeated")
    add("-o", "--origin", metavar="ORIGIN", help="send this Origin")
    add(
        "-u",
        "--user",
        metavar="USER[:PASSWORD]",
        help="authenticate (Basic); without a password, ask for it at the terminal",
    )


def _add_connection(group: _Group) -> None:
    add = group.add_argument
    proxy = group.add_mutually_exclusive_group()
    proxy.add_argument("-x", "--proxy", metavar="URL", default=True, help="by default that of the environment")
    proxy.add_argument("--no-proxy", dest="proxy", action="store_const", const=None, help="connect straight ahead")
    add("--unix", "--unix-socket", metavar="PATH", help="connect to this Unix socket; the URL's host is only a name")
    add("--cacert", metavar="FILE", help="trust these certificate authorities (PEM) instead of the system's")
    add("--cert", metavar="FILE", help="show this client certificate (PEM), with its key in the same file or in --key")
    add("--key", metavar="FILE", help="the key of --cert")
    add("-k", "--insecure", action="store_true", help="do not verify the server's certificate")
    add("--no-compression", action="store_true", help="do not offer compression")
    add(
        "--open-timeout",
        "--connect-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="for opening the connection (default 10; 0: no limit)",
    )
    add(
        "--ping-interval",
        metavar="SECONDS",
        type=_seconds,
        default=20.0,
        help="ping after so much silence (default 20; 0: never)",
    )
    add(
        "--ping-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=20.0,
        help="after so much more the connection is lost (default 20; 0: never)",
    )
    add("--max-size", metavar="BYTES", type=_bytes, default=2**24, help="of a message (default 16 MiB; 0: no limit)")
    add("--reconnect", action="store_true", help="connect again whenever the connection is lost, until Ctrl-C")


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{_in_short(text)} is no number of seconds, 0 or more")
    return seconds


def _seconds(text: str) -> float | None:
    seconds = _wait(text)
    return seconds if 0 < seconds < float("inf") else None


def _bytes(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise argparse.ArgumentTypeError(f"{_in_short(text)} is no number of bytes")
    return int(text) or None


def _in_short(text: str) -> str:
    return repr(text if len(text) <= _MOST_DIGITS else f"{text[:_MOST_DIGITS]}...")


def make_socket(arguments: Arguments) -> WebSocket:
    """Begin to connect as the arguments say. Raises UsageError."""
    kind: type[WebSocket] = ReturningWebSocket if arguments.reconnect else WebSocket
    url = arguments.url if _SCHEME.match(arguments.url) else f"ws://{arguments.url}"
    try:
        return kind(url, arguments.subprotocol, **_options(arguments))
    except (InvalidURL, InvalidArgument) as error:
        raise UsageError(str(error)) from None


def _options(arguments: Arguments) -> WebSocketOptions:
    return {
        "headers": [pair for given in arguments.header for pair in _headers(given)],
        "origin": arguments.origin,
        "auth": None if arguments.user is None else _auth(arguments.user),
        "proxy": arguments.proxy,
        "unix": arguments.unix,
        "ssl": _tls_context(arguments),
        "compression": None if arguments.no_compression else "deflate",
        "open_timeout": arguments.open_timeout,
        "ping_interval": arguments.ping_interval,
        "ping_timeout": arguments.ping_timeout,
        "max_size": arguments.max_size,
    }


def _headers(given: str) -> list[tuple[str, str]]:
    if not given.startswith("@"):
        return [_header(given, _name_in_part(given))]
    path = given[1:]
    with _naming(f"--header @{path}"), open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    return [_header(line, f"line {n} of {path}") for n, line in enumerate(lines, 1) if line.strip()]


def _header(line: str, where: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise UsageError(f"--header: {where} is not of the form 'Name: value'")
    return name.strip(), value.strip()


def _name_in_part(line: str) -> str:
    """What stands before the first character that no name has: what follows may be a secret."""
    name = re.match(r"[\w-]{,40}", line, re.ASCII)
    assert name is not None
    return repr(name[0] if name[0] == line else f"{name[0]}...")


def _auth(given: str) -> tuple[str, str]:
    user, colon, password = given.partition(":")
    return user, password if colon else _ask_for_password(user)


def _ask_for_password(user: str) -> str:
    import getpass

    if os.name == "posix":
        # getpass() would else read it from standard input, which is for messages.
        with _naming(f"--user {user}: no terminal to ask for the password, give {user}:PASSWORD"), open("/dev/tty"):
            pass
    try:
        return getpass.getpass(f"Password of {user}: ")
    except EOFError:
        raise UsageError(f"--user {user}: no password given") from None


def _tls_context(arguments: Arguments) -> ssl.SSLContext | None:
    if not (arguments.cacert or arguments.cert or arguments.insecure):
        return None
    import ssl

    with _naming(f"--cacert {arguments.cacert}"):
        context = ssl.create_default_context(cafile=arguments.cacert)
    if arguments.insecure:
        for name, value in (("check_hostname", False), ("verify_mode", ssl.CERT_NONE)):  # in this order
            setattr(context, name, value)
    if arguments.cert is not None:
        files = f"--cert {arguments.cert}" + (f" --key {arguments.key}" if arguments.key is not None else "")
        with _naming(files):
            context.load_cert_chain(arguments.cert, arguments.key)
    return context


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Have an error with a file tell where on the command line that file was named."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{what}: {reason}") from None
