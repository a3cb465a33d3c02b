"""`resnet bench engine` on a toy network: what it prints, what it keeps, and what it says of bad arguments."""

import json

import pytest

from app.cli import build_parser


def bench(*arguments):
    parsed = build_parser().parse_args(["bench", "engine", *map(str, arguments)])
    return parsed.run(parsed)


def test_the_engine_and_a_contender_are_measured_and_kept(toy_weights, tmp_path, capsys):
    file = tmp_path / "engine.json"
    options = ["--weights", toy_weights, "--device", "cpu", "--sizes", "1,3", "--rounds", "2"]
    assert bench(*options, "--only", "eager float32", "OpenVINO int8", "--json", file) == 0
    kept = json.loads(file.read_text())
    assert set(kept["contenders"]) == {"engine", "eager float32", "OpenVINO int8"}
    for by_size in kept["contenders"].values():
        assert set(by_size) == {"1", "3"}
        assert all(
            figures["images_per_s"] > 0 and figures["p50_ms"] <= figures["p99_ms"] for figures in by_size.values()
        )
    assert [len(times) for times in kept["rounds_s"]["engine"]["3"]] == [10, 10]
    assert kept["ceiling"]["images_per_s"]["float32"] > 0
    printed = capsys.readouterr().out
    assert "the engine reaches, of the higher one," in printed


@pytest.mark.parametrize("arguments", [("--sizes", "0"), ("--sizes", "a"), ("--rounds", "0")])
def test_bad_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench(*arguments)
    assert stopped.value.code == 2
    assert "expected" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="cannot be read") as stopped:
        bench("--weights", tmp_path / "none.safetensors")
    assert "\n" not in str(stopped.value)
