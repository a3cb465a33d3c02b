import pytest

from tests.process import service_process


@pytest.fixture
def start(tmp_path):
    """Start services that end with the test."""
    stack = []

    def start_one(wait=True, **options):
        context = service_process(tmp_path / f"serve{len(stack)}.log", **options)
        service = context.__enter__()
        stack.append(context)
        return service.wait_ready() if wait else service

    yield start_one
    for context in stack:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """One service for all tests that leave it as they found it."""
    # A deadline that even a machine busy with something else keeps: what is late there is not wrong.
    with service_process(tmp_path_factory.mktemp("service") / "serve.log", timeout_ms=120_000) as service:
        yield service.wait_ready()
        assert service.stop() == 0
        assert "Traceback" not in service.log
