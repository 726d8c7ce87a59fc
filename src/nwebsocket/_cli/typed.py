"""What a person types at the prompt: messages, and commands, which begin with a slash."""

from __future__ import annotations

import re
from time import monotonic

from nwebsocket import CloseCode, WebSocket, WebSocketError

from .ending import without_query
from .format import count

COMMANDS = {
    "/ping": ("", "measure how long the server takes to answer"),
    "/binary": ("HEX", "send a binary message: /binary c0 ff ee"),
    "/stats": ("", "what has been sent and received so far"),
    "/close": ("[CODE] [REASON]", "close the connection: /close 4000 that is all"),
    "/help": ("", "show this"),
}

_HELP = """\
Each line is sent as a text message, but for commands:
{commands}
  //...                   send a line that begins with a slash
Ctrl-D or Ctrl-C closes the connection and ends."""


class Mistyped(Exception):
    """A line that cannot be obeyed; the text says why."""


class Typed:
    """Obeys the lines that a person types."""

    def __init__(self, ws: WebSocket) -> None:
        self._ws = ws
        self._began = monotonic()

    def obey(self, line: str) -> str:
        """Send a message, or do what a command says, and return what is to be said then. Raises Mistyped."""
        try:
            if line.startswith("//"):
                self._ws.send(line[1:])
            elif line.startswith("/"):
                return self._command(line)
            else:
                self._ws.send(line)
        except (WebSocketError, UnicodeEncodeError) as error:
            raise Mistyped(str(error)) from None
        return ""

    def _command(self, line: str) -> str:
        name, *rest = line.split(None, 1)
        if name not in COMMANDS:
            raise Mistyped(f"there is no command {name}: /help shows all; to send such a line, begin it with //")
        if rest and not COMMANDS[name][0]:
            raise Mistyped(f"{name} takes nothing after it, not {rest[0]!r}; to send such a line, begin it with //")
        method = getattr(self, f"_{name[1:]}")
        result: str = method(*rest)
        return result

    def _ping(self) -> str:
        return f"pong after {seconds(self._ws.ping())}"

    def _binary(self, digits: str = "") -> str:
        try:
            data = bytes.fromhex(digits)
        except ValueError:
            raise Mistyped(f"/binary needs pairs of hexadecimal digits, such as c0 ff ee, not {digits!r}") from None
        self._ws.send(data)
        return f"sent {count(len(data), 'byte')}"

    def _close(self, how: str = "") -> str:
        code, _, reason = how.partition(" ")
        if code and not re.fullmatch(r"[0-9]{1,5}", code):
            raise Mistyped(f"/close takes a code and a reason, such as /close 4000 that is all, not {how!r}")
        self._ws.close(int(code or CloseCode.NORMAL_CLOSURE), reason.strip())
        return ""

    def _stats(self) -> str:
        ws, stats = self._ws, self._ws.stats
        latency = ws.latency
        rows = {
            "URL": without_query(ws.url),
            "state": f"{ws.readyState.name.lower()}, {monotonic() - self._began:.0f} s after the start",
            "sub-protocol": ws.protocol or "none",
            "extensions": ws.extensions or "none",
            "sent": _traffic(stats.messages_sent, stats.bytes_sent),
            "received": _traffic(stats.messages_received, stats.bytes_received),
            "latency": "not measured yet: /ping" if latency is None else seconds(latency),
        }
        return "\n".join(f"{name:13} {value}" for name, value in rows.items())

    def _help(self) -> str:
        lines = [f"  {f'{name} {arguments}':24}{text}" for name, (arguments, text) in COMMANDS.items()]
        return _HELP.format(commands="\n".join(lines))


def _traffic(messages: int, size: int) -> str:
    return f"{count(messages, 'message')}, {count(size, 'byte')} on the wire"


def seconds(time: float) -> str:
    """A short time, for people."""
    return f"{time * 1000:.1f} ms" if time < 1 else f"{time:.2f} s"


def greeting(ws: WebSocket) -> str:
    """What is said when the connection is open."""
    details = [f"sub-protocol {ws.protocol}"] if ws.protocol else []
    details += ["compressed"] if "permessage-deflate" in ws.extensions else []
    suffix = f" ({', '.join(details)})" if details else ""
    return f"connected to {without_query(ws.url)}{suffix}; /help shows the commands"
