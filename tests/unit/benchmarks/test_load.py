import asyncio

import pytest

from benchmarks.load import LoadError, closed_loop, post, summarise

REQUEST = post("/predict", b"picture", {"content-type": "image/png"})


async def serve(answer: bytes, seen: list[bytes], clients: int, seconds: float) -> list[float]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                seen.append(await reader.readexactly(len(REQUEST)))
                writer.write(answer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        return await closed_loop(server.sockets[0].getsockname()[1], REQUEST, clients, seconds)


def test_every_client_sends_its_next_request_when_it_has_its_answer() -> None:
    seen: list[bytes] = []
    times = asyncio.run(serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", seen, 3, 0.1))
    assert len(times) == len(seen) >= 3
    assert set(seen) == {REQUEST}
    assert REQUEST == (
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 7\r\ncontent-type: image/png\r\n\r\npicture"
    )


def test_another_status_is_an_error() -> None:
    with pytest.raises(LoadError, match="429 too many requests: full"):
        asyncio.run(serve(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull", [], 1, 0.1))


def test_summary_is_in_milliseconds() -> None:
    assert summarise([0.001 * n for n in range(1, 101)], 10.0) == {
        "requests_per_s": 10.0,
        "p50_ms": pytest.approx(50.5),
        "p99_ms": pytest.approx(99.99),
    }
