"""The OpenAPI page, with its script and style served from here: it works without internet."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse, PathLike
from starlette.types import Receive, Scope, Send

from app.errors import NotFound
from app.http.answering import RESPONSE_PIECE_BYTES

# Clients that have a file already name one entity tag. Thousands would be looked through in Python.
MAX_CONDITION_BYTES = 1024

STATIC = Path(__file__).resolve().parent.parent / "static"

router = APIRouter(include_in_schema=False)


def _page() -> HTMLResponse:
    """Return Swagger UI, with a policy that lets nothing run or load but what comes from here."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="ResNet image classification",
        swagger_js_url="/static/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger-ui.css",
        swagger_favicon_url="/static/favicon-32x32.png",
    )
    inline = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = " ".join(f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in inline)
    # Swagger UI sets styles from its script, and its style sheet has images in it.
    page.headers["content-security-policy"] = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Return the page."""
    return _page()


@cache
def _contents(path: str) -> bytes:
    return Path(path).read_bytes()


class FileFromMemory(FileResponse):
    """A file that is read once and then kept: clients that do not read their response would hold one open each."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it in pieces: such clients hold no more than one, either. Raises NotFound if it may not be read."""
        try:
            body = _contents(str(self.path))
        except PermissionError as error:
            raise NotFound from error
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for begin in range(0, len(body), RESPONSE_PIECE_BYTES):
            piece = body[begin : begin + RESPONSE_PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class WholeFiles(StaticFiles):
    """A folder's files, by the names in it at the start. They come whole: a server may ignore Range (RFC 9110, 14.2).

    Starlette answers what it does not understand of a Range in plain text, and sends as many parts as are asked for. It
    would look for any path, part by part, which takes time that grows with the square of the path's length.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory)
        self._names = frozenset(file.name for file in directory.iterdir())

    def get_path(self, scope: Scope) -> str:
        """See StaticFiles. The path is left as it came."""
        path: str = scope["path"]
        return path.removeprefix(scope.get("root_path", "")).removeprefix("/")

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """See StaticFiles."""
        return super().lookup_path(path) if path in self._names else ("", None)

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """See StaticFiles."""
        response = FileFromMemory(full_path, status_code=status_code, stat_result=stat_result)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        scope["headers"] = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"range" and len(value) <= MAX_CONDITION_BYTES  # whose condition is left out gets the file
        ]
        answer = await super().get_response(path, scope)
        del answer.headers["accept-ranges"]
        return answer


def mount_docs(app: FastAPI) -> None:
    """Add the page and its files."""
    app.include_router(router)
    app.mount("/static", WholeFiles(directory=STATIC), name="static")
