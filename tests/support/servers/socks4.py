"""A SOCKS4 and SOCKS4a proxy (CONNECT only), after the two memos of Ying-Da Lee.

    python socks4.py USER PORT    every USER-ID but this one is refused
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
import sys

GRANTED, REFUSED, WRONG_USER = 90, 91, 93


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        version, command, port, address = struct.unpack("!BBHI", await reader.readexactly(8))
        user = (await reader.readuntil(b"\0"))[:-1].decode()
        host = str(ipaddress.IPv4Address(address))
        if 0 < address < 256:  # 0.0.0.x with x > 0: SOCKS4a, the name follows
            host = (await reader.readuntil(b"\0"))[:-1].decode()
        if (version, command) != (4, 1):
            answer(writer, REFUSED)
        elif user != sys.argv[1]:
            answer(writer, WRONG_USER)
        else:
            await connect(host, port, reader, writer)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def answer(writer: asyncio.StreamWriter, code: int) -> None:
    writer.write(struct.pack("!BBHI", 0, code, 0, 0))


async def connect(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        target_reader, target_writer = await asyncio.open_connection(host, port)
    except OSError:
        answer(writer, REFUSED)
        return
    try:
        answer(writer, GRANTED)
        await asyncio.gather(relay(reader, target_writer), relay(target_reader, writer))
    finally:
        target_writer.close()


async def relay(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.write_eof()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[2]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
