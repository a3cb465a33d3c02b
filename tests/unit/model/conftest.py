from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torch_threads import one_torch_thread
from tests.unit.model.runs import trainer


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    """Train in float32 on every processor: some tests compare with what is computed otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.training.learner.has_fast_bfloat16", lambda _device: False)
        yield


@pytest.fixture(scope="module")
def narrow_stages() -> Iterator[None]:
    """Build every network with few channels: the same layers and names at a thousandth of the cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.architecture.STAGE_WIDTHS", (16, 16, 32, 32))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, narrow_stages: None, one_thread: None, float32: None) -> Path:
    """Train once for the tests of a file that look at what a run leaves."""
    out = tmp_path_factory.mktemp("run")
    trainer(out).run()
    return out
