"""What compression takes and gives, setting by setting: memory, bytes on the wire, time.

    pip install '.[benchmarks]' && python benchmarks/compression.py

Each setting gets a process of its own, which opens --connections connections to an echo server (of the `websockets`
package, without settings of its own, in the process that measures) and speaks on all of them: one message each way,
then --messages in all, JSON of some 130 bytes. The table, in Markdown, has for each setting

    KiB, 1 message   resident memory of an idle connection that has had one message each way
    ... messages     ... and so many
    zlib's KiB       what zlib then holds, by its formula; resident is what it has used of that
    wire, %          bytes on the wire for 100 bytes of payload, both ways, frames included
    CPU, us          this process's CPU time for a message each way, one at a time, and the system's work for it
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from random import Random
from time import process_time

import websockets.asyncio.server
from _server import raise_descriptor_limit
from _worker import resident_memory
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from nwebsocket import Deflate, WebSocket, connect

SETTINGS = {
    "`None`": None,
    "`Deflate()`, which is `\"deflate\"`": Deflate(),
    "... with windows of 12 bits, `mem_level=5`": Deflate(
        client_max_window_bits=12, server_max_window_bits=12, mem_level=5
    ),
    "... with windows of 9 bits, `mem_level=1`": Deflate(
        client_max_window_bits=9, server_max_window_bits=9, mem_level=1
    ),
    "... without context takeover": Deflate(client_no_context_takeover=True, server_no_context_takeover=True),
}


def zlib_memory(setting: Deflate | None) -> float:
    """KiB that zlib holds for an idle connection once messages have gone both ways."""
    held = 0.0
    if setting is not None and not setting.client_no_context_takeover:
        held += (2 ** (setting.client_max_window_bits + 2) + 2 ** (setting.mem_level + 9)) / 1024 + 6
    if setting is not None and not setting.server_no_context_takeover:
        held += 2 ** (setting.server_max_window_bits or 15) / 1024 + 7
    return held


def message_of(number: int) -> str:
    """A message like those of a feed of prices."""
    source = Random(number)
    return json.dumps(
        {
            "type": "trade",
            "id": 31_700_000 + number,
            "symbol": source.choice(["BTC-USD", "ETH-USD", "SOL-USD"]),
            "price": round(source.gauss(20_000, 300), 2),
            "size": round(source.expovariate(3), 4),
            "time": f"2026-01-31T12:{number // 60 % 60:02}:{number % 60:02}.{source.randrange(1000):03}Z",
        }
    )


def measure(url: str, setting: Deflate | None, connections: int, messages: int) -> list[float]:
    """The measured columns of the table."""
    raise_descriptor_limit()
    texts = [message_of(number) for number in range(messages)]
    with connect(url, compression=setting) as ws:
        converse([ws], texts[:1])
    gc.collect()
    before = resident_memory()

    def growth() -> float:
        gc.collect()
        return (resident_memory() - before) / connections / 1024

    sockets = [connect(url, compression=setting) for _ in range(connections)]
    handshakes = traffic(sockets)
    converse(sockets, texts[:1])
    one, began = growth(), process_time()
    converse(sockets, texts[1:])
    cpu = (process_time() - began) / connections / (messages - 1) * 1e6
    payload = 2 * connections * sum(map(len, texts))
    figures = [one, growth(), (traffic(sockets) - handshakes) / payload * 100, cpu]
    for ws in sockets:
        ws.close()
    return figures


def traffic(sockets: list[WebSocket]) -> int:
    return sum(ws.stats.bytes_sent + ws.stats.bytes_received for ws in sockets)


def converse(sockets: list[WebSocket], texts: list[str]) -> None:
    for ws in sockets:
        for text in texts:
            ws.send(text)
            ws.recv(timeout=10)


async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def print_table(connections: int, messages: int) -> None:
    print(f"| compression | KiB, 1 message | KiB, {messages} messages | zlib's KiB | wire, % | CPU, us |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    async with websockets.asyncio.server.serve(
        echo, "127.0.0.1", 0, compression=None, extensions=[ServerPerMessageDeflateFactory()], ping_interval=None
    ) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for name, setting in SETTINGS.items():
            arguments = [__file__, "--measure", name, url, f"--connections={connections}", f"--messages={messages}"]
            client = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
            output, _ = await client.communicate()
            if client.returncode:
                sys.exit(f"{name} could not be measured")
            one, many, wire, cpu = json.loads(output)
            figures = [f"{figure:.0f}" for figure in (one, many, zlib_memory(setting), wire, cpu)]
            print("|", " | ".join([name, *figures]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--measure", nargs=2, metavar=("SETTING", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.messages < 2 or options.connections < 1:
        parser.error("there must be at least 2 messages and a connection")
    raise_descriptor_limit()
    if options.measure:
        name, url = options.measure
        print(json.dumps(measure(url, SETTINGS[name], options.connections, options.messages)))
    else:
        asyncio.run(print_table(options.connections, options.messages))


if __name__ == "__main__":
    main()
