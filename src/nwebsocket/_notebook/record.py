"""What a socket in a Jupyter notebook needs beyond one in a script. Only imported where ipykernel is.

Its handlers print under the cell that runs, or under the one that opened it (``output="cell"``); its last messages are
remembered for `_repr_html_()`; and there is a hint when it is the second one to its URL.

Where what a thread prints is shown differs: up to ipykernel 6.28 under the cell that runs; from 6.29 to 7.0 for ever
under the cell that started the thread, and for a thread that a thread started, under that one's; since 7.1 under the
cell that runs. With all of them a mere completion while no cell runs leaves it nowhere, and with 7.0 display() raises.
So each handler is called with its output directed, from the outside, to the cell that has begun last.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from threading import get_ident
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .._base.log import log
from .._connection import sockets
from .._connection.callbacks import Callbacks
from .._protocol.payload import TEXT, Message
from .._threads import the_loop

if TYPE_CHECKING:
    from .._connection.bridge import Bridge
    from .._connection.inbox import Sifter
    from .._protocol.url import URL
    from ..exceptions import ConnectionClosed
    from ..options import Options
    from ..websocket import WebSocket

REMEMBERED = 6
"""Messages."""

PREFIX = 160
"""Characters of each, or bytes."""


class Remembered(NamedTuple):
    """A message as far as it is remembered: never the message itself, which may be large."""

    sent: bool
    at: float  # seconds since the epoch
    start: str | bytes
    size: int  # of all of it: characters of a text that has come, else bytes
    cut: bool  # there is more of it than `start`


class Cell(NamedTuple):
    """One run of a cell."""

    request: dict[str, Any]  # the message that asked for it
    headers: list[tuple[ContextVar[Any], Any]]  # where ipykernel 6.29 to 7.1 looks whose output a thread's is

    @property
    def name(self) -> object:
        """What tells it from other runs; None if nobody knows."""
        return self.request.get("header", {}).get("msg_id")

    def claim(self, message: dict[str, Any]) -> dict[str, Any]:
        """What a thread displays, as this cell's: ipykernel up to 6.31 has it shown under the cell that runs."""
        return {**message, "parent_header": self.request.get("header", {})}


class Notebook:
    """The kernel that this process is."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.cell = self._begun()
        self._hinted: set[str] = set()
        self._warned = False
        shell.events.register("pre_run_cell", self._cell_begins)

    def _cell_begins(self, _: object) -> None:
        self.cell = self._begun()

    def _begun(self) -> Cell:
        try:
            request = self.shell.get_parent()
        except LookupError:  # ipykernel 7.0, on a thread of the user's
            request = {}
        variables = copy_context().items()
        return Cell(request, [(variable, value) for variable, value in variables if variable.name == "parent_header"])

    def call_under(self, cell: Cell, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function` with what it prints and displays on this thread shown under `cell`."""
        undo = self._direct_to(cell)
        try:
            function(*arguments)
        finally:
            for call in undo:
                call()

    def _direct_to(self, cell: Cell) -> list[Callable[[], Any]]:
        """Have this thread's output shown under `cell`; return what undoes that."""
        shell = self.shell
        if hasattr(shell, "set_thread_parent"):
            return [partial(shell.reset_thread_parent, shell.set_thread_parent(cell.request))]
        undo: list[Callable[[], Any]] = []
        for variable, header in cell.headers:
            undo.append(partial(variable.reset, variable.set(header)))
        publisher, hook = shell.display_pub, cell.claim
        if hasattr(publisher, "register_hook"):  # not under %%capture
            publisher.register_hook(hook)
            undo.append(partial(publisher.unregister_hook, hook))
        return undo

    def check_can_direct(self) -> None:
        """Warn, once, if output="cell" is more than this ipykernel can do."""
        if not (self._warned or self.cell.headers or hasattr(self.shell, "set_thread_parent")):
            self._warned = True
            log.warning("output='cell' needs ipykernel 6.29 or later: callbacks print under the cell that runs")

    def hint_at_second_socket(self, url: URL) -> None:
        """Say, once for each URL, that a socket to it is open already, unless this very run of a cell opened it."""
        if url.href in self._hinted or not any(map(partial(self._is_another, url), sockets.open_sockets())):
            return
        self._hinted.add(url.href)
        log.warning(
            "another socket to %s is open, from a cell that ran before, and goes on beside this one. If it is of no use"
            " any more, begin the cell with nwebsocket.close_all(), or open the socket in a `with` block.",
            url.shown,
        )

    def _is_another(self, url: URL, socket: WebSocket) -> bool:
        parts = socket._nwebsocket
        bridge = parts.bridge
        record = bridge.inbox.sifter
        if bridge.life.closed_locally or parts.url.href != url.href or not isinstance(record, Record):
            return False
        return record.cell.name != self.cell.name


class Record:
    """The last messages of one socket, and the cell that opened it.

    It stands before the Sifter of the socket, if that has one, and so hears of every message that comes: there is no
    other way past a sifter.
    """

    def __init__(self, cell: Cell, bridge: Bridge) -> None:
        self.cell = cell
        self._messages: deque[Remembered] = deque(maxlen=REMEMBERED)
        self._next: Sifter | None = bridge.inbox.sifter
        self._send = bridge.sender.send

    @property
    def messages(self) -> list[Remembered]:
        """Oldest first."""
        return list(self._messages)

    def send(self, message: Message) -> None:
        """The bridge's send(). What is sent is remembered before that: the answer may come before it returns."""
        opcode, payload, size = message
        start = (payload if isinstance(payload, bytes) else payload[0])[:PREFIX]
        shown = start.decode(errors="ignore") if opcode == TEXT else start
        remembered = Remembered(True, time(), shown, size, size > len(start))
        self._messages.append(remembered)
        try:
            self._send(message)
        except Exception:
            with suppress(ValueError):
                self._messages.remove(remembered)
            raise

    def takes(self, message: str | bytes, taken_out: list[Any]) -> bool:
        """Remember it; return whether the next sifter takes it."""
        self._messages.append(Remembered(False, time(), message[:PREFIX], len(message), len(message) > PREFIX))
        return self._next is not None and self._next.takes(message, taken_out)

    def lost(self, error: Callable[[], ConnectionClosed]) -> tuple[list[Message], set[Message]]:
        return ([], set()) if self._next is None else self._next.lost(error)

    def ended(self, error: Callable[[], ConnectionClosed]) -> list[Callable[[], None]]:
        return [] if self._next is None else self._next.ended(error)

    def after_fork_in_child(self) -> None:
        if self._next is not None:
            self._next.after_fork_in_child()


class CellCallbacks(Callbacks):
    """Callbacks that print under `cell()`, which is asked before each one."""

    def __init__(self, notebook: Notebook, cell: Callable[[], Cell], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._notebook = notebook
        self._cell = cell

    def run_at_once(self, messages: list[str | bytes]) -> list[str | bytes]:
        return messages  # the usual way, one by one

    def _consume(self, owner: Any) -> None:
        while self._bridge.inbox.messages and self._dispatch_to_hearers(owner):  # each handler by _call()
            pass

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        self._notebook.call_under(self._cell(), super()._call, name, function, *arguments)


_notebook: Notebook | None = None


def current() -> Notebook | None:
    """The kernel that this process is, or None: ipykernel may have been imported for something else."""
    global _notebook
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    shell = get_ipython()
    if not hasattr(shell, "get_parent"):  # only that of a kernel has it
        return None
    if _notebook is None or _notebook.shell is not shell:
        _notebook = Notebook(shell)
    return _notebook


def attend(bridge: Bridge, url: URL, options: Options) -> Callable[..., Callbacks]:
    """Look after a new socket, if this is a notebook; return what to make its Callbacks with."""
    notebook = current()
    if notebook is None:
        return Callbacks
    notebook.hint_at_second_socket(url)
    cell = notebook.cell
    record = Record(cell, bridge)
    bridge.sift_by(record)
    bridge.sender.send_by(record.send)
    the_loop.current().call_later(0, _forget_where_thread_began)
    if options.output is None:
        return partial(CellCallbacks, notebook, lambda: notebook.cell)
    notebook.check_can_direct()
    return partial(CellCallbacks, notebook, lambda: cell)


def _forget_where_thread_began() -> None:
    """Have what this thread, the loop's, logs outside of handlers shown under the cell that runs.

    These attributes are those of ipykernel 6.29 to 7.0; no others have them.
    """
    for stream in (sys.stdout, sys.stderr):
        for name in ("_thread_to_parent", "_thread_to_parent_header"):
            getattr(stream, name, {}).pop(get_ident(), None)
