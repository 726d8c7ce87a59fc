"""The command `nwebsocket`, also `python -m nwebsocket`: which conversation it is, and how the process ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from nwebsocket import WebSocket, WebSocketError

from ._command_arguments import Arguments, make_socket, parse
from ._command_ending import (
    FAILED,
    USAGE,
    Failed,
    Losses,
    Stopped,
    UsageError,
    complain,
    end_by,
    leave,
    stop_politely,
)
from ._command_format import as_json, harmless
from ._command_pipe import SILENCE, STDIN, STDOUT, Output, Talk, as_text, ask_once, read_chunks, read_lines, text_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, with sys.argv or these arguments; return the exit status."""
    stop_politely()
    try:
        return _exit_status(arguments)
    except KeyboardInterrupt:
        return end_by(signal.SIGINT)
    except Stopped as stopped:
        return end_by(stopped.number)


def _exit_status(arguments: Sequence[str] | None) -> int:
    try:
        found = _parsed(arguments)
        if found is not None:
            _run(found)
    except UsageError as error:
        complain(f"{error} (nwebsocket --help shows how)")
        return USAGE
    except (Failed, WebSocketError) as error:
        complain(_for_the_command(str(error)))
        return FAILED
    return 0


def _parsed(arguments: Sequence[str] | None) -> Arguments | None:
    """What the command line says; None if that was for --help or --version, which are done."""
    try:
        return parse(arguments)
    except SystemExit:
        _flush()
        return None


def _flush() -> None:
    """Write what print() has kept, now that an error can still be told."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at exit, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        if isinstance(error, BrokenPipeError) and hasattr(signal, "SIGPIPE"):
            raise Stopped(signal.SIGPIPE) from None
        raise Failed(f"standard output: {error.strerror}") from None


def _run(arguments: Arguments) -> None:
    _set_log(arguments.verbose)
    message = _query(arguments) if arguments.once else ""
    ws = make_socket(arguments)
    try:
        if arguments.once:
            ask_once(ws, message, arguments.wait, _shower(arguments))
        elif _is_conversation(arguments):
            _converse(ws)
        else:
            _pipe(ws, arguments)
    except (KeyboardInterrupt, Stopped):
        leave(ws)
        raise
    finally:
        ws.close()


def _set_log(verbose: bool) -> None:
    logger = logging.getLogger("nwebsocket")
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)  # that a pipe is slow is no news to its user
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


def _query(arguments: Arguments) -> str | bytes:
    if arguments.message is not None:
        return os.fsencode(arguments.message) if arguments.binary else arguments.message
    data = b"".join(read_chunks())
    if arguments.binary:
        return data
    return as_text(data, "standard input").removesuffix("\n").removesuffix("\r" if os.linesep == "\r\n" else "")


def _is_conversation(arguments: Arguments) -> bool:
    pipe_only = arguments.json or arguments.binary or arguments.wait is not None
    return not pipe_only and sys.stdin is not None and os.isatty(STDIN) and os.isatty(STDOUT)


def _converse(ws: WebSocket) -> None:
    _talk_function()(ws)


def _talk_function() -> Callable[[WebSocket], None]:
    from ._command_plain import talk_plainly

    if os.environ.get("TERM") == "dumb":
        return talk_plainly
    try:
        from ._command_screen import talk
    except ImportError:  # the extra `cli` is not installed
        return talk_plainly
    return talk


def _pipe(ws: WebSocket, arguments: Arguments) -> None:
    Losses(ws, complain)
    lines = read_lines() if arguments.binary else text_lines()
    Talk(ws, lines, ws.send, _shower(arguments), SILENCE if arguments.wait is None else arguments.wait).run()


def _shower(arguments: Arguments) -> Callable[[str | bytes], None]:
    """What writes a message to standard output."""
    output = Output()
    if arguments.json:
        return lambda message: output.write(f"{as_json(message, datetime.now(timezone.utc))}\n".encode())
    if os.isatty(STDOUT):
        return lambda message: output.write(f"{_for_a_terminal(message)}\n".encode())
    return lambda message: output.write((message.encode() if isinstance(message, str) else message) + b"\n")


def _for_a_terminal(message: str | bytes) -> str:
    return harmless(message) if isinstance(message, str) else message.hex(" ")


def _for_the_command(error: str) -> str:
    """The error with the command's options in place of the library's."""
    for of_library, of_command in _REMEDIES.items():
        error = error.replace(of_library, of_command)
    return error


_REMEDIES = {
    "pass ssl=ssl.create_default_context(cafile='ca.pem')": "name it with --cacert ca.pem",
    "call load_cert_chain() on an SSLContext and pass that as ssl=": "name it with --cert client.pem",
    "open_timeout=": "--open-timeout ",
    "ping_interval=": "--ping-interval ",
    "ping_timeout=": "--ping-timeout ",
    "max_size allows": "--max-size allows",
}

if __name__ == "__main__":
    sys.exit(main())
