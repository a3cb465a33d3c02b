import pytest

from benchmarks.model_card import run_row, runs_of, shared
from model.training.recipe import Recipe


def test_what_the_card_says_of_every_run_is_so() -> None:
    first = {"batch_size": 128, "momentum": 0.9}
    runs = runs_of({"batch_size": 64, "momentum": 0.9, "init_from": {"recipe": first}})
    assert shared(runs, "momentum") == 0.9
    with pytest.raises(ValueError, match="batch_size"):
        shared(runs, "batch_size")


def test_the_card_says_of_a_run_that_it_was_averaged_with_the_one_before() -> None:
    done = Recipe().to_dict() | {"device": "2 CPU threads", "training_seconds": 60}
    assert "averaged" not in run_row(1, done)
    assert "averaged with the network of the run before, 30% of its weights (WiSE-FT)" in run_row(
        2, done | {"keep_initial": 0.3}
    )
    assert "averaged" not in run_row(1, {name: value for name, value in done.items() if name != "keep_initial"})
