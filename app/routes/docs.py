"""The OpenAPI page, with its script and style served from here: it works without internet."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

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


def mount_docs(app: FastAPI) -> None:
    """Add the page and its files."""
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
