"""Real Jupyter kernels, in which cells are run as a notebook would, and what comes out of them cell by cell."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers import LIMIT

import nwebsocket

SOURCES = str(Path(nwebsocket.__file__).parent.parent)

TELL_STACKS = """
import faulthandler, signal
faulthandler.register(signal.SIGUSR1, file=open({file!r}, 'w'), all_threads=True)
"""
"""Have the kernel write where its threads are when it gets a signal, even if no Python code runs any more."""


def environment(directory: str) -> dict[str, str]:
    """For a kernel with the library under test, that knows of nothing at home, and leaves nothing there."""
    return os.environ | {
        "PYTHONPATH": SOURCES,
        "IPYTHONDIR": directory,
        "JUPYTER_RUNTIME_DIR": directory,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def settings(directory: str) -> dict[str, Any]:
    """How to talk to a kernel: where it can be had without ports, which two test runs at once may quarrel about."""
    return {"transport": "ipc", "ip": f"{directory}/kernel"} if hasattr(socket, "AF_UNIX") else {}


class Kernel:
    """One kernel, and all that it has said, in `outputs`: (name of the cell, type, content)."""

    def __init__(self, directory: str) -> None:
        from jupyter_client.manager import KernelManager

        self._names: dict[str, str] = {}
        self._unanswered: set[str] = set()
        self.outputs: list[tuple[str | None, str, dict[str, Any]]] = []
        self._manager = KernelManager(kernel_name="python3", **settings(directory))
        self._manager.start_kernel(env=environment(directory), extra_arguments=["--HistoryManager.enabled=False"])
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=LIMIT)
        self._stacks = Path(directory, "stacks")
        self.run("stacks", TELL_STACKS.format(file=str(self._stacks)))

    def stop(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()

    def start(self, name: str, code: str) -> None:
        """Have a cell run; `name` must be new. If it fails, the next one is run all the same."""
        self._ask(name, self._client.execute(code, stop_on_error=False))

    def run(self, name: str, code: str) -> None:
        """Run a cell to its end."""
        self.start(name, code)
        self.wait(lambda: self.idle(name))

    def type(self, name: str, code: str) -> None:
        """Ask what a front end asks about code that is being typed."""
        self._ask(name, self._client.inspect(code))
        self.wait(lambda: self.idle(name))

    def _ask(self, name: str, request: str) -> None:
        self._names[request] = name
        self._unanswered.add(request)

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def wait(self, ready: Callable[[], object]) -> None:
        """Take in what the kernel says until `ready()`."""
        deadline = time.monotonic() + LIMIT
        while not ready():
            try:
                message = self._client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"the kernel says nothing. Its threads:\n{self._threads()}") from None
            name = self._names.get(message["parent_header"].get("msg_id"))
            self.outputs.append((name, message["msg_type"], message["content"]))

    def _threads(self) -> str:
        """Where each thread of the kernel is now."""
        self._manager.signal_kernel(signal.SIGUSR1)
        text = None
        while text != (text := self._stacks.read_text()):
            time.sleep(0.5)
        return text

    def idle(self, name: str) -> bool:
        """Whether the cell has been run, and its reply is here.

        ipykernel 7.0 to 7.3 may overlook a request that comes while it sends the reply to the one before, and then does
        nothing for ever (https://github.com/ipython/ipykernel/pull/1529).
        """
        ran = any(output[:2] == (name, "status") and output[2]["execution_state"] == "idle" for output in self.outputs)
        while ran and any(self._names[request] == name for request in self._unanswered):
            reply = self._client.get_shell_msg(timeout=LIMIT)
            self._unanswered.discard(reply["parent_header"]["msg_id"])
        return ran

    def printed(self, name: str, stream: str = "stdout") -> str:
        """All that is shown under a cell of what was printed."""
        texts = [content for cell, kind, content in self.outputs if (cell, kind) == (name, "stream")]
        return "".join(content["text"] for content in texts if content["name"] == stream)

    def displayed(self, name: str, mime: str) -> list[str]:
        """What a cell shows of this type, its result included."""
        kinds = ("display_data", "execute_result")
        data = [content["data"] for cell, kind, content in self.outputs if cell == name and kind in kinds]
        return [bundle[mime] for bundle in data if mime in bundle]

    def error(self, name: str) -> str | None:
        """The name of the exception that ended a cell."""
        errors = [content["ename"] for cell, kind, content in self.outputs if (cell, kind) == (name, "error")]
        return errors[0] if errors else None


@contextlib.contextmanager
def kernel() -> Iterator[Kernel]:
    with tempfile.TemporaryDirectory(prefix="nws-") as directory:
        running = Kernel(directory)
        try:
            yield running
        finally:
            running.stop()
