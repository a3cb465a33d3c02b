import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.fakes import FakeEngine


@asynccontextmanager
async def serving(engine=None, factory=None, wait=True, **settings):
    """A client of the whole application, with a fake engine behind it and no process or socket between."""

    def load(settings):
        loaded = factory(settings) if factory else engine or FakeEngine()
        loaded.batch_sizes = settings.batch_sizes or loaded.batch_sizes
        return loaded

    app = create_app(Settings(**settings), load)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        if wait:
            await asyncio.wait({app.state.service._loading})
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
    from tests.conftest import encode, noise

    engine.hold()
    first = asyncio.ensure_future(
        client.post("/predict", content=encode(noise()), headers={"content-type": "image/png"})
    )
    assert await asyncio.to_thread(engine.entered.wait, 10)
    yield first
    engine.release()
    await first
