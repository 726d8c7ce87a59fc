"""What the clients are asked to do with default options: texts that differ, as a blocking caller exchanges them.

Jobs as those of _jobs.py. Each text must come back as it was sent.
"""

from __future__ import annotations

import json
from itertools import count, cycle
from time import perf_counter
from typing import Any

from _jobs import Link
from _messages import TICK_SIZE, Message, ticks


def check_same(message: Message, expected: str) -> None:
    if message != expected:
        raise ValueError(f"{message[:200]!r} came instead of {expected[:200]!r}")


class EchoTexts:
    """Send `in_flight` of the texts, receive them back, and again with the next ones."""

    def __init__(self, link: Link, texts: list[str], in_flight: int) -> None:
        self.link, self.close = link, link.close
        self.bursts, self.in_flight = bursts_of(texts, in_flight), in_flight

    def round(self, seconds: float) -> int:
        (send, recv, _), count = self.link, 0
        until = perf_counter() + seconds
        while perf_counter() < until:
            burst = next(self.bursts)
            for text in burst:
                send(text)
            for text in burst:
                if (reply := recv()) != text:
                    check_same(reply, text)
            count += self.in_flight
        return count


def bursts_of(texts: list[str], in_flight: int) -> cycle[list[str]]:
    """Cut them in pieces to be sent together, and go round."""
    return cycle([texts[at : at + in_flight] for at in range(0, len(texts) - in_flight + 1, in_flight)])


class ReceiveTicks:
    """Have the server send its ticks one by one, and receive so many."""

    def __init__(self, link: Link) -> None:
        self.link, self.close = link, link.close

    def round(self, messages: float) -> int:
        number, recv = int(messages), self.link.recv
        self.link.send(str(number))
        message: Message = ""
        for _ in range(number):
            if len(message := recv()) != TICK_SIZE:
                check_same(message, "a tick")
        check_same(message, last_tick(number))
        return number


def last_tick(number: int) -> str:
    """The last of so many ticks: by it we know that none is missing."""
    return ticks()[(number - 1) % len(ticks())]


class Tagged:
    """Queries by hand: each tick goes with a tag, as an object made into JSON, and the answer must have the tag."""

    def __init__(self, link: Link) -> None:
        self.link, self.close = link, link.close
        self.requests = cycle([json.loads(tick) for tick in ticks()])
        self.tags = count(1)

    def round(self, seconds: float) -> int:
        count = 0
        until = perf_counter() + seconds
        while perf_counter() < until:
            self.ask(next(self.requests))
            count += 1
        return count

    def ask(self, request: dict[str, Any]) -> None:
        send, recv, _ = self.link
        tag = next(self.tags)
        send(json.dumps({**request, "id": tag}))
        answer = json.loads(recv())
        if answer["id"] != tag:
            raise ValueError(f"the answer to {answer['id']} came instead of that to {tag}")
        check_answer(answer, request)


class Queried(Tagged):
    """The same with QueryMixin; the link's send() is query()."""

    def ask(self, request: dict[str, Any]) -> None:
        query: Any = self.link.send
        check_answer(query(request).result(), request)


def check_answer(answer: dict[str, Any], request: dict[str, Any]) -> None:
    if answer["n"] != request["n"]:
        raise ValueError(f"{answer} is no answer to {request}")
