"""The OpenAPI page, with its script and style served from here: it works without internet."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

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


class WholeFiles(StaticFiles):
    """Files that come whole: a server may ignore what part a request asks for (RFC 9110, 14.2).

    Starlette answers what it does not understand of that in plain text, and sends as many parts as are asked for.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        answer = await super().get_response(path, scope)
        del answer.headers["accept-ranges"]
        return answer


def mount_docs(app: FastAPI) -> None:
    """Add the page and its files."""
    app.include_router(router)
    app.mount("/static", WholeFiles(directory=STATIC), name="static")
