"""The conversation at a terminal, with prompt_toolkit and rich: messages appear above the line that is being typed.

    MAIN THREAD   an asyncio loop, for prompt_toolkit: the prompt, and all writing to the terminal
    "messages"    ws.recv() --some at a time--> the main thread, and waits until they are written
    executor      obeys the lines typed, as sending and pinging may take their time
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext, suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.console import Console, RenderableType
from rich.highlighter import JSONHighlighter
from rich.text import Text

from nwebsocket import CloseCode, ConnectionClosed, ReadyState, WaitTimeout, WebSocket

from .ending import PATIENCE, check_ending, without_query
from .format import Shown, harmless, indented, show
from .history import history
from .returning import ReturningWebSocket
from .typed import COMMANDS, Mistyped, Typed, greeting, seconds

_STYLE = Style.from_dict(
    {
        "prompt": "ansicyan bold",
        "bottom-toolbar": "noreverse fg:ansibrightblack",
        "bottom-toolbar.open": "ansigreen",
        "bottom-toolbar.closed": "ansiyellow",
        "auto-suggestion": "fg:ansibrightblack",
    }
)
_BATCH = 100
"""Messages that are written together, when they come faster than the terminal takes them."""


def _keyboard() -> Input:
    """The terminal's keys, all of them: those pressed while a message is written, when the terminal is usually set to
    edit lines by itself, would be echoed into it, and Ctrl-D be lost.
    """
    keyboard = create_input()
    vars(keyboard)["cooked_mode"] = nullcontext
    return keyboard


class Screen:
    """The conversation of one WebSocket."""

    def __init__(self, ws: WebSocket) -> None:
        self._ws = ws
        self._typed = Typed(ws)
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("class:prompt", "> ")]),
            history=history(),
            auto_suggest=AutoSuggestFromHistory(),
            completer=WordCompleter(list(COMMANDS), sentence=True),
            complete_while_typing=False,
            bottom_toolbar=self._toolbar,
            refresh_interval=1.0,
            style=_STYLE,
            key_bindings=self._key_bindings(),
            input=_keyboard(),
        )
        # Set by run(), in the main thread.
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._lines: asyncio.Queue[str]
        self._tasks: set[asyncio.Task[None]] = set()
        # The user has no time to read what still comes.
        self._quiet = False
        # Why there are no more messages; set by the thread "messages".
        self._ended_by: ConnectionClosed | None = None

    async def run(self) -> ConnectionClosed | None:
        """Talk until either side closes; None if the server takes too long for that."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._lines = asyncio.Queue()
        await self._say(greeting(self._ws))
        if isinstance(self._ws, ReturningWebSocket):
            self._ws.say_by(self.say_soon)
        threading.Thread(target=self._receive_all, name="messages", daemon=True).start()
        obeying = self._loop.create_task(self._obey_all())
        try:
            with suppress(EOFError):
                await self._session.prompt_async(pre_run=self._look_later)
            await self._settled(self._lines.join())
        except BaseException:
            self._quiet = True
            raise
        finally:
            obeying.cancel()
            self._ws.close(CloseCode.NORMAL_CLOSURE)
            await self._settled(self._over.wait())
        return self._ended_by

    async def _settled(self, waiting: Coroutine[object, object, object]) -> None:
        """Wait, but not long: the user wants to leave."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, PATIENCE)

    # ---- lines that are typed: there is one prompt, which does not end with a line

    def _key_bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER))
        def _(event: KeyPressEvent) -> None:
            line = event.current_buffer.text
            event.current_buffer.reset(append_to_history=True)
            self._soon(self._write(_typed_line(line)))
            self._lines.put_nowait(line)

        return bindings

    async def _obey_all(self) -> None:
        while True:
            line = await self._lines.get()
            await self._obey(line)
            self._lines.task_done()

    async def _obey(self, line: str) -> None:
        try:
            reply = await asyncio.to_thread(self._typed.obey, line)
        except Mistyped as error:
            await self._say(str(error), "red")
        else:
            if reply:
                await self._say(reply)

    # ---- the end, while a line is being typed

    def _look_later(self) -> None:
        self._loop.call_soon(self._leave_prompt_if_over)

    def _leave_prompt_if_over(self) -> None:
        prompt = self._session.app
        if self._over.is_set() and prompt.is_running and not prompt.is_done:
            prompt.exit(exception=EOFError())

    def _set_over(self) -> None:
        self._over.set()
        self._leave_prompt_if_over()

    # ---- writing, in the main thread

    def say_last(self, text: str) -> None:
        """Say something when run() has ended."""
        self._console.print(Text(indented("* ", harmless(text)), "bright_black"))

    async def _say(self, text: str, style: str = "bright_black") -> None:
        await self._write(Text(indented("* ", harmless(text)), style))

    def say_soon(self, text: str) -> None:
        """The same from another thread, which need not wait for it."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(lambda: self._soon(self._say(text, "yellow")))

    def _soon(self, writing: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(writing)
        self._tasks.add(task)  # the loop itself does not hold it
        task.add_done_callback(self._tasks.discard)

    async def _write(self, *what: RenderableType) -> None:
        with self._console.capture() as captured:
            for renderable in what:
                self._console.print(renderable)

        def write() -> None:
            sys.stdout.write(captured.get())
            sys.stdout.flush()

        await run_in_terminal(write)

    def _toolbar(self) -> FormattedText:
        ws = self._ws
        stats, state = ws.stats, ws.readyState
        parts = [f"{stats.messages_sent:,} sent", f"{stats.messages_received:,} received"]
        if ws.latency is not None:
            parts.append(f"latency {seconds(ws.latency)}")
        style = "open" if state is ReadyState.OPEN else "closed"
        return FormattedText(
            [
                (f"class:bottom-toolbar.{style}", f"{state.name.lower()} "),
                ("", "  ".join([*parts, harmless(without_query(ws.url), lines=False)])),
            ]
        )

    # ---- the thread "messages"

    def _receive_all(self) -> None:
        try:
            while True:
                batch = self._receive_some()
                if not self._quiet:
                    asyncio.run_coroutine_threadsafe(self._write(*map(self._rendered, batch)), self._loop).result()
        except ConnectionClosed as error:
            self._ended_by = error
        except CancelledError:
            return  # the main thread leaves without waiting
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_over)

    def _receive_some(self) -> list[str | bytes]:
        batch = [self._ws.recv()]
        with suppress(WaitTimeout, ConnectionClosed):
            while len(batch) < _BATCH:
                batch.append(self._ws.recv(0))
        return batch

    def _rendered(self, message: str | bytes) -> Text:
        return render(show(message, self._console.width - 2))


def _typed_line(line: str) -> Text:
    return Text.assemble(("> ", "bold cyan"), harmless(line).replace("\n", "\n  "))


def render(shown: Shown) -> Text:
    """A message in colours."""
    text = Text(shown.text, "cyan" if shown.kind == "binary" else "")
    if shown.kind == "json":
        JSONHighlighter().highlight(text)
    for start, end in shown.escaped:
        text.stylize("reverse", start, end)
    lines = Text("\n  ").join(text.split("\n", allow_blank=True))
    note = f"{'  ' if shown.text else ''}({shown.note})" if shown.note else ""
    return Text.assemble(("< ", "bold green"), lines, (note, "bright_black"))


class _AbovePrompt(logging.Handler):
    """Writes the log above the prompt."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say_soon(self.format(record))


def talk(ws: WebSocket) -> None:
    """Talk until either side closes. Raises Failed unless that is well."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    ws.wait_open()
    screen = Screen(ws)
    with _log_above(screen):
        error = asyncio.run(screen.run())
    if error is not None:
        screen.say_last(check_ending(ws, error))


@contextmanager
def _log_above(screen: Screen) -> Iterator[None]:
    """Have what goes to the log, if it is written at all, appear above the prompt meanwhile."""
    handlers = logging.getLogger("nwebsocket").handlers
    before, above = handlers.copy(), _AbovePrompt(screen)
    for handler in before:
        above.setFormatter(handler.formatter)
        handlers[:] = [above]
    try:
        yield
    finally:
        handlers[:] = before
