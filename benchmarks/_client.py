"""What a client of the comparison is, and all that follows from a blocking send and receive."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, ClassVar

from _jobs import Connect, Echo, Exchange, Job, Link, ReceiveFlood, SendFlood, Spread
from _messages import TEXTS, filler
from _text_jobs import EchoTexts, ReceiveTicks, Tagged

Handler = Callable[[Any], object]


class Client:
    """A client and what it can do.

    ``ca``          the file of the authority that has signed the server's certificate; None: one that the system knows
    ``offers``      whether it offers to compress (permessage-deflate), with its default options
    ``extensions``  what the server has accepted at the last connection with default options
    """

    package: ClassVar[str] = "nwebsocket"
    offers: ClassVar[bool] = False

    def __init__(self, ca: str | None) -> None:
        self.ca = ca
        self.extensions = ""

    def version(self) -> str:
        return version(self.package)

    def file(self) -> str:
        """Where it was imported from, where several versions are compared."""
        return ""


class Blocking(Client):
    """A client with a blocking send and a blocking receive: all jobs follow from `open` and `open_default`."""

    def open(self, url: str, kind: str) -> Link:
        """Connect without compression; `kind` is what will be sent and received, "text" or "bytes"."""
        raise NotImplementedError

    def open_default(self, url: str) -> Link:
        """Connect with no option at all, for texts, and set `extensions`."""
        raise NotImplementedError

    def tls(self, url: str) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.ca) if url.startswith("wss:") else None

    # --- With default options

    def echo_texts(self, url: str, texts: str, in_flight: int) -> Job:
        return EchoTexts(self.open_default(url), TEXTS[texts](), in_flight)

    def receive_ticks(self, url: str) -> Job:
        return ReceiveTicks(self.open_default(url))

    def tagged(self, url: str) -> Job:
        return Tagged(self.open_default(url))

    # --- Without compression

    def echo(self, url: str, size: int, kind: str, in_flight: int) -> Job:
        return Echo(self.open(url, kind), filler(size, kind), in_flight)

    def exchange(self, url: str, size: int, in_flight: int) -> Job:
        return Exchange(self.open(url, "text"), filler(size, "text"), in_flight)

    def spread(self, url: str, size: int, connections: int) -> Job:
        return Spread([self.open(url, "text") for _ in range(connections)], filler(size, "text"))

    def receive_flood(self, url: str, size: int) -> Job:
        return ReceiveFlood(self.open(url, "text"), size)

    def send_flood(self, url: str, size: int) -> Job:
        return SendFlood(self.open(url, "text"), filler(size, "text"))

    def connect(self, url: str) -> Job:
        return Connect(lambda: self.open(url, "text"))

    def idle(self, url: str, number: int) -> list[Any]:
        """Open so many connections (each counts with its Link, about 0.3 KiB)."""
        return [self.open(url, "text") for _ in range(number)]
