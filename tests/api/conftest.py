import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest
import uvicorn

from app import imaging
from app.launch import create_service
from app.main import create_app
from app.routes.fast_predict import FastPredict
from app.server_options import connection_options
from app.settings import Settings
from tests.conftest import encode, noise
from tests.fakes import FakeEngine


class Server(uvicorn.Server):
    """Serves on a free port of 127.0.0.1, in the test's own event loop; signals stay the test's."""

    @contextmanager
    def capture_signals(self):
        yield

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.serve())
        while not self.started:
            assert not task.done()
            await asyncio.sleep(0)
        try:
            yield self.servers[0].sockets[0].getsockname()[1]
        finally:
            self.should_exit = True
            await task


@asynccontextmanager
async def serving(engine=None, factory=None, wait=True, **settings):
    """A client of the whole application with a fake engine behind it, over the connections of the real process."""

    def load(settings):
        loaded = factory(settings) if factory else engine or FakeEngine()
        loaded.batch_sizes = settings.batch_sizes or loaded.batch_sizes
        return loaded

    service = create_service(Settings(**settings), load)
    app = create_app(service)
    config = uvicorn.Config(
        app, port=0, timeout_graceful_shutdown=5, **connection_options(service, 100, FastPredict(service))
    )
    async with (
        Server(config).running() as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        client.app = app
        if wait:
            await asyncio.wait({service._loading})
        try:
            yield client
        finally:
            if engine:
                engine.release()


@pytest.fixture
async def client(anyio_backend):
    async with serving() as client:
        yield client


@asynccontextmanager
async def occupied(engine, client):
    """Keep the engine busy with one request, whose answer is awaited at the end."""
    engine.hold()
    first = asyncio.ensure_future(
        client.post("/predict", content=encode(noise()), headers={"content-type": "image/png"})
    )
    assert await asyncio.to_thread(engine.entered.wait, 10)
    yield first
    engine.release()
    await first


class HeldDecoding:
    """What threads decode waits for `go_on`; `files` are those that they have begun."""

    def __init__(self, decode=imaging.decode):
        self._decode = decode
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.files = []

    def decode(self, data, *given):
        self.files.append(data)
        self.begun.set()
        assert self.go_on.wait(30), "the test forgot to let it go on"
        return self._decode(data, *given)


@pytest.fixture
def held_decoding(monkeypatch):
    held = HeldDecoding()
    monkeypatch.setattr("app.imaging.decode", held.decode)
    yield held
    held.go_on.set()


@asynccontextmanager
async def no_room():
    """A client of a service whose engine is held and whose queue is full, and what ends both."""
    engine = FakeEngine()
    full = {"max_queue_images": 2, "max_images": 2, "batch_sizes": (1, 2)}
    async with serving(engine, **full) as client, occupied(engine, client):
        waiting = asyncio.ensure_future(client.post("/predict", files=[("file", encode(noise()))] * 2))
        while client.app.state.service.queued_images() < 2:
            await asyncio.sleep(0)

        async def let_go():
            engine.release()
            assert (await waiting).status_code == 200

        yield client, let_go
        await let_go()
