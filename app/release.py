"""Which release of the project this is, and from which revision of its sources."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

# Set by the image, from what it was built with; no setting, since nothing depends on it.
REVISION_VARIABLE = "RESNET_REVISION"


def release() -> str:
    """Return the installed project's version, "unknown" where it runs from a folder that nothing has installed."""
    try:
        return version("resnet-service")
    except PackageNotFoundError:
        return "unknown"


def revision() -> str:
    """Return the revision that an image was built from, as its builder called it, "unknown" where nobody has said."""
    return os.environ.get(REVISION_VARIABLE, "").strip() or "unknown"


def release_and_revision() -> str:
    """Return both in words, the revision if it is known."""
    return release() if revision() == "unknown" else f"{release()} (revision {revision()})"
