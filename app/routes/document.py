"""What the OpenAPI document says that FastAPI cannot see by itself: bodies, problems, headers and the key."""

from __future__ import annotations

from typing import Any

from fastapi import Security
from fastapi.security import HTTPBearer

from app.http.bodies import IMAGE_TYPES
from app.http.multipart import FIELD
from app.http.npy import NPY_TYPE
from app.schemas import Base64Images

Responses = dict[int | str, dict[str, Any]]

# Documents the key and does nothing else; `require_key` checks it.
KEY_IS_ASKED_FOR = Security(HTTPBearer(scheme_name="key", description="an API key", auto_error=False))


def _header(description: str, schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema}


TEXT = {"type": "string"}
ON_EVERY_ANSWER = {
    "x-request-id": _header("the request's own id or its trace's if it is a sane one, else a new one", TEXT)
}
RETRY_AFTER = {"retry-after": _header("seconds to wait before another try", {"type": "integer", "minimum": 1})}
WWW_AUTHENTICATE = {"www-authenticate": _header("Bearer", TEXT)}
SERVER_TIMING = {"server-timing": _header("milliseconds of decode, queue and inference", TEXT)}

# Not by `model=`: FastAPI would document application/json. The schema is in the document, as PredictResponse has it.
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
PROBLEMS: Responses = {
    status: {"description": description, "content": PROBLEM, "headers": ON_EVERY_ANSWER | headers}
    for status, description, headers in (
        (400, "Malformed request", {}),
        (401, "Missing or wrong key", WWW_AUTHENTICATE),
        (408, "The header or the body arrived too slowly", {}),
        (413, "Too many bytes or images", {}),
        (415, "Unsupported media type", {}),
        (422, "Not decodable, too many pixels, no usable array, or a bad parameter", {}),
        (429, "The queue is full, or the key has too many requests under way", RETRY_AFTER),
        (500, "A bug; the request id helps to find it", {}),
        (503, "Starting, draining or broken", RETRY_AFTER),
        (504, "The deadline passed", {}),
    )
}
ON_ANY_PATH: Responses = {200: {"headers": ON_EVERY_ANSWER}, **{status: PROBLEMS[status] for status in (400, 408, 500)}}

PREDICT_RESPONSES: Responses = {200: {"headers": ON_EVERY_ANSWER | SERVER_TIMING}, **PROBLEMS}
MODEL_RESPONSES: Responses = {**ON_ANY_PATH, **{status: PROBLEMS[status] for status in (401, 429, 503)}}

PLAIN_TEXT = {"content": {"text/plain": {"schema": TEXT}}, "headers": ON_EVERY_ANSWER}
METRICS_RESPONSES: Responses = {**ON_ANY_PATH, 200: PLAIN_TEXT, 503: PROBLEMS[503]}
NO = {"description": "No; the body says why", **PLAIN_TEXT, "headers": ON_EVERY_ANSWER | RETRY_AFTER}
PROBE_RESPONSES: Responses = {**METRICS_RESPONSES, 503: NO}

IMAGE = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
PREDICT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "array", "minItems": 1, "items": IMAGE["schema"]}},
            },
            "encoding": {FIELD: {"contentType": ", ".join(sorted(IMAGE_TYPES))}},
        },
        "application/json": {"schema": Base64Images.model_json_schema()},
        **dict.fromkeys([*sorted(IMAGE_TYPES), NPY_TYPE], IMAGE),
    },
}
