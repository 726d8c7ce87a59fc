"""What the clients are asked to do, as a blocking caller does it: echoes, floods, connections.

A job is made with its connections open. ``round(amount)`` works for `amount` seconds, or through `amount` messages if
it is told so below, and returns how many messages were exchanged; whoever calls it takes the time. Every message
received is checked, its length at least, because a client that loses or cuts messages has no speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from _messages import Message


class Job(Protocol):
    def round(self, amount: float) -> int: ...
    def close(self) -> object: ...


class Link(NamedTuple):
    """An open connection: its client's own bound methods, so that the measurement adds no call to theirs."""

    send: Callable[[Any], object]
    recv: Callable[[], Message]
    close: Callable[[], object]


def check_size(message: Message, size: int) -> None:
    if len(message) != size:
        raise ValueError(f"a message of {len(message)} characters or bytes came back instead of one of {size}")


def check_acknowledgement(message: Message, number: int, size: int) -> None:
    if message not in (f"{number} {number * size}", f"{number} {number * size}".encode()):
        raise ValueError(f"the server counted {message!r}, not {number} messages of {size} bytes")


class Echo:
    """Send `in_flight` messages, receive as many, and again."""

    def __init__(self, link: Link, message: Message, in_flight: int) -> None:
        self.link, self.message, self.in_flight = link, message, in_flight
        self.close = link.close

    def round(self, seconds: float) -> int:
        until = perf_counter() + seconds
        count = 0
        while perf_counter() < until:
            self.burst()
            count += self.in_flight
        return count

    def burst(self) -> None:
        (send, recv, _), message, size = self.link, self.message, len(self.message)
        for _ in range(self.in_flight):
            send(message)
        for _ in range(self.in_flight):
            if len(reply := recv()) != size:
                check_size(reply, size)


class Exchange(Echo):
    """Echo so many messages, not for so long."""

    def round(self, messages: float) -> int:
        bursts = int(messages) // self.in_flight
        for _ in range(bursts):
            self.burst()
        return bursts * self.in_flight


class Spread:
    """Echo so many messages one at a time, each on the next of several connections."""

    def __init__(self, links: list[Link], message: Message) -> None:
        self._echoes = [Echo(link, message, 1) for link in links]

    def round(self, messages: float) -> int:
        for _, echo in zip(range(int(messages)), itertools.cycle(self._echoes), strict=False):
            echo.burst()
        return int(messages)

    def close(self) -> None:
        for echo in self._echoes:
            echo.close()


class ReceiveFlood:
    """Have the server send as fast as it can, and receive it all."""

    def __init__(self, link: Link, size: int) -> None:
        self.link, self.size = link, size
        self.close = link.close

    def round(self, messages: float) -> int:
        number, recv, size = int(messages), self.link.recv, self.size
        self.link.send(str(number))
        for _ in range(number):
            if len(message := recv()) != size:
                check_size(message, size)
        return number


class SendFlood:
    """Send as fast as it goes, until the server has acknowledged the last."""

    def __init__(self, link: Link, message: Message) -> None:
        self.link, self.message = link, message
        self.close = link.close

    def round(self, messages: float) -> int:
        number, send, message = int(messages), self.link.send, self.message
        send(str(number))
        for _ in range(number):
            send(message)
        check_acknowledgement(self.link.recv(), number, len(message))
        return number


class Connect:
    """Connect and close, close handshake included."""

    def __init__(self, connect: Callable[[], Link]) -> None:
        self._connect = connect

    def round(self, seconds: float) -> int:
        until = perf_counter() + seconds
        count = 0
        while perf_counter() < until:
            self._connect().close()
            count += 1
        return count

    def close(self) -> None:
        """Nothing is left open."""
