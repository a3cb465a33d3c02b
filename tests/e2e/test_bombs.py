"""Decompression bombs, floods of tiny parts, deep JSON, huge headers and bodies without end, against the real process.

Each gets its answer, in 50 MB, and under `make chaos` in a second: in the default run the machine may be busy.
`make chaos` also writes benchmarks/reliability/bombs.json.
"""

import asyncio
import base64
import gzip
import zlib
from collections import Counter

import pytest
from PIL import Image

from benchmarks.load import multipart, post
from benchmarks.records import write
from tests.bombs import picture_bombs
from tests.conftest import encode
from tests.mutations import BOUNDARY, internal_text
from tests.raw_client import RawClient, ask_all

pytestmark = pytest.mark.e2e

JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
LIMIT_S = 1
EXTRA_BYTES = 50 << 20
SCALES = ["quick", pytest.param("whole", marks=pytest.mark.chaos)]

MALFORMED = (400, "malformed-request")
UNSUPPORTED = (415, "unsupported-media-type")


def get(path, headers=()):
    lines = [f"GET {path} HTTP/1.1", "host: localhost", *(f"{name}: {value}" for name, value in dict(headers).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def in_json(*values):
    return b'{"images": [' + b", ".join(values) + b"]}"


def field(name, count):
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nx\r\n'.encode()
    return part * count + f"--{BOUNDARY}--\r\n".encode()


def encoded_bodies():
    """The same compressed picture under many names of compression, most of them a megabyte from a kilobyte."""
    zeros = bytes(1 << 20)
    return {
        "gzip": gzip.compress(zeros),
        "deflate": zlib.compress(zeros),
        "br": b"\x8b\x07\x80\x03",
        "zstd": b"(\xb5/\xfd",
        "gzip, gzip": gzip.compress(gzip.compress(zeros)),
        "identity, gzip": gzip.compress(zeros),
        "GZIP": gzip.compress(zeros),
        "": zeros[:100],
    }


def bodies(picture):
    """Name -> (request, status, problem code)."""
    encoded = {
        f"content-encoding {name!r}": (post("/predict", body, PNG | {"content-encoding": name}), *UNSUPPORTED)
        for name, body in encoded_bodies().items()
    }
    twice = post("/predict", gzip.compress(picture), PNG | {"content-encoding": "identity"})
    return {
        "arrays, a million deep": (post("/predict", in_json(b"[" * 1_000_000), JSON), *MALFORMED),
        "objects, 200,000 deep": (post("/predict", b'{"images":' * 200_000, JSON), *MALFORMED),
        "escapes before the brackets": (post("/predict", in_json(b'"\\"' + b"[" * 1_000_000), JSON), *MALFORMED),
        "a number of a million digits": (post("/predict", in_json(b"1" * 1_000_000), JSON), *MALFORMED),
        "a string that never ends": (post("/predict", in_json(b'"' + b"A" * 1_000_000)[:-2], JSON), *MALFORMED),
        "a million empty strings": (post("/predict", in_json(*[b'""'] * 1_000_000), JSON), 413, "too-many-images"),
        "10,000 files": (post("/predict", field("file", 10_000), MULTIPART), 413, "too-many-images"),
        "10,000 other fields": (post("/predict", field("other", 10_000), MULTIPART), *MALFORMED),
        "10,000 nameless parts": (post("/predict", field("", 10_000), MULTIPART), *MALFORMED),
        "10,000 empty parts": (post("/predict", f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 10_000, MULTIPART), *MALFORMED),
        "a part's header of a megabyte": (post("/predict", field("n" * 1_000_000, 1), MULTIPART), *MALFORMED),
        "8000 semicolons in each part's name": (post("/predict", field(";" * 8000, 8), MULTIPART), *MALFORMED),
        "a million dashes": (post("/predict", b"-" * 1_000_000, MULTIPART), *MALFORMED),
        **encoded,
        "two content-encodings": (twice.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1), *UNSUPPORTED),
        "compressed transfer": (
            b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            *MALFORMED,
        ),
        "a bomb in base64": (
            post("/predict", in_json(b'"' + base64.b64encode(picture_bombs()["png of 60 MB of text"][0]) + b'"'), JSON),
            *(422, "undecodable-image"),
        ),
        "a bomb in multipart": (
            post("/predict", multipart([picture_bombs()["png of 400 million pixels"][0]], BOUNDARY), MULTIPART),
            *(422, "too-many-pixels"),
        ),
    }


def headers(picture):
    """Huge header values and many headers: what the parser refuses is 400, what reaches us gets its own status."""
    huge = "x" * (1 << 20)
    long = "9" * 5000
    return {
        "a header value of a megabyte": (post("/predict", picture, PNG | {"x-a": huge}), *MALFORMED),
        "10,000 headers": (post("/predict", picture, PNG | {f"x-{n}": "y" for n in range(10_000)}), *MALFORMED),
        "a path of a megabyte": (post("/" + huge, picture, PNG), *MALFORMED),
        "a path of 30,000 parts": (get("/static/" + "a/" * 30_000), *MALFORMED),
        "a path of 4000 parts": (get("/static/" + "a/" * 4000), 404, "not-found"),
        "a path of 2700 escapes": (get("/static/" + "%41" * 2700), 404, "not-found"),
        "32,000 parameters for a probe": (get("/livez?" + "a&" * 32_000), *MALFORMED),
        "8000 parameters for a probe": (get("/livez?" + "a&" * 4000), *MALFORMED),
        "64 parameters of a query": (post("/predict?" + "a&" * 63 + "top_k=1", picture, PNG), 200, None),
        "32,000 cookies": (get("/livez", {"cookie": "a;" * 32_000}), 200, None),
        "32,000 entity tags": (get("/static/favicon-32x32.png", {"if-none-match": "a," * 32_000}), 200, None),
        "32,000 options of a connection": (get("/livez", {"connection": "a," * 32_000}), 200, None),
        "32,000 options and an upgrade": (
            get("/livez", {"connection": "a," * 32_000 + "upgrade", "upgrade": "h2c"}),
            *(200, None),
        ),
        "a content length of 5000 digits": (
            post("/predict", b"", PNG | {"x": "y"}).replace(b"content-length: 0", f"content-length: {long}".encode()),
            *MALFORMED,
        ),
        "a content type of 50 kB": (post("/predict", picture, {"content-type": "x" * 50_000}), *UNSUPPORTED),
        "a boundary of 50 kB": (
            post("/predict", picture, {"content-type": f"multipart/form-data; boundary={'b' * 50_000}"}),
            *MALFORMED,
        ),
        "60,000 semicolons in a boundary": (
            post("/predict", picture, {"content-type": f'multipart/form-data; boundary="{";" * 60_000}"'}),
            *MALFORMED,
        ),
        "10,000 parameters": (
            post("/predict", picture, {"content-type": "multipart/form-data" + "; a=b" * 10_000}),
            *MALFORMED,
        ),
        "a deadline of 5000 digits": (post("/predict", picture, PNG | {"x-timeout-ms": long}), 422, "bad-parameter"),
        "a top_k of 5000 digits": (post(f"/predict?top_k={long}", picture, PNG), 422, "bad-parameter"),
        "6000 values of top_k": (post("/predict?" + "top_k=x&" * 6_000, picture, PNG), *MALFORMED),
        "64 values of top_k": (post("/predict?" + "&".join(["top_k=x"] * 64), picture, PNG), 422, "bad-parameter"),
        "a request id of 50 kB": (post("/predict", picture, PNG | {"x-request-id": "x" * 50_000}), 200, None),
        "a key of 50 kB": (post("/predict", picture, PNG | {"authorization": f"Bearer {'k' * 50_000}"}), 200, None),
    }


@pytest.fixture(scope="module")
def report():
    """What the whole runs measured, by name; written at their end."""
    measured = {}
    yield measured
    if measured:
        slowest = max(one["seconds"] for one in measured.values())
        most = max(one["extra_mb"] for one in measured.values())
        result = {"command": "make chaos", "bombs": len(measured), "slowest_s": slowest, "most_extra_mb": most}
        write("reliability/bombs.json", result | {"each": measured})


@pytest.mark.parametrize("scale", SCALES)
def test_bombs_get_their_answer_at_once_and_cost_little_memory(scale, request, examples, report):
    service = request.getfixturevalue("service") if scale == "quick" else request.getfixturevalue("start")()
    pictures = {
        name: (post("/predict", file, {"content-type": f"image/{kind}"}), status, code)
        for name, (file, kind, status, code) in picture_bombs().items()
    }
    good = post("/predict", examples["cat"], PNG)
    wrong = []

    async def scenario():
        client = RawClient(service.port)
        for _ in range(20):
            assert (await client.send(good)).status == 200
        for name, (request, *expected) in (pictures | bodies(examples["cat"]) | headers(examples["cat"])).items():
            service.forget_peak()
            before = service.resident_bytes
            answer = await client.send(request)
            extra = service.peak_bytes - before
            told = [answer.status, answer.problem_code]
            assert internal_text(answer.body) is None, name
            late = scale == "whole" and answer.seconds > LIMIT_S
            if told != expected or late or extra > EXTRA_BYTES:
                wrong.append((name, told, answer.seconds, extra >> 20))
            if scale == "whole":
                report[name] = {"status": told[0], "code": told[1], "seconds": round(answer.seconds, 3)}
                report[name] |= {"request_bytes": len(request), "extra_mb": round(extra / 2**20, 1)}
            assert (await client.send(good)).status == 200, name
        await client.close()

    asyncio.run(scenario())
    assert wrong == []
    assert "Traceback" not in service.log


def test_large_pictures_cut_short_take_no_more_memory_than_those_being_decoded(start):
    """Their pixels once waited for a garbage collection: 120 of them from 8 clients made 4 GB."""
    service = start(decode_threads=2)
    picture = encode(Image.new("RGB", (4000, 4000)))
    request = post("/predict", picture[: len(picture) // 2], PNG)
    statuses = Counter()
    service.forget_peak()
    before = service.resident_bytes
    asyncio.run(
        ask_all(service.port, ((n, request) for n in range(40)), 8, lambda _n, answer: statuses.update([answer.status]))
    )
    assert statuses == {422: 40}
    assert service.peak_bytes - before < 250 << 20  # two threads, each with 64 MB of pixels at a time
    assert service.resident_bytes - before < EXTRA_BYTES


ENDLESS_HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n"


def endless(piece):
    yield ENDLESS_HEAD
    while True:
        yield piece


ENDLESS = {
    "large chunks": (b"10000\r\n" + bytes(0x10000) + b"\r\n", 413, "body-too-large"),
    "tiny chunks": (b"1\r\nx\r\n" * 1000, 408, "body-too-slow"),
    "an extension": (b"1;" + b"x" * 1000, *MALFORMED),
    "a length": (b"0" * 1000, *MALFORMED),
    "trailers": (b"0\r\n" + b"x: y\r\n" * 1000, *MALFORMED),
}


def test_a_chunked_body_that_never_ends_is_cut_off(start, examples):
    service = start(body_timeout_s=1)
    good = post("/predict", examples["cat"], PNG)

    async def scenario():
        client = RawClient(service.port)
        assert (await client.send(good)).status == 200
        for name, (piece, *expected) in ENDLESS.items():
            service.forget_peak()
            before = service.resident_bytes
            answer = await asyncio.wait_for(client.send(endless(piece)), 60)
            assert [answer.status, answer.problem_code] == expected, name
            assert answer.headers["connection"] == "close", name
            assert service.peak_bytes - before < EXTRA_BYTES, name
            assert (await client.send(good)).status == 200, name
        await client.close()

    asyncio.run(scenario())
    assert service.stop() == 0
    assert "Traceback" not in service.log
