"""DNS and TCP: from a host name to a connected socket, by Happy Eyeballs (RFC 8305).

Runs in the loop thread only, but for begin_connecting().
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any

from .._threads.safe_curio import (
    Descriptor,
    Event,
    Task,
    curio,
    disable_cancellation,
    in_thread,
    sleep,
    spawn,
    wait_writable,
)
from ..exceptions import ConnectionFailed

Address = tuple[int, Any]
"""An address family and a socket address of that family."""

Attempt = tuple[socket.socket, int]
"""A socket that has begun to connect, and the number of the error so far, which may be that it is under way."""

ATTEMPT_DELAY = 0.25  # seconds; RFC 8305 section 8, "Connection Attempt Delay"
UNIX_DELAY = 0.02  # seconds until the next attempt at a Unix socket whose queue is full
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK)


async def connect_host(host: str, port: int, begun: Attempt | None = None) -> socket.socket:
    """``begun``: what begin_connecting() has returned for the same host and port; it is used or closed."""
    addresses = await resolve(host, port) if begun is None else [(socket.AF_INET, (host, port))]
    try:
        return await connect_any(addresses, begun)
    except _AllFailed as failed:
        tried = "; ".join(f"{sockaddr[0]}: {error.strerror or error}" for (_, sockaddr), error in failed.attempts)
        raise ConnectionFailed(f"cannot connect to {host} port {port} ({tried})") from failed.attempts[-1][1]


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of ``host``, the best first. Raises ConnectionFailed."""
    with suppress(OSError):  # none of the usual four numbers, with which getaddrinfo takes far longer
        socket.inet_pton(socket.AF_INET, host)
        return [(socket.AF_INET, (host, port))]
    # Bytes, because a str would go through the "idna" codec, which raises UnicodeError for a label over 63 bytes.
    lookup = functools.partial(socket.getaddrinfo, host.encode("ascii"), port, type=socket.SOCK_STREAM)
    with suppress(socket.gaierror):  # a name, not an address
        return _addresses(lookup(flags=socket.AI_NUMERICHOST))
    try:
        return _addresses(await in_thread(lookup, "nwebsocket-dns"))
    except socket.gaierror as error:
        raise ConnectionFailed(f"cannot find the address of host {host!r}: {error.strerror}") from error
    except RuntimeError as error:  # no more threads
        raise ConnectionFailed(f"cannot look for the address of host {host!r}: {error}") from error


def _addresses(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _interleave(addresses: Sequence[Address]) -> list[Address]:
    """Alternate the address families, beginning with the first one's (RFC 8305 section 4)."""
    by_family: dict[int, list[Address]] = {}
    for address in addresses:
        by_family.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*by_family.values())) if address is not None]


class _AllFailed(Exception):
    """No address could be connected; ``attempts`` has each with its error, in the order in which they failed."""

    def __init__(self, attempts: list[tuple[Address, OSError]]) -> None:
        super().__init__(attempts)
        self.attempts = attempts


async def connect_any(addresses: Sequence[Address], begun: Attempt | None = None) -> socket.socket:
    """Connect to the first of ``addresses`` that answers (RFC 8305 section 5), or raise _AllFailed."""
    if len(addresses) == 1:
        return await _connect_only(addresses[0], begun)
    race = _Race()
    try:
        await race.run(deque(_interleave(addresses)))
    except BaseException:
        if race.winner is not None:
            await close_socket(race.winner)
        raise
    if race.winner is None:
        raise _AllFailed(race.failures)
    return race.winner


async def _connect_only(address: Address, begun: Attempt | None) -> socket.socket:
    """Without tasks and timers, which take longer than connecting within the machine does."""
    try:
        return await _finish(*(begun or _begin(*address)))
    except OSError as error:
        raise _AllFailed([(address, error)]) from error


class _Race:
    """Connection attempts, each in its own task, which closes its socket unless it wins."""

    def __init__(self) -> None:
        self.winner: socket.socket | None = None
        self.failures: list[tuple[Address, OSError]] = []
        self._progress = Event()  # an attempt has ended, or the next one is due
        self._tasks: list[Task] = []

    async def run(self, waiting: deque[Address]) -> None:
        try:
            attempts = len(waiting)
            while self.winner is None and len(self.failures) < attempts:
                self._progress.clear()
                if waiting:
                    await self._spawn(self._attempt, waiting.popleft())
                timer = await self._spawn(self._wait_turn) if waiting else None
                await self._progress.wait()
                if timer is not None:
                    await timer.cancel()
        finally:
            async with disable_cancellation():
                for task in self._tasks:
                    await task.cancel()

    async def _spawn(self, function: Callable[..., Any], *args: Any) -> Task:
        task = await spawn(function, *args)
        self._tasks.append(task)
        return task

    async def _attempt(self, address: Address) -> None:
        try:
            sock = await _connect(*address)
        except OSError as error:
            self.failures.append((address, error))
        else:
            if self.winner is None:
                self.winner = sock
            else:
                await close_socket(sock)
        await self._progress.set()

    async def _wait_turn(self) -> None:
        # Not ignore_after(): where the loop was busy past its deadline it logs "took longer than an enclosing timeout".
        await sleep(ATTEMPT_DELAY)
        await self._progress.set()


def begin_connecting(host: str, port: int) -> Attempt | None:
    """Begin to connect to an address, without waiting for anything; None for a name, or if it cannot be begun.

    From any thread: the server may be at it while the loop thread is still waking up.
    """
    try:
        socket.inet_pton(socket.AF_INET, host)
        return _begin(socket.AF_INET, (host, port))
    except OSError:
        return None


def take_over(sock: socket.socket) -> Attempt:
    """The attempt that a socket stands for that is connected already. The caller's object is left without it."""
    return known(socket.socket(fileno=sock.detach())), 0


async def connect_unix(path: str | bytes) -> socket.socket:
    """Connect to the Unix socket at ``path``, or raise ConnectionFailed."""
    try:
        while True:
            with suppress(BlockingIOError):  # its queue is full: unlike with TCP, nothing tells when there is room
                return await _connect(socket.AF_UNIX, path)
            await sleep(UNIX_DELAY)
    except OSError as error:
        raise ConnectionFailed(f"cannot connect to the Unix socket {path!r}: {error.strerror or error}") from error


def _begin(family: int, sockaddr: Any) -> Attempt:
    sock = known(socket.socket(family, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        if family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == getattr(socket, "AF_UNIX", None):
            sock.connect(sockaddr)
            return sock, 0
        return sock, sock.connect_ex(sockaddr)
    except BaseException:
        sock.close()
        raise


async def _connect(family: int, sockaddr: Any) -> socket.socket:
    return await _finish(*_begin(family, sockaddr))


async def _finish(sock: socket.socket, error: int) -> socket.socket:
    """Return the socket of an attempt once it is connected; else close it, and raise OSError."""
    try:
        if error in _PENDING and is_connected(sock):
            error = 0
        elif error in _PENDING:
            await wait_writable(Descriptor(sock.fileno()))
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        await close_socket(sock)
        raise
    return sock


def is_connected(sock: socket.socket) -> bool:
    """Whether there was nothing to wait for: a server on the same machine answers within connect() itself."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def close_socket(sock: socket.socket) -> None:
    # After a task has waited for a socket, curio's kernel leaves it registered until the task waits for something else
    # or ends, and would then unregister a closed descriptor, whose number may be another socket's by now. This trap
    # ends the calling task's registration first, as curio's own Socket.close() does; it neither waits nor raises.
    await curio.traps._io_release(sock)
    sock.close()


# ---- forks

_made: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def known(sock: socket.socket) -> socket.socket:
    """Have the socket closed in a child, wherever it is by then: else the server would not see the parent's end."""
    _made.add(sock)
    return sock


def _after_fork_in_child() -> None:
    for sock in list(_made):
        sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
