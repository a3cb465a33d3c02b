"""`resnet bench engine` on a toy network: what it prints, what it keeps, and what it says of bad arguments."""

import json

import numpy as np
import pytest
import torch

from app.cli import build_parser
from app.commands import bench_contenders, bench_measurement, bench_report
from model.hardware import machine


def bench(*arguments):
    parsed = build_parser().parse_args(["bench", "engine", *map(str, arguments)])
    return parsed.run(parsed)


def test_the_engine_and_a_contender_are_measured_and_kept(toy_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(bench_measurement.PRODUCT_SIDE, "cpu", 256)
    monkeypatch.setattr(bench_measurement, "SLOW_S", 60.0)  # a machine busy with something else leaves none out either
    monkeypatch.setattr(machine, "describe", lambda device: {"described": device})
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
    assert [len(times) for times in kept["rounds_s"]["engine"]["3"]] == [5, 5]
    assert kept["command"] == (
        f"resnet bench engine --weights {toy_weights} --device cpu --sizes 1,3 --rounds 2 --json {file} "
        "--only 'eager float32' 'OpenVINO int8'"
    )
    assert kept["machine"] == {"described": "cpu"}, "what was computed on"
    assert kept["engine_is"] in {"OpenVINO float32", "OpenVINO bfloat16", "MNN float32"}
    assert min(kept["ceiling"]["images_per_s"].values()) > 0  # with AMX float32 may count as imitated
    printed = capsys.readouterr().out
    assert "the engine reaches, of the higher one," in printed
    assert f"the engine is {kept['engine_is']}, its precision auto" in printed, "which of them that came to"
    assert [kept["contenders"]["engine"][size]["calls"] for size in ("1", "3")] == [2 * 16, 2 * 5]
    assert "fewer than 100 calls is the slowest" in printed


def test_what_the_processor_only_imitates_is_left_out_with_a_reason(toy_weights, tmp_path, capsys, monkeypatch):
    """Such as bfloat16 with AVX2 alone, where one product of 4096 x 4096 takes ten minutes."""
    clock = [0.0]
    monkeypatch.setattr(bench_measurement.time, "perf_counter", lambda: clock[0])

    def contender(seconds):
        def run(images):
            clock[0] += seconds * len(images)
            return np.full((len(images), 4), 0.25, np.float32)

        return lambda: run

    made = {"engine": contender(0.1), "slow": contender(0.5), "hopeless": contender(1.01)}
    monkeypatch.setattr(bench_contenders, "contenders", lambda *_: made)
    sides = []

    def product_s(matrix, _times=1):
        sides.append((str(matrix.dtype), len(matrix)))
        return 4.1 if matrix.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(bench_measurement, "_product_s", product_s)
    monkeypatch.setitem(bench_measurement.PRODUCT_SIDE, "cpu", 600)
    file = tmp_path / "engine.json"
    assert bench("--weights", toy_weights, "--sizes", "1,2", "--rounds", "1", "--json", file) == 0
    kept = json.loads(file.read_text())
    assert set(kept["contenders"]) == {"engine", "slow"}
    assert kept["contenders"]["slow"]["1"]["engine_over_this"] == 5.0
    assert kept["left_out"] == {"hopeless": "1.0 s for a batch of 1, 10 times the engine's"}
    assert set(kept["ceiling"]["images_per_s"]) == {"float32"}
    assert ("torch.bfloat16", 600) not in sides
    assert "left out: hopeless" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(toy_weights, tmp_path):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        bench("--weights", toy_weights, "--json", tmp_path)


def test_a_ceiling_of_milliseconds_is_neither_rounded_away_nor_one_products_start(monkeypatch):
    """On a GPU: ten products of 8192 x 8192 in a row, timed together."""
    products = []

    class Matrix:
        def __matmul__(self, other):
            clock[0] += 0.00123456
            products.append(other)
            return {(0, 0): 0.0}

    clock, sides = [0.0], []
    monkeypatch.setattr(bench_measurement.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(
        bench_measurement, "_matrices", lambda _device, side: sides.append(side) or {"bfloat16": Matrix()}
    )
    _, seconds = bench_measurement.measure({"engine": len}, np.zeros(0), (), 1, "cuda:1")
    assert seconds == {"bfloat16": [0.001235]}
    assert (sides, len(products)) == ([8192], 10 + 1), "the first one does not count"
    ceiling = bench_report.ceiling_of({"bfloat16": [0.001]}, 8192, 10**9)
    assert ceiling["images_per_s"]["bfloat16"] == pytest.approx(2 * 8192**3 / 0.001 / 10**9, abs=0.1)


@pytest.mark.parametrize(("device", "calls"), [("cuda:1", [30, 30]), ("cpu", [16, 2])])
def test_a_turn_on_a_gpu_lasts_long_enough_for_its_clock_to_rise(monkeypatch, device, calls):
    """Sixteen images, or two batches, are through there at once."""
    clock = [0.0]

    def run(_images):
        clock[0] += 0.0100001

    monkeypatch.setattr(bench_measurement.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_measurement.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(bench_measurement, "_matrices", lambda _device, _side: {})
    seconds, _ = bench_measurement.measure({"engine": run}, np.zeros((8, 1)), (1, 8), 1, device)
    assert [len(seconds["engine"][size][0]) for size in (1, 8)] == calls


def test_the_record_of_a_turn_of_many_calls_is_their_mean_and_gives_the_same_ratio():
    many, few = [0.001] * 60 + [0.002] * 60, [0.003] * 100
    kept = bench_report.kept_times({"engine": {1: [few]}, "other": {1: [many]}})
    assert kept == {"engine": {1: [few]}, "other": {1: [[0.0015]]}}
    for other in (many, kept["other"][1][0]):
        assert bench_report.engine_speedup([other], [few]) == pytest.approx(0.5)


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


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_checkpoint_that_is_not_the_expected_one_is_not_measured(toy_weights, monkeypatch, how):
    flags = ["--weights-sha256", "0" * 64] if how == "flag" else []
    if how == "environment":
        monkeypatch.setenv("RESNET_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(SystemExit, match="is not the one expected"):
        bench("--weights", toy_weights, *flags)


@pytest.mark.parametrize("number", ["0", "-1", "\u00b3", "many"])
def test_rounds_that_are_no_number_of_rounds_are_refused_in_a_line(number, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["bench", "engine", f"--rounds={number}"])
    assert stopped.value.code == 2
    assert f"argument --rounds: expected a whole number from 1 to 1000000000, not {number!r}" in capsys.readouterr().err
