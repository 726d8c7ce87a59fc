"""Faults to be put back into a copy of the library, one at a time: the simulation must find each.

Most are what a mend has once taken out. The text to exchange is given as it stands in the source.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One of them.

    ``file``      below the package
    ``old, new``  what is exchanged
    ``scenario``  which finds it
    ``fine``      whether a thread must be able to go on at any opcode for that
    ``rare``      whether it takes more than some hundred runs
    """

    file: str
    old: str
    new: str
    scenario: str
    fine: bool = False
    rare: bool = False


FAULTS: dict[str, Fault] = {
    "the callback thread does not count notices": Fault(
        "_connection/callback_thread.py", "if notices != self._notices:", "if False:", "handlers"
    ),
    "anybody consumes beside the handlers": Fault(
        "_connection/inbox.py",
        "return self.consumer is None or self.consumer == get_ident()",
        "return True",
        "changing_handler",
        fine=True,
        rare=True,
    ),
    "nobody who waits hears of the end": Fault(
        "_connection/waiters.py",
        "for queue in (self.receivers, self.others, self.senders):",
        "for queue in (self.others, self.senders):",
        "close_while_receiving",
    ),
    "what waits for room is not woken": Fault(
        "_connection/outgoing.py",
        "        with self._lock:\n            self._waiters.release_senders()\n",
        "",
        "full_outgoing",
    ),
    "Pongs wait for what came behind the Ping": Fault(
        "_connection/intake.py",
        "        if received.replies is not None:\n            self._answer(received)\n        if self._piece",
        "        if self._piece",
        "pings",
    ),
    "the loop wakes for ever who waits again at once": Fault(
        "_connection/query.py",
        '        with suppress(IndexError):\n            waiting.release(self.__dict__.get("_sleepers", []))',
        '        while sleepers := self.__dict__.get("_sleepers", []):\n            waiting.release(sleepers)',
        "queries",
        fine=True,
    ),
    "the end of a query wakes nobody": Fault(
        "_connection/query.py", '        if "_sleepers" in made:\n', "        if False:\n", "queries"
    ),
    "two threads write at once": Fault(
        "_connection/writer.py",
        "        outgoing, transport = self._outgoing, self._transport\n        with self.wire:\n",
        "        outgoing, transport = self._outgoing, self._transport\n        if True:\n",
        "two_senders",
        fine=True,
    ),
    "reading does not go on": Fault(
        "_connection/inbox.py",
        "            self.reading_stopped = False\n            self._intake.ask_to_resume()\n",
        "            self.reading_stopped = False\n",
        "full_inbox",
    ),
    "what was taken in part is not sent again": Fault(
        "_connection/outgoing.py",
        "            if end > taken:\n",
        "            if end - size >= taken:\n",
        "large_outbox",
    ),
    "what comes late overtakes what was kept": Fault(
        "_connection/outgoing.py", "return [*left, *self.taken]", "return [*self.taken, *left]", "large_outbox"
    ),
}
