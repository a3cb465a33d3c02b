"""Who may ask what: keys, their limits, the port of the probes, and what browsers are told."""

import asyncio
import base64
import hashlib
import re

import httpx
import pytest

from app.main import create_admin_app
from tests.api.asking import PICTURE, PNG, assert_problem, post
from tests.api.conftest import serving
from tests.fakes import FakeEngine
from tests.other_server import under_another_server

pytestmark = pytest.mark.anyio

PROBES = {"/livez", "/readyz", "/health", "/metrics"}
PAGES = {"/docs", "/openapi.json", "/static"}


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def line(name, more=""):
    return f"{name}:{hashlib.sha256(f'{name} key'.encode()).hexdigest()}{more}\n"


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(line("alice") + line("bob", ":1"))
    return path


async def test_each_key_of_the_file_opens_and_is_counted_by_its_name(keys_file):
    async with serving(api_keys_file=keys_file, api_key="single") as client:
        for key in ("alice key", "bob key", "single"):
            assert (await post(client, headers=PNG | bearer(key))).status_code == 200
        for headers in ({}, bearer("eve key")):
            assert_problem(await post(client, headers=PNG | headers), 401, "unauthorized")
        text = (await client.get("/metrics")).text
        for name in ("alice", "bob", "RESNET_API_KEY"):
            assert f'resnet_key_requests_total{{key="{name}"}} 1.0' in text
        assert "eve" not in text


async def test_one_key_cannot_have_more_requests_in_flight_than_its_limit(keys_file):
    engine = FakeEngine()
    async with serving(engine, api_keys_file=keys_file) as client:
        bob, alice = PNG | bearer("bob key"), PNG | bearer("alice key")
        engine.hold()
        first = asyncio.ensure_future(post(client, headers=bob))
        assert await asyncio.to_thread(engine.entered.wait, 10)
        refused = await post(client, headers=bob)
        assert_problem(refused, 429, "too-many-requests")
        assert int(refused.headers["retry-after"]) >= 1
        others = [asyncio.ensure_future(post(client, headers=alice)) for _ in range(3)]
        engine.release()
        assert [answer.status_code for answer in await asyncio.gather(first, *others)] == [200] * 4
        assert (await post(client, headers=bob)).status_code == 200
        assert_problem(await post(client, b"junk", headers=bob), 422, "undecodable-image")
        assert (await post(client, headers=bob)).status_code == 200


async def test_reloading_takes_keys_away_and_lets_new_ones_in(keys_file):
    async with serving(api_keys_file=keys_file) as client:
        keys_file.write_text(line("carol"))
        client.app.state.service.keys.reload()
        assert_problem(await post(client, headers=PNG | bearer("alice key")), 401, "unauthorized")
        assert (await post(client, headers=PNG | bearer("carol key"))).status_code == 200


async def test_keys_that_cannot_be_read_again_stay_and_are_told_of(keys_file):
    async with serving(api_keys_file=keys_file) as client:
        service = client.app.state.service
        for text, refused in (("no key\n", ["keys"]), (line("carol"), [])):
            keys_file.write_text(text)
            service.read_files_again()
            assert (await client.get("/health")).json()["reload"]["files_refused"] == refused
            name = "alice" if refused else "carol"
            assert (await post(client, headers=PNG | bearer(f"{name} key"))).status_code == 200
        metrics = (await client.get("/metrics")).text
    for outcome in ("read", "refused"):
        assert f'resnet_file_reloads_total{{file="keys",outcome="{outcome}"}} 1.0' in metrics
        assert f'resnet_file_reloads_total{{file="certificate",outcome="{outcome}"}} 0.0' in metrics


async def test_a_changed_file_is_read_again_without_a_signal_once(keys_file, caplog):
    caplog.set_level("INFO")
    async with serving(api_keys_file=keys_file, watch_files_s=0.001) as client:
        service = client.app.state.service
        keys_file.write_text(line("carol"))
        while service.keys.find("Bearer carol key") is None:
            await asyncio.sleep(0.001)
        assert service.keys.find("Bearer alice key") is None
        keys_file.write_text("no key\n")
        while service.files_refused != ["keys"]:
            await asyncio.sleep(0.001)
        assert service.keys.find("Bearer carol key") is not None
        keys_file.unlink()
        while "No such file" not in caplog.text:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
    told = [message for message in caplog.messages if "keys" in message]
    assert [message.partition(":")[0] for message in told] == [
        f"read 1 keys from {keys_file}",
        *["the keys stay as they were"] * 2,
    ]


async def test_a_file_that_is_seen_half_written_is_read_once_it_is_whole(keys_file, monkeypatch):
    async with serving(api_keys_file=keys_file, watch_files_s=0.001) as client:
        service = client.app.state.service
        changed = service.file_watch.changed

        def seen_while_it_is_written():
            if found := changed():
                asyncio.get_running_loop().call_soon(keys_file.write_text, line("carol"))
            return found

        monkeypatch.setattr(service.file_watch, "changed", seen_while_it_is_written)
        keys_file.write_text(line("carol")[:20])
        while service.keys.find("Bearer carol key") is None:
            await asyncio.sleep(0.001)
        metrics = (await client.get("/metrics")).text
    assert 'resnet_file_reloads_total{file="keys",outcome="refused"} 0.0' in metrics


@pytest.mark.parametrize("settings", [{"watch_files_s": 0}, {"api_keys_file": None}])
async def test_files_are_left_alone_where_there_are_none_or_nobody_wants_that(keys_file, settings):
    async with serving(**{"api_keys_file": keys_file} | settings):
        assert "watch-files" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_nothing_but_probes_and_pages_answers_without_a_key(keys_file):
    async with serving(api_keys_file=keys_file) as client:
        routes = paths_of(client.app.router)
        assert {"/predict", "/model"} | PROBES | PAGES <= routes
        for path in routes - PROBES - PAGES:
            statuses = {(await client.request(method, path)).status_code for method in ("GET", "POST", "PUT", "DELETE")}
            assert statuses <= {401, 405}, path
            assert 401 in statuses, path


def paths_of(router):
    """All paths, also those of routers that FastAPI keeps as they were included."""
    nested = [paths_of(route.original_router) for route in router.routes if hasattr(route, "original_router")]
    return {route.path for route in router.routes if hasattr(route, "path")}.union(*nested)


async def test_with_a_port_of_their_own_the_probes_leave_the_first_one():
    async with serving(admin_port=9) as client:
        service = client.app.state.service
        admin = httpx.ASGITransport(under_another_server(create_admin_app(service)))
        async with httpx.AsyncClient(transport=admin, base_url="http://test") as probes:
            for path in PROBES:
                assert_problem(await client.get(path), 404, "not-found")
                assert (await probes.get(path)).status_code == 200
            assert (await post(client)).status_code == 200
            for path in ("/predict", "/model", "/docs", "/openapi.json", "/redoc"):
                assert_problem(await probes.get(path), 404, "not-found")
            service.lifecycle.drain()
            assert (await probes.get("/readyz")).status_code == 503
            assert 'resnet_requests_total{route="/predict",status="200"} 1.0' in (await probes.get("/metrics")).text


async def test_no_page_of_another_origin_may_read_an_answer(client):
    origin = {"origin": "https://elsewhere.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answers = [
        await client.options("/predict", headers=origin | asked),
        await post(client, headers=PNG | origin),
        *[await client.get(path, headers=origin) for path in ("/docs", "/metrics", "/model", "/nothing")],
    ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answers[0].status_code == 405


async def test_every_answer_tells_browsers_to_be_careful(client):
    answers = [
        await post(client, PICTURE),
        await post(client, b""),
        *[await client.get(path) for path in ("/docs", "/static/swagger-ui.css", "/livez", "/nothing")],
    ]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_page_may_run_its_own_scripts_and_nothing_else(client):
    page = await client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    inline = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert len(inline) == 1
    digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy["script-src"]
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert source.startswith("/static/")  # 'self'
    assert not re.search(r"\son\w+=", page.text)
