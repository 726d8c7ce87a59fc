"""NumPy, if it is installed, imported when it is needed first."""

from __future__ import annotations

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
    try:
        thread = threading.Thread(target=_import, name="nwebsocket-numpy", daemon=True)
        thread.start()
    except RuntimeError:  # the interpreter is exiting
        _imported.append(None)
    else:
        thread.join()


def _import() -> None:
    try:
        import numpy
    except ImportError:
        _imported.append(None)
    else:
        _imported.append(numpy)
