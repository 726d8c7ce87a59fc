"""Sleeps at random lines of the library, in every thread: what is a rare race becomes a frequent one."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nwebsocket

_FOLDER = str(Path(nwebsocket.__file__).parent) + os.sep


class Chaos:
    """While it is entered, each line of the library is followed with `probability` by a pause of up to `longest`
    seconds, half of them of none but to let another thread go on. Threads that run already are not concerned.

    ``lines``  how many have run
    """

    def __init__(self, probability: float, seed: int, longest: float = 0.002) -> None:
        self.lines = 0
        self._probability = probability
        self._longest = longest
        self._dice = random.Random(seed)
        self._watched: dict[CodeType, bool] = {}

    def __enter__(self) -> Chaos:
        threading.settrace(self._trace_call)
        sys.settrace(self._trace_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _trace_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        watched = self._watched.get(code)
        if watched is None:
            watched = self._watched[code] = code.co_filename.startswith(_FOLDER)
        return self._trace_line if watched else None

    def _trace_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self._dice.random() < self._probability:
                time.sleep(0 if self._dice.random() < 0.5 else self._dice.random() * self._longest)
        return self._trace_line
