"""The same jobs for a client that hands each message to a handler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import perf_counter

from _client import Handler
from _jobs import Link, check_size
from _messages import TICK_SIZE, Message
from _text_jobs import bursts_of, check_same, last_tick

PATIENCE = 25.0
"""Seconds that a round with callbacks may take beyond its own length: less than what compare.py gives a client."""


class CallbackEcho:
    """Send the next query in onmessage, when the answer to the last one has come. All messages have this `size`."""

    def __init__(self, connect: Callable[[Handler], Link], messages: Iterator[Message], size: int) -> None:
        self._messages, self._size = messages, size
        self._done = threading.Event()
        self.seconds: list[float] = []  # of each query of the last round
        self._send, _, self.close = connect(self._received)

    def round(self, seconds: float) -> int:
        self._done.clear()
        self.seconds = []
        self._sent = perf_counter()
        self._until = self._sent + seconds
        self._send(next(self._messages))
        _wait(self._done, seconds)
        return len(self.seconds)

    def _received(self, message: Message) -> None:
        if len(message) != self._size:
            check_size(message, self._size)  # the library logs it, and the round times out
        now = perf_counter()
        self.seconds.append(now - self._sent)
        self._sent = now
        if now < self._until:
            self._send(next(self._messages))
        else:
            self._done.set()


class CallbackReceiveFlood:
    """Count what the server sends as fast as it can in onmessage."""

    def __init__(self, connect: Callable[[Handler], Link], size: int) -> None:
        self._size = size
        self._left = 0
        self._done = threading.Event()
        self._send, _, self.close = connect(self._received)

    def round(self, messages: float) -> int:
        number = self._left = int(messages)
        self._done.clear()
        self._send(str(number))
        _wait(self._done, 0)
        return number

    def _received(self, message: Message) -> None:
        if len(message) != self._size:
            check_size(message, self._size)
        self._left -= 1
        if not self._left:
            self._last = message
            self._done.set()


class CallbackReceiveTicks(CallbackReceiveFlood):
    """Have the server send its ticks one by one, and count so many in onmessage."""

    def __init__(self, connect: Callable[[Handler], Link]) -> None:
        super().__init__(connect, TICK_SIZE)

    def round(self, messages: float) -> int:
        number = super().round(messages)
        check_same(self._last, last_tick(number))
        return number


class CallbackEchoTexts:
    """Send `in_flight` of the texts, and the next ones in onmessage, when all of them have come back."""

    def __init__(self, connect: Callable[[Handler], Link], texts: list[str], in_flight: int) -> None:
        self._bursts, self._in_flight = bursts_of(texts, in_flight), in_flight
        self._done = threading.Event()
        self._send, _, self.close = connect(self._received)

    def round(self, seconds: float) -> int:
        self._done.clear()
        self._count = 0
        self._until = perf_counter() + seconds
        self._next_burst()
        _wait(self._done, seconds)
        return self._count

    def _next_burst(self) -> None:
        burst = next(self._bursts)
        self._awaited = iter(burst)
        self._left = self._in_flight
        send = self._send
        for text in burst:
            send(text)

    def _received(self, message: Message) -> None:
        if message != (expected := next(self._awaited)):
            check_same(message, expected)  # the library logs it, and the round times out
        self._left -= 1
        if self._left:
            return
        self._count += self._in_flight
        if perf_counter() < self._until:
            self._next_burst()
        else:
            self._done.set()


def _wait(done: threading.Event, seconds: float) -> None:
    if not done.wait(seconds + PATIENCE):
        raise TimeoutError("the messages did not all come")
