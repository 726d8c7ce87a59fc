"""What is said in one cell: the messages, and the server, which says them and arms the fault on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha512

from matrix import BEFORE, HARMLESS, MESSAGES, Cell, Stage
from relay import Relay
from websockets.asyncio.server import ServerConnection

Message = str | bytes

#: What the client is to answer with close().
PLEASE_CLOSE = "please close"

#: With what a message begins that the client is to send back in fragments of so many characters.
IN_FRAGMENTS, FRAGMENT = "fragments", 60

#: With what the phases of a sweep begin, which counts bytes from the first one of the connection.
SWEEP = "sweep"


def _filler(size: int, seed: str) -> bytes:
    """Bytes without an order that compression could use."""
    return b"".join(sha512(f"{seed} {part}".encode()).digest() for part in range(size // 64 + 1))[:size]


def _text(seed: str, size: int = 60) -> str:
    return f"{seed} {_filler(size, seed).hex()}"[:size]


#: The message of each phase that has one; all others have the first.
OF_PHASE: dict[str, list[Message]] = {
    "text": [_text("text")],
    "binary": [_filler(60, "binary")],
    "large": [_filler(70_000, "large")],
    "fragments": [_text(IN_FRAGMENTS, 3 * FRAGMENT)],
    "two": [_text("one"), _text("two")],
}
for sweep in (f"{SWEEP}, our close", f"{SWEEP}, server's close"):
    OF_PHASE[sweep] = [_text("t", 12), _filler(12, "b"), "", _text(IN_FRAGMENTS, FRAGMENT + 12)]


def conversation(cell: Cell) -> list[Message]:
    """All that the server sends, in order."""
    warm_up = [_text(f"message {number}") for number in range(BEFORE)]
    of_phase = OF_PHASE.get(cell.stage.phase, OF_PHASE["text"])
    closing = [PLEASE_CLOSE] if is_closed_by_us(cell.stage) else []
    return [*warm_up, *of_phase, _text("last"), *closing]


def is_closed_by_us(stage: Stage) -> bool:
    """Whether the client closes, not the server."""
    return stage.phase.endswith("our close")


def is_fragmented(message: Message) -> bool:
    """Whether a message goes in fragments, both ways."""
    return isinstance(message, str) and message.startswith(IN_FRAGMENTS)


def fragments_of(message: str) -> list[str]:
    """A message in fragments."""
    return [message[start : start + FRAGMENT] for start in range(0, len(message), FRAGMENT)]


class Talk:
    """The server's side of a cell.

    ``echoes``       what the server has received
    ``request_end``  how many bytes the client had sent up to the end of its request
    ``boundaries``   how many the server had sent up to the end of its answer, and of each message on its way
    """

    def __init__(self, cell: Cell, relay: Relay) -> None:
        self._stage = cell.stage
        self._offset = cell.offset
        self._is_harmless = cell.fault in HARMLESS
        self._messages = conversation(cell)
        self._relay = relay
        self.echoes: list[Message] = []
        self.request_end = 0
        self.boundaries: list[int] = []

    def request_has_come(self) -> None:
        """The answer follows."""
        self.request_end = self._relay.up.taken
        if self._stage.phase == "response":
            self._relay.arm("down", self._offset)

    async def converse(self, connection: ServerConnection) -> None:
        """Say what there is to say, have it echoed, and close."""
        self._mark()
        for number, message in enumerate(self._messages):
            if number == BEFORE:
                await self._begin_stage(connection)
            if message == PLEASE_CLOSE:
                self._arm_for_our_close()
            await connection.send(self._fragments(connection, str(message)) if is_fragmented(message) else message)
            self._mark()
            if self._stage.phase == "two" and number == BEFORE:
                self._relay.arm("down", self._offset)
            elif message != PLEASE_CLOSE:
                while len(self.echoes) <= number:
                    self.echoes.append(await connection.recv())
        await self._close(connection)

    def _mark(self) -> None:
        if self._relay.drain():
            self.boundaries.append(self._relay.down.taken)

    async def _begin_stage(self, connection: ServerConnection) -> None:
        phase, direction, place, *_ = self._stage
        if phase == "idle":
            self._relay.strike(direction)
            if not self._is_harmless:
                await connection.wait_closed()
        elif phase in MESSAGES and (place != "between" or direction == "up"):
            self._relay.arm(direction, self._offset)

    async def _fragments(self, connection: ServerConnection, message: str) -> AsyncIterator[str]:
        """A message in fragments; a ping within, unless the pong would be what the fault strikes."""
        first, *others = fragments_of(message)
        yield first
        phase, direction, place, *_ = self._stage
        if (phase, direction) != ("fragments", "up"):
            await connection.ping()
        if (phase, direction, place) == ("fragments", "down", "between"):
            self._relay.arm("down", self._offset)
        for fragment in others:
            yield fragment

    def _arm_for_our_close(self) -> None:
        """The client's Close frame is what comes next from it, and the server's answer follows that."""
        phase, direction, *_ = self._stage
        if phase == "our close" and direction == "up":
            self._relay.arm("up", self._offset)
        elif phase == "our close":
            self._relay.arm_answer("down", self._offset)

    async def _close(self, connection: ServerConnection) -> None:
        if is_closed_by_us(self._stage):
            await connection.wait_closed()
            return
        if self._stage.phase == "server's close":
            self._relay.arm(self._stage.direction, self._offset)
        await connection.close(1000, "done")
