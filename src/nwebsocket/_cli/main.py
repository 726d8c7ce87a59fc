"""The command `nwebsocket`, also `python -m nwebsocket`: which conversation it is, and how the process ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from nwebsocket import WebSocket, WebSocketError

from .arguments import Arguments, Asked, make_socket, parse
from .ending import (
    FAILED,
    USAGE,
    Failed,
    Stopped,
    UsageError,
    complain,
    end_by,
    in_options,
    leave,
    stop_politely,
)
from .format import as_json, harmless
from .pipe import SILENCE, STDIN, STDOUT, Output, Talk, as_text, ask_once, read_chunks, read_lines, text_lines


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
        _obey(arguments)
    except UsageError as error:
        complain(f"{error} (nwebsocket --help shows how)")
        return USAGE
    except (Failed, WebSocketError) as error:
        complain(in_options(error))
        return FAILED
    return 0


def _obey(arguments: Sequence[str] | None) -> None:
    try:
        found = parse(arguments)
    except Asked as asked:
        Output().write(asked.answer.encode())
    else:
        _run(found)


def _run(arguments: Arguments) -> None:
    _set_log(arguments.verbose)
    message = _query(arguments) if arguments.once else ""
    ws = make_socket(arguments)
    try:
        if arguments.once:
            ask_once(ws, message, arguments.wait, _shower(arguments))
        elif _is_conversation(arguments):
            _conversation()(ws)
        else:
            _pipe(ws, arguments)
    except BaseException:
        leave(ws)
        raise


def _set_log(verbose: bool) -> None:
    logger = logging.getLogger("nwebsocket")
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)  # that a pipe is slow is no news to its user
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


def _query(arguments: Arguments) -> str | bytes:
    if arguments.message is not None:
        data, where = os.fsencode(arguments.message), "the message"
    else:
        data, where = b"".join(read_chunks()), "standard input"
    return data if arguments.binary else as_text(data, where).removesuffix(os.linesep)


def _is_conversation(arguments: Arguments) -> bool:
    pipe_only = arguments.json or arguments.binary or arguments.wait is not None
    return not pipe_only and sys.stdin is not None and os.isatty(STDIN) and os.isatty(STDOUT)


def _conversation() -> Callable[[WebSocket], None]:
    from .plain import talk_plainly

    if os.environ.get("TERM") == "dumb":
        return talk_plainly
    try:
        from .screen import talk
    except ImportError:  # the extra `cli` is not installed
        return talk_plainly
    return talk


def _pipe(ws: WebSocket, arguments: Arguments) -> None:
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
