import pytest

from benchmarks.model_card import runs_of, shared


def test_what_the_card_says_of_every_run_is_so() -> None:
    first = {"batch_size": 128, "momentum": 0.9}
    runs = runs_of({"batch_size": 64, "momentum": 0.9, "init_from": {"recipe": first}})
    assert shared(runs, "momentum") == 0.9
    with pytest.raises(ValueError, match="batch_size"):
        shared(runs, "batch_size")
