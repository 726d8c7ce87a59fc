"""What lies between the client and the servers: python -m soaking.relay LIFE PORT:TARGET...

Each connection gets a fate, drawn at random, that comes over it after LIFE seconds or so: it is cut or reset after some
more bytes, goes silent for some time, or becomes slow; a few never get through. When standard input ends, nothing more
happens to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from asyncio import StreamReader, StreamWriter

from soaking.plan import READY, Reporter

FATES = ("none", "cut", "reset", "cut within", "silent", "slow", "slow")
NEVER_THROUGH = 0.03


class Relay:
    """All connections."""

    def __init__(self, life: float) -> None:
        self._life = life
        self.calm = asyncio.Event()
        """Nothing happens any more."""

    async def serve(self, port: int, target: int) -> None:
        async def accept(reader: StreamReader, writer: StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await self._relay(target, reader, writer)
            writer.transport.abort()

        await asyncio.start_server(accept, "127.0.0.1", port, limit=2**16, backlog=512)

    async def _relay(self, target: int, reader: StreamReader, writer: StreamWriter) -> None:
        if random.random() < NEVER_THROUGH and not self.calm.is_set():
            await self._pause(random.choice((0.0, 0.0, 4 * self._life)))
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target, limit=2**16)
        fate = Fate(random.choice(FATES), self)
        pumps = {
            asyncio.create_task(fate.pump(reader, far_writer)),
            asyncio.create_task(fate.pump(far_reader, writer)),
        }
        comes = asyncio.create_task(fate.come(random.expovariate(1 / self._life)))
        try:
            await asyncio.wait({*pumps, fate.cut}, return_when=asyncio.FIRST_COMPLETED)
            if not fate.cut.done():
                await asyncio.wait({*pumps, fate.cut}, return_when=asyncio.FIRST_COMPLETED, timeout=2)
        finally:
            for task in (*pumps, comes):
                task.cancel()
            for end in (writer, far_writer):
                end_connection(end, by_reset=fate.kind == "reset")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.calm.wait(), seconds)

    async def pause(self, seconds: float) -> None:
        """Wait; not when all is calm."""
        await self._pause(seconds)


class Fate:
    """What becomes of one connection."""

    def __init__(self, kind: str, relay: Relay) -> None:
        self.kind = kind
        self.cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._relay = relay
        self._bytes_left: int | None = None
        self._bytes_per_second = 0
        self._speaks = asyncio.Event()
        self._speaks.set()

    async def come(self, seconds: float) -> None:
        """Have it happen after so long."""
        relay = self._relay
        await relay.pause(seconds)
        if relay.calm.is_set():
            return
        if self.kind in ("cut", "reset"):
            self._end()
        elif self.kind == "cut within":
            self._bytes_left = random.randrange(20_000)
        elif self.kind == "silent":
            self._speaks.clear()
            await relay.pause(random.choice((1, 3, 30)))
            self._speaks.set()
        elif self.kind == "slow":
            self._bytes_per_second = random.choice((2_000, 20_000))
            await relay.pause(10)
            self._bytes_per_second = 0

    def _end(self) -> None:
        if not self.cut.done():
            self.cut.set_result(None)

    async def pump(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Move what comes from one end to the other."""
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16 if not self._bytes_per_second else 1024):
                await self._speaks.wait()
                if self._bytes_left is not None:
                    data = data[: self._bytes_left]
                    self._bytes_left -= len(data)
                writer.write(data)
                await writer.drain()
                if self._bytes_left == 0:
                    self._end()
                    return
                if self._bytes_per_second:
                    await self._relay.pause(len(data) / self._bytes_per_second)
            if writer.can_write_eof():
                writer.write_eof()


def end_connection(writer: StreamWriter, *, by_reset: bool) -> None:
    """End it with what was written, or with a reset that overtakes that."""
    if not by_reset:
        writer.close()
        return
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main(life: float, routes: list[str]) -> None:
    relay, reporter = Relay(life), Reporter()
    for route in routes:
        port, target = map(int, route.split(":"))
        await relay.serve(port, target)
    reporter.note(READY)
    reporter.flush()
    await asyncio.to_thread(sys.stdin.read)
    relay.calm.set()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:]))
