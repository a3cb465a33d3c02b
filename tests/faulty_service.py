"""What sets off the faults of `tests.faulty_server`, and how it is asked."""

import time

import httpx
from PIL import Image

from tests.conftest import encode, noise
from tests.faulty_server import DECODE_FAULTS, colour_of

PNG = {"content-type": "image/png"}
GOOD = encode(noise())


def bad(fault):
    return encode(Image.new("RGB", (32, 32), colour_of(fault)))


def undecodable(fault):
    return encode(Image.new("RGB", DECODE_FAULTS[fault]))


def ask(service, *pictures, **headers):
    files = [("file", one) for one in pictures]
    answer = httpx.post(f"{service.url}/predict", files=files, headers=headers, timeout=60)
    return answer.status_code, answer.json().get("type", "").rpartition(":")[2]


def hang(service, pool, tmp_path, picture=None):
    """Occupy the engine, or what the picture occupies, with one request until `release`; return its coming answer."""
    first = pool.submit(ask, service, picture or bad("hang"))
    while not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    return first
