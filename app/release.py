"""Which release of the project this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Return the installed project's version, "unknown" where it runs from a folder that nothing has installed."""
    try:
        return version("resnet-service")
    except PackageNotFoundError:
        return "unknown"
