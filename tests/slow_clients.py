"""Clients that send nothing, half a header, or a byte a second of a header or a body, until they are closed.

`python -m tests.slow_clients PORT COUNT` keeps so many open, whatever the service closes, until it is ended.
"""

import asyncio
import contextlib
import sys
from itertools import cycle

HEADER = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\n"


async def silent(_writer):
    await asyncio.Event().wait()


async def half_a_header(writer):
    writer.write(HEADER[:40])
    await asyncio.Event().wait()


async def header_by_bytes(writer):
    for byte in cycle(b"GET / HTTP/1.1\r\nx-header: " + b"x" * 5000):
        writer.write(bytes([byte]))
        await asyncio.sleep(1)


async def body_by_bytes(writer):
    writer.write(HEADER)
    while True:
        writer.write(b"x")
        await asyncio.sleep(1)


KINDS = (silent, half_a_header, header_by_bytes, body_by_bytes)


async def until_closed(port, kind):
    """Return what the service sent before it closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(kind(writer))
    received = b""
    try:
        while part := await reader.read(65536):
            received += part
        return received
    except ConnectionError:  # a byte that came after the end was answered by a reset; what came before it counts
        return received
    finally:
        sending.cancel()
        writer.close()


async def keep_open(port, count):
    async def one(kind):
        while True:
            with contextlib.suppress(OSError):
                await until_closed(port, kind)

    await asyncio.gather(*(one(KINDS[number % len(KINDS)]) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(keep_open(int(sys.argv[1]), int(sys.argv[2])))
