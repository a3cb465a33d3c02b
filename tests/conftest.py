import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.ports import reserved_port

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """What takes minutes may take an hour on a slow machine."""
    for item in items:
        if item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_whoever_runs_the_tests():
    """RESNET_... of a shell would reach every Settings() here, and every process that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RESNET_")]:
            patch.delenv(name)
        yield


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def examples():
    return {path.stem: path.read_bytes() for path in sorted((ROOT / "examples").glob("*.png"))}


@pytest.fixture(scope="session")
def source():
    """The shipped checkpoint; nobody changes it."""
    from app.settings import SHIPPED_WEIGHTS
    from model import checkpoint

    return checkpoint.load(SHIPPED_WEIGHTS)


@pytest.fixture(scope="session")
def cifar10_root():
    """The folder that holds cifar-10-batches-py; tests that need all of it skip where it is absent."""
    candidates = [os.environ.get("CIFAR10_ROOT"), ROOT / "data", ROOT.parent / "shared" / "data"]
    for folder in candidates:
        if folder and (Path(folder) / "cifar-10-batches-py").is_dir():
            return Path(folder)
    pytest.skip("CIFAR-10 is not here: set CIFAR10_ROOT to the folder that holds cifar-10-batches-py")


@pytest.fixture
def own_port():
    """A port of 127.0.0.1 where nobody listens unless the test lets a server do so, and that nobody else gets."""
    with reserved_port() as reserved:
        yield reserved.getsockname()[1]


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Let the logging that a command sets up end with the block."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def warnings_of(caplog):
    """What was logged as a warning."""
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def resident_kb(array):
    """Return how much of an array's mapping is resident."""
    address, mapping = array.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            mapping = low <= address < high
        elif mapping and first == "Rss:":
            return int(line.split()[1])
    raise AssertionError("the array is nowhere")
