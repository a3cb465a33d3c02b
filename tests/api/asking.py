"""What the tests of the API ask with, and what a problem looks like."""

import asyncio
import json
import re

import httpx

from tests.conftest import encode, noise

PNG = {"content-type": "image/png"}
PICTURE = encode(noise())
HEAD = b"POST /predict?top_k=1 HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: %d\r\n"


def assert_problem(answer, status, code):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:resnet:problem:{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    for secret in ("Traceback", "0x", "/app", "Error:", "site-packages"):
        assert secret not in answer.text


def post(client, content=PICTURE, headers=PNG, path="/predict"):
    return client.post(path, content=content, headers=headers)


async def answers_of(client, head, *pieces):
    """Send a header and, each after the service has seen what was before, pieces of a body; return all that comes."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(head)
    for piece in pieces:
        await client.get("/livez")  # a turn of the service's loop
        writer.write(piece)
    answers = await reader.read()
    writer.close()
    return answers


async def answer_to_the_end(reader, writer):
    """Read until the service closes the connection, and return what it has answered."""
    raw = await reader.read()
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return httpx.Response(
        int(status.split()[1]), headers=[tuple(line.split(": ", 1)) for line in headers], content=body
    )


class Client:
    """One connection that is kept, and answers as they come; every request is one piece of data, as a client's are."""

    @classmethod
    async def connect(cls, service):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(service.base_url.host, service.base_url.port)
        return self

    async def ask(self, body, head=HEAD):
        self.writer.write(head % len(body) + b"\r\n" + body)
        return await self.answer()

    async def answer(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head)[1])
        return int(head.split()[1]), json.loads(await self.reader.readexactly(length))
