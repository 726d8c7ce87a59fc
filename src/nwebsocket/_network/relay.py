"""A TLS stream passed on through a pair of sockets: TLS to a server inside of TLS to a proxy.

    Transport ── socket ═══ socket ── two tasks ── Transport with TLS ── proxy

So a connection through an https:// proxy is a connection like any other. Runs in the loop thread only.
"""

from __future__ import annotations

import socket

from .._threads.safe_curio import Task, disable_cancellation, spawn
from .tcp import known
from .transport import Transport


async def relayed(far: Transport) -> Transport:
    """Return a transport without TLS that carries what ``far`` carries, and closes it when it is closed itself."""
    ours, theirs = socket.socketpair()
    transport = _RelayedTransport(known(ours), Transport(known(theirs)), far)
    await transport.start()
    return transport


class _RelayedTransport(Transport):
    def __init__(self, sock: socket.socket, near: Transport, far: Transport) -> None:
        super().__init__(sock)
        self._near = near
        self._far = far
        self._tasks: list[Task] = []

    async def start(self) -> None:
        """Begin to pass on; to be called once."""
        for source, sink in ((self._near, self._far), (self._far, self._near)):
            self._tasks.append(await spawn(_pass_on, source, sink, daemon=True))

    async def close(self) -> None:
        await super().close()
        await self._stop()

    async def abort(self) -> None:
        await super().abort()
        await self._stop()

    def close_inherited(self) -> None:
        for transport in (self._near, self._far):
            transport.close_inherited()
        super().close_inherited()

    async def _stop(self) -> None:
        async with disable_cancellation():
            for task in self._tasks:
                await task.cancel()
            await self._near.close()
            await self._far.close()


async def _pass_on(source: Transport, sink: Transport) -> None:
    """Pass on what comes from ``source`` to its end; an error ends it, too."""
    try:
        while data := await source.receive():
            sink.send(data)
            while not sink.flush():
                await sink.wait_writable()
    except OSError:
        pass
    sink.shutdown()
