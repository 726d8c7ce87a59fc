"""A chat: people in browsers and people in Python meet in the same rooms. FastAPI, uvicorn, and all state in memory.

    python3 -m venv .venv && .venv/bin/pip install -q -e '.[examples]' && .venv/bin/python examples/chat/server.py

prints the address of the page, with the token in it. The client for Python is `client.py`, beside this file.

Messages are JSON objects with a "type"; the "id" of a request comes back in its answer, and says which request it
answers. The first message is "hello".

    a client says                               the server answers                      and tells the room
    {"type": "hello", "name", "token"}          {"type": "welcome", "name"}
    {"type": "join", "room", "after"}           {"type": "room_joined", "names", ...}   room_joined, room_left
    {"type": "post", "room", "text", "key"}     {"type": "posted", "time", ...}         room_message
    {"type": "who", "room"}                     {"type": "users", "names", ...}
    anything else                               {"type": "error", "code", "text"}

The token may be missing from "hello" if the handshake had a header "Authorization: Bearer TOKEN", which browsers cannot
send. "join" brings up the last messages of the room, those later than "after". A post whose "key" has been posted
already is not posted again: so a client that has lost its connection may ask twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

import nwebsocket

MAX_FRAME = 64 * 1024  # bytes of any message, for uvicorn: what is larger ends the connection with 1009
MAX_TEXT = 2_000  # characters of a post: what is longer is answered with an error
MAX_ROOMS = 10  # that one connection may be in
HISTORY = 200  # messages of a room that are kept for those who come later
RATE, BURST = 5, 20  # requests per second in the long run, and at once
MAX_WAITING = 500  # messages for a client that does not read them: then it has to go
PATIENCE = 10.0  # seconds for a client to say hello, and to take a message

PAGE = Path(__file__).with_name("index.html")
TOKEN_FILE = Path(__file__).with_name(".token")

Json = dict[str, Any]


def load_token() -> str:
    """CHAT_TOKEN of the environment, or one that is made once and kept: after a restart it has to be the same."""
    token = os.environ.get("CHAT_TOKEN") or (TOKEN_FILE.read_text() if TOKEN_FILE.exists() else "")
    if not token:
        token = secrets.token_urlsafe(16)
        TOKEN_FILE.touch(mode=0o600)
        TOKEN_FILE.write_text(token)
    return token


TOKEN = load_token()


def is_token(given: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), TOKEN.encode())  # takes equally long for all


# --- Who is there, and what they have said


class Member:
    """One connection: what it is still to be told, and how much it has asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rooms: set[Room] = set()
        self.leaving = False
        self.outgoing: asyncio.Queue[Json | None] = asyncio.Queue(MAX_WAITING)  # None: the end, as `farewell` says
        self.farewell = (1000, "")
        self.credit = float(BURST)
        self._credited = time.monotonic()

    def tell(self, message: Json) -> None:
        """Have a message sent. Never waits: who does not read must not hold up the others."""
        if self.leaving:
            return
        try:
            self.outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self.dismiss(1013, "you do not read what you are sent")

    def dismiss(self, code: int, reason: str) -> None:
        """Have the connection closed, after what it has been told so far, unless that is too much."""
        self.leaving = True
        self.farewell = (code, reason)
        if self.outgoing.full():
            while not self.outgoing.empty():
                self.outgoing.get_nowait()
        self.outgoing.put_nowait(None)

    def spend(self) -> None:
        """Count a request: `credit` is below 0 after too many."""
        now = time.monotonic()
        self.credit = min(BURST, self.credit + (now - self._credited) * RATE) - 1
        self._credited = now


class Room:
    """Those who are in it, and what was said last. It lasts as long as there is somebody."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: set[Member] = set()
        self.history: deque[Json] = deque(maxlen=HISTORY)

    def names(self) -> list[str]:
        return sorted({member.name for member in self.members})

    def about(self, what: str, **fields: Any) -> Json:
        return {"type": what, "room": self.name, **fields}

    def tell(self, message: Json) -> None:
        for member in list(self.members):
            member.tell(message)

    def enter(self, member: Member) -> None:
        self.members.add(member)
        member.rooms.add(self)
        rooms[self.name] = self

    def leave(self, member: Member) -> None:
        self.members.discard(member)
        if not self.members:
            del rooms[self.name]
        self.tell(self.about("room_left", name=member.name, names=self.names()))

    def post(self, name: str, text: str, key: str) -> Json:
        """Say it to all, unless it has been said already; return the message."""
        for message in self.history:
            if message["key"] == key and message["name"] == name:
                return message
        last = self.history[-1]["time"] if self.history else 0.0
        now = max(time.time(), last + 1e-6)  # "after" needs times that grow
        message = self.about("room_message", name=name, text=text, time=now, key=key)
        self.history.append(message)
        self.tell(message)
        return message


rooms: dict[str, Room] = {}


# --- What clients may say


def check_name(given: str) -> str:
    name = given.strip()
    if not re.fullmatch(r"[\w .'-]{1,32}", name):
        raise ValueError("must be 1 to 32 letters, digits, spaces and . ' - _")
    return name


Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT)]


class Refused(Exception):
    """A request cannot be granted."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.answer = {"type": "error", "code": code, "text": text}


class Hello(BaseModel):
    type: Literal["hello"]
    name: Name
    token: str = ""


class Join(BaseModel):
    type: Literal["join"]
    room: Name
    after: float = 0.0

    def grant(self, member: Member, reply: Json) -> None:
        room = rooms.get(self.room) or Room(self.room)
        if new := room not in member.rooms:
            if len(member.rooms) >= MAX_ROOMS:
                raise Refused("too_many_rooms", f"nobody may be in more than {MAX_ROOMS} rooms")
            room.enter(member)
        joined = room.about("room_joined", name=member.name, names=room.names())
        member.tell(joined | reply)
        if new:
            for other in room.members - {member}:
                other.tell(joined)
            for message in room.history:
                if message["time"] > self.after:
                    member.tell(message)


class Post(BaseModel):
    type: Literal["post"]
    room: Name
    text: Text
    key: Annotated[str, Field(max_length=64)] = Field(default_factory=secrets.token_hex)

    def grant(self, member: Member, reply: Json) -> None:
        room = room_of(member, self.room)
        message = room.post(member.name, self.text, self.key)
        member.tell(room.about("posted", time=message["time"]) | reply)


class Who(BaseModel):
    type: Literal["who"]
    room: Name

    def grant(self, member: Member, reply: Json) -> None:
        room = room_of(member, self.room)
        member.tell(room.about("users", names=room.names()) | reply)


def room_of(member: Member, name: str) -> Room:
    room = rooms.get(name)
    if room not in member.rooms:
        raise Refused("not_joined", f"join the room {name} first")
    return room


HELLO = TypeAdapter(Hello)
REQUESTS: TypeAdapter[Join | Post | Who] = TypeAdapter(Annotated[Join | Post | Who, Field(discriminator="type")])
Kind = TypeVar("Kind")


def parse(text: str) -> Json:
    with contextlib.suppress(ValueError, RecursionError):
        request = json.loads(text)
        if isinstance(request, dict):
            return request
    raise Refused("invalid", "a message must be a JSON object, as text")


def understand(kind: TypeAdapter[Kind], request: Json) -> Kind:
    try:
        return kind.validate_python(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        text = ": ".join([*map(str, first["loc"][-1:]), first["msg"].removeprefix("Value error, ")])
        raise Refused("invalid", text) from error


def id_of(request: Json) -> Json:
    """What an answer has to carry, too."""
    return {"id": request["id"]} if "id" in request else {}


# --- The server

app = FastAPI(title="Chat", openapi_url=None)


@app.get("/")
def page() -> Response:
    """The page. Only its own script may run, whatever somebody manages to post."""
    nonce = secrets.token_urlsafe(16)
    policy = [
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'",
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }
    html = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
    return Response(html, media_type="text/html", headers=headers)


@app.get("/health")
def health(request: Request) -> Response:
    """Whether people can come in: we try it. No `async def`, so that FastAPI runs it in a thread beside the event loop.

    We connect to where this request came in, and not to what its Host header says: that would be sent our token.
    """
    url = f"ws://{authority(*request.scope['server'])}/ws"
    start = time.perf_counter()
    try:
        with nwebsocket.WebSocket(url, proxy=None, open_timeout=5) as ws:
            ws.send(json.dumps({"type": "hello", "name": "health check", "token": TOKEN}))
            answer = json.loads(ws.recv(timeout=5))
    except nwebsocket.WebSocketError as error:
        return JSONResponse({"status": "failed", "error": str(error)}, status_code=503)
    if answer["type"] != "welcome":
        return JSONResponse({"status": "failed", "error": answer}, status_code=503)
    return JSONResponse({"status": "ok", "seconds": round(time.perf_counter() - start, 4)})


@app.websocket("/ws")
async def chat(socket: WebSocket) -> None:
    """One client, from its handshake to its end."""
    if refusal := refuse(socket):
        await socket.send_denial_response(refusal)
        return
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        if member := await greet(socket):
            await serve(socket, member)


def refuse(socket: WebSocket) -> Response | None:
    """What to say to a handshake instead of yes. Browsers let any page connect to us, and say in Origin which."""
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        return PlainTextResponse("only our own page may connect\n", status_code=403)
    authorization = socket.headers.get("authorization")
    if authorization is not None and not is_token(authorization.removeprefix("Bearer ")):
        return PlainTextResponse("wrong token\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})
    return None


async def greet(socket: WebSocket) -> Member | None:
    """Hear who it is; None if it cannot come in."""
    reply: Json = {}
    try:
        request = parse(await asyncio.wait_for(hear_text(socket), PATIENCE))
        reply = id_of(request)
        hello = understand(HELLO, request)
        if "authorization" not in socket.headers and not is_token(hello.token):
            raise Refused("wrong_token", "wrong token")
    except Refused as error:
        await socket.send_text(json.dumps(error.answer | reply))
        await socket.close(1008, str(error)[:100])
        return None
    except asyncio.TimeoutError:
        await socket.close(3008, "no hello")
        return None
    await socket.send_text(json.dumps({"type": "welcome", "name": hello.name} | reply))
    return Member(hello.name)


async def hear_text(socket: WebSocket) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    return message.get("text") or ""


async def serve(socket: WebSocket, member: Member) -> None:
    """Hear and tell, until the client has gone, or has been dismissed."""
    tasks = [asyncio.create_task(hear(socket, member)), asyncio.create_task(deliver(socket, member))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        for room in member.rooms:
            room.leave(member)


async def hear(socket: WebSocket, member: Member) -> None:
    """Grant what the client asks, until it has gone."""
    while True:
        text = await hear_text(socket)
        if not member.leaving:
            consider(text, member)
            if member.credit < -BURST:
                member.dismiss(1008, "too many requests, for too long")


def consider(text: str, member: Member) -> None:
    """Grant one request, or say why not."""
    reply: Json = {}
    try:
        member.spend()
        request = parse(text)
        reply = id_of(request)
        if member.credit < 0:
            raise Refused("rate_limit", f"too many requests: {RATE} a second are allowed")
        understand(REQUESTS, request).grant(member, reply)
    except Refused as error:
        member.tell(error.answer | reply)


async def deliver(socket: WebSocket, member: Member) -> None:
    """Send what the member is told, and the close at its end; give up if a message is not taken in time."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):  # RuntimeError: it is closing
        while (message := await member.outgoing.get()) is not None:
            await asyncio.wait_for(socket.send_text(json.dumps(message)), PATIENCE)
        await asyncio.wait_for(socket.close(*member.farewell), PATIENCE)


def authority(host: str, port: int) -> str:
    """How an address is written in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat server.")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", default=8000, type=int, help="(default: %(default)s)")
    args = parser.parse_args()
    # What is after # is sent to no server, and so is in no log.
    print(f"The page: http://{authority(args.host, args.port)}/#{quote(TOKEN)}", flush=True)
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        ws_max_size=MAX_FRAME,
        timeout_graceful_shutdown=3,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
