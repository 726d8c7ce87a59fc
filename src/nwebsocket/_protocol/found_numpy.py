"""NumPy, if it is installed, imported when it is needed first."""

from __future__ import annotations

import _thread
import threading
from typing import Any

_imported: list[Any] = []  # NumPy, or None if it is not installed


def load_numpy() -> Any:
    """NumPy, or None if it is not installed. From any thread; the first call takes about 0.1 s."""
    if not _imported:
        if threading.current_thread() is threading.main_thread():
            _import_in_a_thread()
        else:
            _import()
    return _imported[0]


def _import_in_a_thread() -> None:
    """Where no signal handler runs: an import of NumPy that Ctrl-C has cut short cannot be done again."""
    done = threading.Lock()
    done.acquire()
    try:
        # Not a Thread, which an interrupted start() would break.
        _thread.start_new_thread(_import_and_tell, (done,))
    except RuntimeError:  # the interpreter is exiting
        _imported.append(None)
    else:
        done.acquire()


def _import_and_tell(done: threading.Lock) -> None:
    try:
        _import()
    finally:
        done.release()


def _import() -> None:
    try:
        import numpy
    except ImportError:
        _imported.append(None)
    else:
        _imported.append(numpy)
