from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from app.admin import AdminServer
from app.http.ports import open_port
from app.lifecycle import Lifecycle, State

pytestmark = pytest.mark.anyio


async def hello(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def server():
    """A server, and the number of its port."""
    config = uvicorn.Config(hello, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    port = open_port("127.0.0.1", 0, 8)
    return AdminServer(config, SimpleNamespace(lifecycle=Lifecycle()), port), port.getsockname()[1]


async def ask(port):
    async with httpx.AsyncClient(timeout=60) as http:
        return (await http.get(f"http://127.0.0.1:{port}/")).text


async def ask_until_answered(port):
    while True:
        try:
            return await ask(port)
        except httpx.ConnectError:  # not yet
            pass


async def test_it_serves_as_long_as_its_caller():
    admin, port = server()
    async with admin.running():
        assert await ask_until_answered(port) == "hello"
    with pytest.raises(httpx.ConnectError):
        await ask(port)
    assert admin.service.lifecycle.state is State.STARTING


async def test_an_end_of_its_own_is_a_failure_of_the_service(monkeypatch):
    admin, _ = server()

    async def broken(_sockets):
        raise RuntimeError("a bug")

    monkeypatch.setattr(admin, "serve", broken)
    async with admin.running():
        pass
    assert admin.service.lifecycle.state is State.FAILED
