from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    """Train in float32 on every processor: some tests compare with what is computed otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.learner.has_fast_bfloat16", lambda _device: False)
        yield


@pytest.fixture(scope="module")
def narrow_stages() -> Iterator[None]:
    """Build every network with few channels: the same layers and names at a thousandth of the cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.resnet.STAGE_WIDTHS", (16, 16, 32, 32))
        yield
