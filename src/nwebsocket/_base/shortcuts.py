"""Which shortcuts are taken. Each stands in a file of its own, behind one call, and the library does the same without.

    NWEBSOCKET_WITHOUT="lending burst_end"      in the environment switches some off
    NWEBSOCKET_FAST_LANE=0                      the same as NWEBSOCKET_WITHOUT=fast_lane

``fast_lane``   whole data frames and a plain handshake pass wsproto by; without, only the loop thread reads and writes
``lending``     the thread that waits for a message reads the socket itself; without, `burst_end` is off, too
``burst_end``   the last messages of a burst are written by the thread that comes to recv()
``brief_poll``  with handlers on the loop, that waits for the socket without curio

What each gains is told by ``benchmarks/shortcuts.py``.
"""

from __future__ import annotations

import os

KNOWN = frozenset({"fast_lane", "lending", "burst_end", "brief_poll"})

_without = frozenset(os.environ.get("NWEBSOCKET_WITHOUT", "").replace(",", " ").split())
if not _without <= KNOWN:
    unknown = ", ".join(sorted(_without - KNOWN))
    raise ValueError(f"NWEBSOCKET_WITHOUT: there is no shortcut {unknown}; there are {', '.join(sorted(KNOWN))}")
if os.environ.get("NWEBSOCKET_FAST_LANE") == "0":
    _without |= {"fast_lane"}


def taken(name: str) -> bool:
    """Whether this shortcut is taken."""
    return name not in _without
