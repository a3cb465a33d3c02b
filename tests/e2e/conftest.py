import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from app.backends.choice import open_backend
from app.engine import CheckpointEngine, load_engine
from app.settings import Settings
from model import checkpoint
from tests.checkpoints import write_turned
from tests.process import WEIGHTS, service_process

# A service of whose engine a test says something by these finds the rest out by itself.
ABOUT_THE_ENGINE = {"command", "device", "threads"}


@pytest.fixture(scope="session")
def tuning():
    """What an engine finds out by measurement when it starts, as settings: two seconds of it that need no repeating."""
    engine = load_engine(Settings())
    found = engine.tuning  # a closed engine has nothing to tell
    engine.close()
    return found


@pytest.fixture
def start(tmp_path, tuning):
    """Start services that end with the test."""
    stack = []

    def start_one(wait=True, **options):
        given = {} if options.keys() & ABOUT_THE_ENGINE else tuning
        context = service_process(tmp_path / f"serve{len(stack)}.log", **given | options)
        service = context.__enter__()
        stack.append(context)
        return service.wait_ready() if wait else service

    yield start_one
    for context in stack:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """One service for all tests that leave it as they found it; its engine is tuned by itself, as by default."""
    # A deadline that even a machine busy with something else keeps: what is late there is not wrong.
    with service_process(tmp_path_factory.mktemp("service") / "serve.log", timeout_ms=120_000) as service:
        yield service.wait_ready()
        assert service.stop() == 0
        assert "Traceback" not in service.log


@pytest.fixture
def start_faulty(start, tmp_path, monkeypatch):
    """Start services over an engine with faults."""
    monkeypatch.setenv("FAULTY_FOLDER", str(tmp_path))
    return partial(start, command=("tests.faulty_server",), timeout_ms=120_000)


@pytest.fixture
def start_two_faulty(start_faulty):
    """The same, of two HTTP processes each."""
    return partial(start_faulty, http_processes=2)


@pytest.fixture
def pool():
    """Threads for clients that wait."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """The shipped checkpoint, and one that takes every class for the next one."""
    return [WEIGHTS, write_turned(tmp_path_factory.mktemp("checkpoints") / "turned.safetensors")]


@pytest.fixture(scope="session")
def expected(checkpoints, examples):
    """What each version answers offline, float32 (10, classes) by version."""
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) for data in examples.values()])
    answers = {}
    for path in checkpoints:
        source = checkpoint.load(path)
        engine = CheckpointEngine(
            source, open_backend(source, Settings(device="cpu", precision="float32", threads=1)), (10,)
        )
        answers[source.version] = engine.run(np.ascontiguousarray(images))
    return answers
