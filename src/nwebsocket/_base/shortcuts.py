"""Which shortcuts are taken. Each stands in a file of its own, behind one call, and the library does the same without.

    NWEBSOCKET_WITHOUT="lending burst_end"      in the environment switches some off
    NWEBSOCKET_FAST_LANE=0                      the same as NWEBSOCKET_WITHOUT=fast_lane

``fast_lane``        whole data frames pass wsproto by; without, only the loop thread reads and writes, and the next
                     three are off, too
``plain_handshake``  a plain opening handshake passes wsproto by
``lending``          the thread that waits for a message reads the socket itself; without, the next one is off, too
``burst_end``        the last messages of a burst are written by the thread that comes to recv()
``brief_poll``       with handlers on the loop, that waits for the socket without curio

What one gains is told by ``python benchmarks/compare.py --without NAME``.
"""

from __future__ import annotations

import os

KNOWN = frozenset({"fast_lane", "plain_handshake", "lending", "burst_end", "brief_poll"})

_without = frozenset(os.environ.get("NWEBSOCKET_WITHOUT", "").replace(",", " ").split())
if not _without <= KNOWN:
    unknown = ", ".join(sorted(_without - KNOWN))
    raise ValueError(f"NWEBSOCKET_WITHOUT: there is no shortcut {unknown}; there are {', '.join(sorted(KNOWN))}")
if os.environ.get("NWEBSOCKET_FAST_LANE") == "0":
    _without |= {"fast_lane"}


def taken(name: str) -> bool:
    """Whether this shortcut is taken."""
    return name not in _without
