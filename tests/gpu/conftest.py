"""What all tests on a GPU have."""

import pytest

from app.backends import cuda_lane

# Of cuDNN's search in each way to compute: "auto" may come to three precisions of two ways each, and a test has ten
# minutes.
SEARCH_S = 5.0


@pytest.fixture(autouse=True, scope="module")
def short_search():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_lane, "SEARCH_S", SEARCH_S)
        yield
