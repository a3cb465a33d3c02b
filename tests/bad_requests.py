"""Requests to /predict that are wrong, by name: body, headers, and the status and code of the answer."""

import json

from tests.bombs import png_without_pixels
from tests.conftest import encode, noise

PNG = {"content-type": "image/png"}
JSON = {"content-type": "application/json"}
JPEG = encode(noise(200, 200), "JPEG")

BAD = {
    "wrong file": (b"%PDF-1.7 not an image", PNG, 422, "undecodable-image"),
    "empty body": (b"", PNG, 400, "malformed-request"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], {"content-type": "image/jpeg"}, 422, "undecodable-image"),
    "text named png": (b"hello, I am a cat\n", PNG, 422, "undecodable-image"),
    "20000 x 20000 png": (png_without_pixels(20_000, 20_000), PNG, 422, "too-many-pixels"),
    "broken json": (b'{"images": [', JSON, 400, "malformed-request"),
    "bad base64": (json.dumps({"images": ["%%%"]}).encode(), JSON, 422, "bad-base64"),
    "deep json": (b'{"images":' + b"[" * 1_000_000, JSON, 400, "malformed-request"),
    "too many bytes": (bytes(17 << 20), PNG, 413, "body-too-large"),
}
