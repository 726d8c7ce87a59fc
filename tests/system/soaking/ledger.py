"""Who has sent what and what has arrived, and whether that is what the documentation promises. Pure.

On one connection, in one direction, the messages arrive without gaps, each once and in order: a *run*. Of a
ReconnectingWebSocket, the runs of its connections follow one another, and what lies between them was at risk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from soaking.plan import (
    ALL_PUSHED,
    ALL_SENT,
    ANSWERED,
    AT_RISK,
    AT_SERVER,
    DAMAGED,
    ERROR,
    HEARD,
    NO_NUMBER,
    PUSHED,
    SENT,
    UNANSWERED,
    Record,
    is_empty,
    profile,
)

Connection = tuple[int, int]
"""A key and an attempt."""


class Run:
    """The messages that have arrived on one connection in one direction."""

    def __init__(self) -> None:
        self.count = 0
        self.last: int | None = None
        self.gaps = self.duplicated = self.reordered = 0

    @property
    def first(self) -> int | None:
        """The number of the first one."""
        return None if self.last is None else self.last - self.count - self.gaps + 1

    def add(self, number: int) -> None:
        """Another one has arrived."""
        if number == NO_NUMBER:
            self._add_empty()
        elif self.last is None:
            self.count += 1  # it and an empty one before it, if that was the first
            self.last = number
        elif number > self.last:
            self.gaps += number - self.last - 1
            self.count += 1
            self.last = number
        elif number == self.last:
            self.duplicated += 1
        else:
            self.reordered += 1

    def _add_empty(self) -> None:
        if self.last is None:
            self.count += 1  # the next one says which it was
        elif is_empty(self.last + 1):
            self.count += 1
            self.last += 1
        else:
            self.reordered += 1


@dataclass
class Totals:
    """What has become of the messages of one direction and one class of sockets."""

    sent: int = 0
    delivered: int = 0
    at_risk: int = 0
    """Not delivered, and nobody had promised it: on their way when their connection was lost."""
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0

    @property
    def kept(self) -> bool:
        """Whether all promises were kept."""
        return not (self.lost or self.duplicated or self.reordered)

    def add_run(self, run: Run) -> None:
        """Count what has arrived on one connection; a gap within it is a loss that no promise allows."""
        self.delivered += run.count
        self.lost += run.gaps
        self.duplicated += run.duplicated
        self.reordered += run.reordered


class Ledger:
    """All that was reported."""

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self._sent: Counter[Connection] = Counter()
        self._at_server: defaultdict[Connection, Run] = defaultdict(Run)
        self._pushed: Counter[Connection] = Counter()
        self._heard: defaultdict[Connection, Run] = defaultdict(Run)
        self._all_sent: set[Connection] = set()
        self._all_pushed: set[Connection] = set()
        self._at_risk: Counter[int] = Counter()

    def add(self, records: Iterable[Record]) -> None:
        """Enter what one process has reported."""
        for kind, key, attempt, number in records:
            self.counts[kind] += 1
            connection = (key, attempt)
            if kind == SENT:
                self._sent[connection] += 1
            elif kind == AT_SERVER:
                self._at_server[connection].add(number)
            elif kind == PUSHED:
                self._pushed[connection] += 1
            elif kind == HEARD:
                self._heard[connection].add(number)
            elif kind == ALL_SENT:
                self._all_sent.add(connection)
            elif kind == ALL_PUSHED:
                self._all_pushed.add(connection)
            elif kind == AT_RISK:
                self._at_risk[key] += number

    @property
    def errors(self) -> int:
        """What no socket may do, and no message become."""
        return self.counts[DAMAGED] + self.counts[ERROR]

    @property
    def delivered(self) -> int:
        """Messages, in both directions."""
        return self.counts[AT_SERVER] + self.counts[HEARD]

    @property
    def queries(self) -> tuple[int, int]:
        """Those that were answered, and those that failed."""
        return self.counts[ANSWERED], self.counts[UNANSWERED]

    def totals(self) -> dict[str, Totals]:
        """The outcome."""
        return {
            "WebSocket, sent": self._sent_by_plain(),
            "ReconnectingWebSocket, sent": self._sent_by_reconnecting(),
            "both, received": self._received(),
        }

    def _sent_by_plain(self) -> Totals:
        """Whole, in order, once, up to the loss; all, if the socket was closed and that was answered."""
        totals = Totals()
        for connection in {*self._sent, *self._at_server}:
            if not profile(connection[0]).reconnecting:
                run = self._at_server.get(connection, Run())
                self._add_connection(totals, run, self._sent[connection], promised=connection in self._all_sent)
        return totals

    def _received(self) -> Totals:
        """The same; all, if the connection has ended cleanly."""
        totals = Totals()
        for connection in {*self._pushed, *self._heard}:
            run = self._heard.get(connection, Run())
            self._add_connection(totals, run, self._pushed[connection], promised=connection in self._all_pushed)
        return totals

    def _add_connection(self, totals: Totals, run: Run, sent: int, *, promised: bool) -> None:
        """Count one connection, which begins with message 0."""
        totals.sent += sent
        totals.add_run(run)
        totals.lost += run.first or 0
        end = 0 if run.last is None else run.last + 1
        totals.duplicated += max(0, end - sent)
        if promised:
            totals.lost += max(0, sent - end)
        else:
            totals.at_risk += max(0, sent - end)

    def _sent_by_reconnecting(self) -> Totals:
        """What is missing was at risk, and was said to be."""
        totals = Totals()
        for key, sent in ((key, count) for (key, attempt), count in self._sent.items() if profile(key).reconnecting):
            totals.sent += sent
            expected, missing = 0, 0
            for connection in sorted(each for each in self._at_server if each[0] == key):
                run = self._at_server[connection]
                totals.add_run(run)
                if run.first is None or run.last is None:
                    missing -= run.count  # an empty one, and nobody can say which
                    continue
                missing += max(0, run.first - expected)
                totals.duplicated += max(0, expected - run.first)
                expected = max(expected, run.last + 1)
            missing += sent - expected
            totals.at_risk += min(missing, self._at_risk[key])
            totals.lost += max(0, missing - self._at_risk[key])
        return totals
