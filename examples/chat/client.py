"""The chat for Python: from a prompt or a notebook,

    from client import ChatClient

    chat = ChatClient("ws://127.0.0.1:8000/ws", "Ada", token).wait_open(10)
    chat.join("lobby")
    chat.post("hello")
    chat.messages               # what has been heard so far: ours, too, a moment after it was posted

or as a program, which sends what you type: python examples/chat/client.py --help
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nwebsocket import CloseEvent, InvalidStateError, QueryMixin, ReconnectingWebSocket, WebSocketError

URL = "ws://127.0.0.1:8000/ws"
TOKEN_FILE = Path(__file__).with_name(".token")  # the server makes it


class Message(NamedTuple):
    room: str
    name: str
    text: str
    time: float  # seconds since 1970


class ChatError(Exception):
    """The server has refused a request."""


class ChatClient(QueryMixin, ReconnectingWebSocket):
    """Takes part in a chat. It comes back by itself, into its rooms, and hears what was said meanwhile.

    ``messages``  all that was said in its rooms, its own messages, too
    ``rooms``     those it has joined
    """

    patience = 30.0
    """Seconds to wait for an answer of the server: it may be restarting."""

    def __init__(self, url: str, name: str, token: str) -> None:
        super().__init__(url, headers={"Authorization": f"Bearer {token}"})
        self.name = name
        self.rooms: list[str] = []
        self.messages: list[Message] = []

    def join(self, room: str) -> list[str]:
        """Enter a room; return the names of those who are there."""
        if room not in self.rooms:
            self.rooms.append(room)
        try:
            names: list[str] = self.ask(type="join", room=room, after=self.last_time(room))["names"]
        except ChatError:
            self.rooms.remove(room)
            raise
        return names

    def post(self, text: str, room: str | None = None) -> None:
        """Say something, in the room joined last or in another; return when all who are there are being told."""
        self.ask(type="post", room=room or self.rooms[-1], text=text, key=secrets.token_hex(8))

    def who(self, room: str | None = None) -> list[str]:
        """The names of those who are in a room."""
        names: list[str] = self.ask(type="who", room=room or self.rooms[-1])["names"]
        return names

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer. When the connection is lost, it is asked again on the next one."""
        answer: dict[str, Any] = self.query(request, self.patience, retry=True).result()
        return answer

    def read_reply(self, message: str | bytes) -> tuple[int, Any] | None:
        """Have result() raise what the server answers with "error"."""
        reply = super().read_reply(message)
        if reply and reply[1]["type"] == "error":
            return reply[0], ChatError(reply[1]["text"])
        return reply

    def last_time(self, room: str) -> float:
        """When the last message that we know of was said."""
        return max((message.time for message in self.messages if message.room == room), default=0.0)

    def onopen(self) -> None:
        """At each new connection: say who we are, and enter our rooms, before anything else is sent."""
        requests = [{"type": "join", "room": room, "after": self.last_time(room)} for room in self.rooms]
        with suppress(InvalidStateError):  # lost again already: the next connection will hear it
            for request in [{"type": "hello", "name": self.name}, *requests]:
                self.send(json.dumps(request), keep=False)

    def onmessage(self, message: str) -> None:
        """What is no answer: the room talks."""
        event = json.loads(message)
        if event["type"] == "room_message":
            self.heard(Message(event["room"], event["name"], event["text"], event["time"]))

    def heard(self, message: Message) -> None:
        """Somebody, perhaps we, said something. To be overridden."""
        self.messages.append(message)


def plain(text: str) -> str:
    """What somebody else has written, without what a terminal obeys: escape sequences, line breaks, bidi controls."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


class Terminal(ChatClient):
    """Prints what it hears."""

    def say(self, text: str) -> None:
        try:
            self.post(text)
        except ChatError as error:
            print(f"-- not posted: {plain(str(error))}")

    def heard(self, message: Message) -> None:
        super().heard(message)
        if message.name != self.name:
            print(f"{plain(message.name)}: {plain(message.text)}")

    def onopen(self) -> None:
        super().onopen()
        print("-- connected")

    def onerror(self, error: Exception) -> None:
        print(f"-- {plain(str(error))}")

    def onclose(self, event: CloseEvent) -> None:
        if event.retry_in is not None:
            print(f"-- disconnected ({event.code}), next attempt in {event.retry_in:.1f} s")
        elif event.reason:
            print(f"-- the server has ended it: {plain(event.reason)}")


def find_token() -> str:
    """CHAT_TOKEN of the environment, or that of a server on this machine."""
    try:
        return os.environ.get("CHAT_TOKEN") or TOKEN_FILE.read_text()
    except FileNotFoundError:
        sys.exit("Start examples/chat/server.py first, or set CHAT_TOKEN to the token of the server elsewhere.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Send the lines you type to a chat room, and show what others say.")
    parser.add_argument("url", nargs="?", default=URL, help="(default: %(default)s)")
    parser.add_argument("--name", default=getpass.getuser(), help="(default: %(default)s)")
    parser.add_argument("--room", default="lobby", help="(default: %(default)s)")
    args = parser.parse_args()
    try:
        with Terminal(args.url, args.name, find_token()) as chat:
            print(f"-- in {args.room}: {', '.join(map(plain, chat.join(args.room)))}. Ctrl-D ends.")
            for line in filter(str.strip, sys.stdin):
                chat.say(line)
    except (WebSocketError, ChatError) as error:
        sys.exit(plain(f"{error}"))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
