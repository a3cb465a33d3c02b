"""Which answer on a connection is its last one, whichever way it is sent: whole, in pieces, or without its body."""

import asyncio
import re

import pytest

from tests.api.asking import HEAD, PICTURE
from tests.api.conftest import serving

pytestmark = pytest.mark.anyio

ASKED = [b"GET /readyz", b"HEAD /readyz", b"GET /static/favicon-32x32.png", b"HEAD /static/favicon-32x32.png"]


def request(asked):
    return asked + b" HTTP/1.1\r\nhost: x\r\n\r\n"


async def header_of_answer(reader, asked):
    """Read an answer, and return its header."""
    head = await reader.readuntil(b"\r\n\r\n")
    if asked.startswith(b"GET"):
        await reader.readexactly(int(re.search(rb"\r\ncontent-length: (\d+)", head)[1]))
    return head


@pytest.mark.parametrize("asked", ASKED)
async def test_in_a_drain_what_was_sent_behind_a_request_is_answered(asked):
    async with serving() as client:
        client.app.state.service.lifecycle.drain()
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(request(asked) + HEAD % len(PICTURE) + b"\r\n" + PICTURE)
        assert b"\r\nconnection:" not in await header_of_answer(reader, asked)
        last = await reader.read()
        writer.close()
    assert last.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in last


@pytest.mark.parametrize("asked", ASKED)
async def test_an_old_connections_next_answer_says_that_it_is_the_last_one(asked):
    async with serving(connection_age_s=0.01) as client, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        answer = b""
        while b"\r\nconnection: close\r\n" not in answer:
            writer.write(request(asked))
            answer = await header_of_answer(reader, asked)
        assert await reader.read() == b""
        writer.close()
