"""What a WebSocket hides: its parts, put together and started.

    start() ──> Opening, which connects at once ─┬─> Session ──launch()──> loop thread
                Bridge, Callbacks, Sifter ───────┘
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from .._base.late import importing
from .._base.log import Trace
from .._protocol.url import URL
from .._threads import the_loop
from ..options import Options
from . import sockets
from .bridge import Bridge
from .callbacks import Callbacks
from .handlers import check_methods
from .inbox import Sifter

if TYPE_CHECKING:
    from .._network.proxies import Proxy
    from .._threads.loop_thread import Command
    from ..websocket import WebSocket
    from .opening import Opening
    from .session import Session
    from .supervisor import Supervisor

# For sockets of these classes, what makes the Sifter (`bridge.py`) of each.
sifters: list[tuple[type, Callable[[Any, Bridge], Sifter]]] = []


class Parts:
    """All that a WebSocket hides."""

    def __init__(self, empty_handlers: dict[str, Any]) -> None:
        self._empty_handlers = empty_handlers
        self.init_depth = 0
        self.started = False
        self.url: URL
        self.options: Options
        self.bridge: Bridge
        self.callbacks: Callbacks
        self.sifter: Sifter  # only of the classes in `sifters`
        self.supervisor: Supervisor  # only of a socket that comes back
        self.binary_type = "blob"

    def enter_init(self) -> None:
        """An __init__ of the socket's class, or of a base, begins."""
        self.init_depth += 1
        if self.started:
            self.callbacks.owner.enter_init()

    def leave_init(self) -> None:
        """It has ended."""
        self.init_depth -= 1
        if self.started:
            self.callbacks.init_left()

    def goes_to(self, url: URL) -> None:
        """The next connection leads there."""
        self.url = url

    def take_binary_as(self, binary_type: str) -> None:
        """`binaryType` was assigned."""
        self.binary_type = binary_type

    def check_may_start(self, owner: WebSocket) -> None:
        """Raise RuntimeError the second time, and TypeError if a method cannot be the handler that its name says."""
        if self.started:
            raise RuntimeError("this WebSocket is open already: __init__ must not be called a second time")
        check_methods(owner, self._empty_handlers)

    def start(self, owner: WebSocket, url: URL, protocols: tuple[str, ...], options: Options) -> None:
        """Begin to connect: first of all what the server takes time for."""
        opening_class, session_class = _loop_side()
        proxy = options.proxy_for(url)
        make_default_tls_context(url, proxy, options)
        the_loop.current()  # before anything is begun or taken over: it may fail
        trace = Trace()
        opening = opening_class(url, protocols, options, trace)
        opening.begin(proxy)
        try:
            self.prepare(owner, Bridge(options, trace), url, options)
            session = session_class(self.bridge, self.callbacks, opening, options)
        except BaseException:
            opening.abandon()
            raise
        self.launch(owner, session, session.run)

    def prepare(self, owner: WebSocket, bridge: Bridge, url: URL, options: Options) -> None:
        """Have everything but a session."""
        self.url, self.options, self.bridge = url, options, bridge
        for kind, make in sifters:
            if isinstance(owner, kind):
                self.sifter = make(owner, bridge)
                bridge.sift_by(self.sifter)
        make_callbacks: Callable[..., Callbacks] = Callbacks
        if "ipykernel" in sys.modules:
            from .._notebook import record  # nobody else needs it

            make_callbacks = record.attend(bridge, url, options)
        self.callbacks = make_callbacks(owner, bridge, url.origin, options.callbacks, self._empty_handlers)
        bridge.set_up(self.callbacks)

    def launch(self, owner: WebSocket, session: Session, run: Command) -> None:
        """Have `run` live the socket's life on the loop thread, of which `session` is the first connection's."""
        self.bridge.begin_with(session)  # first: a signal handler may close all sockets
        for _ in range(self.init_depth):
            self.callbacks.owner.enter_init()
        self.started = True
        sockets.register(owner, self)
        self.bridge.start(run)

    def supervise(self, owner: WebSocket, never: Session, supervisor: Supervisor) -> None:
        """Have `supervisor` live the life of a socket that comes back; ``never`` stands for a connection until then."""
        self.supervisor = supervisor
        self.launch(owner, never, supervisor.run)

    @property
    def session(self) -> Session:
        """The connection's life in the loop: the present one's, or the last one's."""
        return cast("Session", self.bridge.session)

    def ended(self) -> bool:
        return not self.started or self.bridge.life.ending is not None

    def wait_settled(self, timeout: float | None) -> bool:
        """Wait until the connection has ended and its handlers have heard everything."""
        return self.bridge.wait(lambda: self.bridge.life.ending is not None and self.callbacks.settled(), timeout)

    def check_may_wait(self, what: str, *, in_callback: bool) -> None:
        """Raise RuntimeError where waiting would be waiting for oneself."""
        if the_loop.is_loop_thread():
            raise RuntimeError(f"{what} would block the loop thread, which all connections share")
        if not in_callback and self.callbacks.is_current():
            raise RuntimeError(f"{what} in a callback of the same socket would wait for that very callback to return")

    if not TYPE_CHECKING:  # for a type checker a name that is not above is a mistake

        def __getattr__(self, name):
            # Only reached for what start() has not set yet.
            raise RuntimeError(
                f"this WebSocket was never opened: its __init__ did not call super().__init__(url) ({name})"
            )


@functools.cache
def _loop_side() -> tuple[type[Opening], type[Session]]:
    """Imported with the first connection: see _threads/the_loop.py."""
    with importing():
        from .opening import Opening
        from .session import Session

    return Opening, Session


def make_default_tls_context(url: URL, proxy: Proxy | None, options: Options) -> None:
    """Make it if it is needed: that is slow the first time, and on the loop thread others would feel it."""
    if options.ssl is None and (url.secure or (proxy is not None and proxy.scheme == "https")):
        with importing():
            from .._network.tls import default_tls_context

        default_tls_context()
