"""Settings reach what they are about."""

import math

import pytest

from app.engine_service import EngineService
from app.server_options import connection_options, create_admin_server
from app.settings import Settings
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
async def loaded():
    """A service of given settings that has loaded its engine."""
    services = []

    async def load(**settings):
        service = EngineService(Settings(**settings), lambda _settings: FakeEngine())
        services.append(service)
        await service.start()
        await service._loading
        return service

    yield load
    for service in services:
        await service.stop()


def limits(service):
    return connection_options(service, 10)["http"].keywords["limits"]


@pytest.mark.parametrize(
    ("setting", "value", "found", "expected"),
    [
        ("keep_alive_s", 7, lambda service: connection_options(service, 10)["timeout_keep_alive"], 7),
        ("keep_alive_s", 7, lambda service: limits(service).unread_timeout_s, 7),
        ("header_timeout_s", 7, lambda service: limits(service).header_timeout_s, 7),
        ("connection_age_s", 7, lambda service: limits(service).max_age_s, 7),
        ("connection_age_s", 0, lambda service: limits(service).max_age_s, math.inf),
        ("max_buffered_bytes", 1 << 25, lambda service: limits(service).unread.max_bytes, 1 << 25),
        ("max_wait_ms", 250, lambda service: service.predictor.batcher._policy.max_wait_s, 0.25),
        ("max_queue_s", 7, lambda service: service.predictor.batcher.max_queue_s, 7),
        ("max_queue_images", 300, lambda service: service.predictor.batcher.max_queue_images, 300),
        ("max_pixels", 2048, lambda service: service.predictor.decoder.max_pixels, 2048),
        ("decode_threads", 3, lambda service: service.predictor.decoder._pool.threads, 3),
    ],
)
async def test_a_setting_reaches_what_it_limits(loaded, setting, value, found, expected):
    assert found(await loaded(**{setting: value})) == expected


@pytest.mark.parametrize(("admin_host", "bound"), [("127.0.0.1", "127.0.0.1"), (None, "0.0.0.0")])
async def test_probes_are_answered_at_their_own_address_or_that_of_the_main_port(loaded, own_port, admin_host, bound):
    service = await loaded(host="0.0.0.0", port=0, admin_host=admin_host, admin_port=own_port)
    with create_admin_server(service)._listener as listener:
        assert listener.getsockname() == (bound, own_port)
