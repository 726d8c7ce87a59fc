"""Starting a thread so that Ctrl-C cannot spoil it.

`Thread.start()` that is interrupted right after the thread has begun takes it for one that could not be started, and
the thread then dies with a KeyError in its first lines (Python 3.10 to 3.13: 20 of 20 under a barrage of signals).
"""

from __future__ import annotations

import _thread
import threading


def start(thread: threading.Thread) -> None:
    """Start `thread`; from the main thread by way of another one, which no signal handler interrupts.

    Raises RuntimeError if the system gives no more threads. If it is interrupted, the thread starts all the same, or it
    has not been tried.
    """
    if threading.current_thread() is not threading.main_thread():
        thread.start()
        return
    started = threading.Lock()
    errors: list[RuntimeError] = []
    started.acquire()

    def start_here() -> None:
        try:
            thread.start()
        except RuntimeError as error:
            errors.append(error)
        finally:
            started.release()

    _thread.start_new_thread(start_here, ())
    started.acquire()
    if errors:
        raise errors[0]
