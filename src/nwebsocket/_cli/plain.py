"""The conversation at a terminal without the extra `cli`: the terminal's own line editing, and no colours."""

from __future__ import annotations

import shutil
import threading

from nwebsocket import WebSocket

from .format import harmless, indented, show
from .pipe import Output, Talk, text_lines
from .returning import ReturningWebSocket
from .typed import Mistyped, Typed, greeting

_HINT = "colours, history and line editing: pip install 'nwebsocket[cli]'"


class PlainScreen:
    """A terminal to which lines are written, from any thread."""

    def __init__(self) -> None:
        self._output = Output()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            self._output.write(f"{indented('* ', harmless(text))}\n".encode())

    def show(self, message: str | bytes) -> None:
        shown = show(message, shutil.get_terminal_size().columns - 2)
        with self._lock:
            self._output.write(f"{shown.plain()}\n".encode())


def talk_plainly(ws: WebSocket) -> None:
    """Talk until either side closes. Raises Failed or Stopped unless that is well."""
    screen, typed = PlainScreen(), Typed(ws)
    if isinstance(ws, ReturningWebSocket):
        ws.say_by(screen.say)

    def obey(line: str | bytes) -> None:
        try:
            reply = typed.obey(str(line))
        except Mistyped as error:
            reply = str(error)
        if reply:
            screen.say(reply)

    ws.wait_open()
    screen.say(greeting(ws))
    screen.say(_HINT)
    screen.say(Talk(ws, text_lines(), obey, screen.show, 0).run())
