"""What was typed, kept for the next time: in a file of the user's own that nobody else may read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

MAX_BYTES = 2**20
"""When the file is longer, its older half is dropped."""


class _FileHistory(FileHistory):
    def store_string(self, string: str) -> None:
        with suppress(OSError):  # a full disk is no reason to stop talking
            super().store_string(string)


def history() -> History:
    """The history in the user's state directory; only in memory if that cannot be written."""
    try:
        path = _path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prepare(path)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return InMemoryHistory()
    return _FileHistory(str(path))


def _path() -> Path:
    state = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME", "")
    # https://specifications.freedesktop.org/basedir-spec: a relative path is to be ignored
    directory = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return directory / "nwebsocket" / "history"


def _prepare(path: Path) -> None:
    """Have the file there, readable for its owner alone, and not too long."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o600)
        if file.seek(0, os.SEEK_END) > MAX_BYTES:
            file.seek(-MAX_BYTES // 2, os.SEEK_END)
            newer = file.read()
            file.truncate(0)
            file.write(newer[newer.find(b"\n\n") + 1 :])
