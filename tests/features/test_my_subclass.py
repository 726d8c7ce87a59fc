"""How to test your own subclass: the README's ChatProtocol, which says hello besides, with the fixture `server`.

There is neither a sleep nor a loop that waits: `server.recv()` waits for what the client sends, and
`chat.wait_closed()` until the handlers have heard everything that the server had sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Log
from local_server import LIMIT, LocalServer

from nwebsocket import ConnectionClosed, HandshakeError, ReconnectingWebSocket, WebSocket


class ChatProtocol(WebSocket):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.messages: list[str] = []

    def onopen(self) -> None:
        self.post("hello")

    def onmessage(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.messages.append(json.loads(message)["data"])
        else:
            self.send(message)

    def post(self, message: str) -> None:
        self.send(json.dumps({"type": "message", "data": message}))


class LastingChat(ChatProtocol, ReconnectingWebSocket):
    pass


@pytest.fixture
def chat(server: LocalServer) -> Iterator[ChatProtocol]:
    with ChatProtocol(server.url) as chat:
        assert heard(server) == "hello"
        yield chat


def heard(server: LocalServer) -> str:
    """What the client has posted next."""
    message = json.loads(server.recv())
    assert message["type"] == "message"
    return str(message["data"])


def say(server: LocalServer, data: str) -> None:
    server.send(json.dumps({"type": "message", "data": data}))


def test_what_it_sends(server: LocalServer, chat: ChatProtocol) -> None:
    chat.post("how are you?")
    assert server.recv() == '{"type": "message", "data": "how are you?"}'


def test_what_it_does_with_messages(server: LocalServer, chat: ChatProtocol) -> None:
    say(server, "good morning")
    say(server, "fine")
    server.send(b"\xc0\xff\xee")
    assert server.recv() == b"\xc0\xff\xee"
    assert chat.messages == ["good morning", "fine"]  # all that came before the bytes has been heard before them


def test_a_polite_end(server: LocalServer, chat: ChatProtocol) -> None:
    say(server, "good night")
    server.close(4000, "closing time")
    event = chat.wait_closed(LIMIT)
    assert (event.code, event.reason, event.wasClean) == (4000, "closing time", True)
    assert chat.messages == ["good night"]


def test_the_connection_is_lost(server: LocalServer, chat: ChatProtocol) -> None:
    say(server, "good n")
    server.drop()
    event = chat.wait_closed(LIMIT)
    assert (event.code, event.wasClean) == (1006, False)
    assert chat.messages == ["good n"]
    with pytest.raises(ConnectionClosed):
        chat.post("are you there?")


def test_a_message_that_it_does_not_understand(
    server: LocalServer, chat: ChatProtocol, caplog: pytest.LogCaptureFixture, log: Log
) -> None:
    server.send("no JSON")
    say(server, "sorry")
    server.close()
    chat.wait_closed(LIMIT)
    assert chat.messages == ["sorry"]
    assert "exception in the handler onmessage of ChatProtocol" in caplog.text
    log.errors()  # only in this project, whose fixture fails a test for an error in the log


def test_the_server_refuses(server: LocalServer) -> None:
    server.refuse_with = 403
    with pytest.raises(HandshakeError, match="403"):
        ChatProtocol(server.url).wait_open(LIMIT)


def test_how_it_asks(server: LocalServer) -> None:
    with ChatProtocol(server.url + "lobby?token=secret"):
        assert heard(server) == "hello"
        request = server.connection().request
        assert request is not None
        assert request.path == "/lobby?token=secret"


def test_it_comes_back_after_a_restart(server: LocalServer) -> None:
    chat = LastingChat(server.url)
    assert heard(server) == "hello"
    server.stop()
    chat.post("still there?")
    server.start()
    assert {heard(server), heard(server)} == {"hello", "still there?"}
    chat.close()
    chat.wait_closed(LIMIT)
