import pytest
import torch

from model.stored import StoredTensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_a_tensor_comes_back_as_it_was_and_as_numbers(dtype):
    values = (torch.rand(5, 3, 2) * 200).to(dtype)
    stored = StoredTensor.of(values.transpose(0, 1))
    assert torch.equal(stored.tensor(), values.transpose(0, 1))
    assert stored.tensor().dtype == dtype
    wanted = values.transpose(0, 1).to(torch.uint8 if dtype is torch.uint8 else torch.float32).numpy()
    assert stored.array().dtype == wanted.dtype
    assert (stored.array() == wanted).all()


def test_what_is_not_finite_stays_so():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values = StoredTensor.of(torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0], dtype=dtype)).array()
        assert str(values.tolist()) == "[inf, -inf, nan, -0.0]"


def test_another_type_is_no_weight():
    stored = StoredTensor.of(torch.zeros(2, dtype=torch.int64))
    assert not stored.is_float
    with pytest.raises(ValueError, match="not stored as int64"):
        stored.array()
