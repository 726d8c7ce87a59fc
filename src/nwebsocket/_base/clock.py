"""The library's clock: seconds that only go forward, also where tests of the user's freeze or move the time.

freezegun looks for ``time.monotonic`` in all modules and replaces it; in a `time` module of the library's own it finds
another function. A loop whose time stands still would wait for ever.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

_spec = importlib.util.find_spec("time")
assert _spec is not None
assert _spec.loader is not None
_time = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_time)

monotonic: Callable[[], float] = _time.monotonic
