"""The library's clock: seconds that only go forward, also where tests of the user's freeze or move the time.

freezegun looks for ``time.monotonic`` in all modules and replaces it; in a `time` module of the library's own it finds
another function. A loop whose time stands still would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import BuiltinImporter

_spec = BuiltinImporter.find_spec("time")
assert _spec is not None
_time = BuiltinImporter.create_module(_spec)
assert _time is not None
BuiltinImporter.exec_module(_time)

monotonic: Callable[[], float] = _time.monotonic
