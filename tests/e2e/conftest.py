import pytest

from app.engine import load_engine
from app.settings import Settings
from tests.process import service_process

# A service of whose engine a test says something, by these or by what is measured, finds the rest out by itself.
ABOUT_THE_ENGINE = {"command", "device", "threads", "weights"}


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
        given = {} if options.keys() & {*ABOUT_THE_ENGINE, *tuning} else tuning
        context = service_process(tmp_path / f"serve{len(stack)}.log", **given, **options)
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
