"""Compare what the user of a cell has seen with what is promised."""

from __future__ import annotations

from collections.abc import Iterator

from lab import Place
from matrix import BEFORE, Cell, Expected
from talk import PLEASE_CLOSE, SWEEP, Message, conversation
from user import Seen

from nwebsocket import ConnectionClosed

#: Seconds by which everything may be late: the clients, the relays and the servers of dozens of connections share one
#: interpreter, and that a processor with others. Enough to tell our time-outs, all under a second, from the defaults,
#: and what is noticed at once from what only some time-out ends.
TOLERANCE = 2.5


def complaints(cell: Cell, expected: Expected, place: Place, seen: Seen) -> Iterator[str]:
    """Say what is not as it should be."""
    in_sweep = cell.stage.phase.startswith(SWEEP)  # ... a connection may turn out to be shorter than the last one
    if place.will_be_struck and not in_sweep and not place.struck.wait(TOLERANCE):
        yield "the fault has not struck"
    yield from [
        *_about_messages(cell, expected, seen),
        *_about_echoes(cell, expected, place, seen),
        *_about_the_end(cell, expected, seen),
        *_about_methods(seen),
        *_about_time(expected, place, seen),
    ]


def _about_messages(cell: Cell, expected: Expected, seen: Seen) -> Iterator[str]:
    altered = expected.altered if cell.stage.direction == "down" else ""
    if len(seen.messages) != expected.messages and expected.altered != "anything":
        yield f"{expected.messages} messages were expected, {len(seen.messages)} have come"
    if not _are_same(seen.messages, conversation(cell), altered, expected.messages):
        yield f"other messages than were sent: {seen.messages!r:.500}"


def _about_echoes(cell: Cell, expected: Expected, place: Place, seen: Seen) -> Iterator[str]:
    altered = expected.altered if cell.stage.direction == "up" else ""
    echoed = [message for message in seen.messages if message != PLEASE_CLOSE]
    if expected.codes == (1000,) and len(place.talk.echoes) != len(echoed):
        yield f"{len(echoed)} messages were sent back, the server received {len(place.talk.echoes)}"
    if not _are_same(place.talk.echoes, echoed, altered, place.intact):
        yield f"the server received other messages than were sent: {place.talk.echoes!r:.500}"


def _are_same(received: list[Message], sent: list[Message], altered: str, intact: int) -> bool:
    """Whether what was received is what was sent, so far as it goes, but for what could not be noticed."""
    if altered == "anything":
        return received[:intact] == sent[:intact]
    if altered == "a bit":
        before, after = sent[BEFORE], received[BEFORE]
        if not (isinstance(before, bytes) and isinstance(after, bytes) and len(before) == len(after)):
            return False
        if (int.from_bytes(before, "big") ^ int.from_bytes(after, "big")).bit_count() != 1:
            return False
        received = [*received[:BEFORE], before, *received[BEFORE + 1 :]]
    return received == sent[: len(received)]


def _about_the_end(cell: Cell, expected: Expected, seen: Seen) -> Iterator[str]:
    error = seen.errors[0] if seen.errors else None
    opened = "open" in seen.events if expected.opened is None else expected.opened
    order = [*["open"] * opened, *["message"] * len(seen.messages), *["error"] * (error is not None), "close"]
    # A thread that receives may be slower than the one that calls the handlers.
    events, order = (without_messages(e) if cell.way == "recv" else e for e in (seen.events, order))
    if events != order:
        yield f"events were expected in the order {order}, and came as {events}"
    if (type(error) if error else None) not in expected.errors:
        yield f"one of {expected.errors} was expected, not {error!r}"
    codes = [event.code for event in seen.closes]
    if len(codes) != 1 or codes[0] not in (expected.codes or codes) or (codes == [1006]) is not (error is not None):
        yield f"one close with one of {expected.codes} was expected, not {codes}"
    if any(event.wasClean is (event.code == 1006) for event in seen.closes):
        yield f"wasClean is wrong: {seen.closes}"


def without_messages(events: list[str]) -> list[str]:
    """The other events."""
    return [event for event in events if event != "message"]


def _about_methods(seen: Seen) -> Iterator[str]:
    error = seen.errors[0] if seen.errors else None
    opened = "open" in seen.events
    if seen.raised["wait_open"] is not (None if opened else error):
        yield f"wait_open() raised {seen.raised['wait_open']!r}"
    for method in ("send", "reading", "recv", "iteration"):
        raised = seen.raised.get(method, "not called")
        if method == "iteration" and error is None and raised is None:
            continue
        if raised != "not called" and not _is_right(raised, error):
            yield f"{method} raised {raised!r}"


def _is_right(raised: object, error: BaseException | None) -> bool:
    """Whether a method raised what ended the connection; one that was never open is closed for that reason."""
    if isinstance(error, ConnectionClosed):
        return raised is error
    return type(raised) is ConnectionClosed and raised.__cause__ is error


def _about_time(expected: Expected, place: Place, seen: Seen) -> Iterator[str]:
    since = max(place.relay.struck_at or seen.began, seen.began)
    took = seen.ended - since
    if took > expected.within + TOLERANCE:
        yield f"it took {took:.2f} s, {expected.within:.2f} s were expected"
