"""The API page, its files, and the OpenAPI document that it shows."""

import asyncio
import logging
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from app.http.answering import RESPONSE_PIECE_BYTES
from app.routes.docs import STATIC, WholeFiles
from app.settings import SHIPPED_WEIGHTS
from model import checkpoint
from tests.api.conftest import serving
from tests.conftest import encode, noise

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}


async def test_the_api_page_can_be_left_out():
    async with serving(docs=False) as client:
        for path in ("/docs", "/openapi.json", "/static/swagger-ui.css"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/predict", content=encode(noise()), headers=PNG)).status_code == 200


async def test_docs_work_without_internet(client):
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for path in ("/static/swagger-ui-bundle.js", "/static/swagger-ui.css", "/static/favicon-32x32.png"):
        assert path in page
        assert (await client.get(path)).status_code == 200


async def test_a_file_of_the_docs_comes_whole_by_head_and_once_only(client):
    path = "/static/swagger-ui-bundle.js"
    whole = await client.get(path)
    assert whole.content == (STATIC / "swagger-ui-bundle.js").read_bytes()
    head = await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    again = await client.get(path, headers={"if-none-match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_of_thousands_of_entity_tags_none_is_looked_at(client):
    """A condition may be left out: the answer is the file, which is right for any."""
    path = "/static/favicon-32x32.png"
    etag = (await client.get(path)).headers["etag"]
    for tags, status in (("x, " * 300 + etag, 304), ("x, " * 400 + etag, 200)):
        assert (await client.get(path, headers={"if-none-match": tags})).status_code == status


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("name", ["a/" * 4000, "none", "", "%2e", "%2e/swagger-ui.css", "%2e%2e/docs.py", "%00"])
async def test_only_names_of_files_of_the_docs_are_looked_for(client, monkeypatch, name):
    monkeypatch.setattr("starlette.staticfiles.StaticFiles.lookup_path", raising(AssertionError("looked for")))
    answer = await client.get("/static/" + name)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("place", ["starlette.staticfiles.StaticFiles.lookup_path", "app.routes.docs._contents"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_file_of_the_docs_that_may_not_be_read_is_none(client, monkeypatch, caplog, place, method):
    monkeypatch.setattr(place, raising(PermissionError()))
    answer = await client.request(method, "/static/swagger-ui.css")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_error_of_the_frameworks_that_is_no_batchs_has_its_trace_in_the_log(client, monkeypatch, caplog):
    monkeypatch.setattr("starlette.staticfiles.StaticFiles.lookup_path", raising(HTTPException(418)))
    answer = await client.get("/static/swagger-ui.css")
    assert answer.status_code == 500
    (line,) = caplog.records
    assert line.getMessage() == f"request {answer.headers['x-request-id']} failed"
    assert line.exc_info[0] is HTTPException


async def test_who_does_not_read_a_file_of_the_docs_holds_a_piece_and_no_file():
    sent, reads_on = [], asyncio.Event()

    async def send(message):
        sent.append(message)
        await reads_on.wait()

    scope = {"type": "http", "method": "GET", "path": "/swagger-ui-bundle.js", "headers": []}
    reader = asyncio.ensure_future(WholeFiles(directory=STATIC)(scope, None, send))
    while not sent:
        await asyncio.sleep(0)
    opened = [file.resolve().name for file in Path("/proc/self/fd").iterdir()]
    assert opened
    assert "swagger-ui-bundle.js" not in opened
    reads_on.set()
    await reader
    pieces = [message["body"] for message in sent[1:]]
    assert max(map(len, pieces)) == RESPONSE_PIECE_BYTES
    assert b"".join(pieces) == (STATIC / "swagger-ui-bundle.js").read_bytes()


@pytest.mark.parametrize("part", ["bytes=0-3", "bytes=9-0", "bytes=999999999-", "oops", "bytes=0-0,2-2"])
async def test_files_of_the_docs_come_whole_whatever_part_is_asked_for(client, part):
    whole = await client.get("/static/favicon-32x32.png")
    answer = await client.get("/static/favicon-32x32.png", headers={"range": part})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert "accept-ranges" not in answer.headers


async def test_openapi_describes_all_three_body_forms(client):
    document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json", "image/png", "application/octet-stream"} <= content.keys()
    responses = document["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"} <= responses.keys()


async def test_the_examples_of_an_answer_are_of_no_model(client):
    """A service of three classes of its own would show the shipped model's."""
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    shipped = checkpoint.load(SHIPPED_WEIGHTS).metadata
    for schema, name in (("Prediction", "label"), ("ClassProbability", "label"), ("ModelName", "name")):
        assert not {*schemas[schema]["properties"][name]["examples"]} & {*shipped.classes, shipped.name}
    assert schemas["Prediction"]["properties"]["index"]["examples"] == [0]
