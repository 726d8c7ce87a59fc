"""The library's clock: seconds that only go forward, also where tests of the user's freeze or move the time.

freezegun replaces ``time.monotonic`` in all modules, and time-machine may replace what it does. Neither touches the
system's monotonic clock when it is asked for by its number. A loop whose time stands still would wait for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

if hasattr(time, "clock_gettime"):
    monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
else:  # Windows
    monotonic = time.monotonic
