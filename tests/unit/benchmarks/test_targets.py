import json

import pytest

from benchmarks import target_list, targets
from benchmarks.judging import MIN_ROUNDS, Target, Verdict, rounds_of


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """Write a file of evidence of a machine, and keep the real page as it is."""
    monkeypatch.setattr(targets, "MACHINES", {"first": tmp_path / "first", "second": tmp_path / "second"})
    monkeypatch.setattr(targets, "PAGE", tmp_path / "targets.md")

    def write(name, folder="first", gpu=None, **figures):
        about = {"processor": "P", "cores": 2, "instructions": ["i", "j"]}
        about |= {"gpu": gpu, "date": f"2000-01-0{len(folder)}"}
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(json.dumps({"machine": about, **figures}))

    return write


LEAST = Target("rate", "rate.json", lambda one: one["rate"], at_least=0.9)
MOST = Target("time", "time.json", lambda one: one["ms"], at_most=5, form=".1f")


@pytest.mark.parametrize(
    ("rate", "ms", "status", "verdicts"),
    [
        (0.9, 5, 0, [Verdict.MET, Verdict.MET]),
        (0.89, 5, 1, [Verdict.MISSED, Verdict.MET]),
        (0.9, 5.1, 1, [Verdict.MET, Verdict.MISSED]),
        (float("nan"), 5, 1, [Verdict.MISSED, Verdict.MET]),
        (0.95, None, 2, [Verdict.MET, Verdict.NOT_MEASURED]),
        (0.5, None, 1, [Verdict.MISSED, Verdict.NOT_MEASURED]),
    ],
)
def test_a_missed_target_fails_and_so_does_one_that_nothing_was_measured_for(
    evidence, monkeypatch, rate, ms, status, verdicts
):
    evidence("rate.json", rate=rate)
    if ms is not None:
        evidence("time.json", ms=ms)
    monkeypatch.setattr(targets, "TARGETS", {"All": [LEAST, MOST]})
    assert [targets.row(target)[0] for target in (LEAST, MOST)] == verdicts
    assert targets.main() == status
    page = targets.PAGE.read_text()
    assert "| rate | at least 0.90 |" in page
    assert "| time | at most 5.0 |" in page
    assert "- first: 2 cores of an P (i, j), 2000-01-05\n- second: nothing measured" in page


def test_what_a_record_does_not_hold_was_not_measured(evidence, monkeypatch, tmp_path):
    evidence("rate.json", other=1)
    evidence("engine.json", rounds_s={"engine": {"1": [[1]]}})
    (tmp_path / "first" / "time.json").write_text("{}")
    alone = Target("alone", "engine.json", target_list._of_the_fastest("1"), at_least=0.9)
    unknown = Target("of another size", "engine.json", target_list._of_the_fastest("8"), at_least=0.9)
    several = [LEAST, MOST, alone, unknown]
    monkeypatch.setattr(targets, "TARGETS", {"All": several})
    assert [targets.row(target)[0] for target in several] == [Verdict.NOT_MEASURED] * 4
    assert targets.main() == 2


@pytest.mark.parametrize(("first", "second", "verdict"), [(0.9, 0.9, Verdict.MET), (0.9, 0.8, Verdict.MISSED)])
def test_a_target_is_met_where_every_machine_measured_meets_it(evidence, monkeypatch, first, second, verdict):
    evidence("rate.json", rate=first)
    evidence("rate.json", "second", rate=second)
    monkeypatch.setattr(targets, "TARGETS", {"All": [LEAST]})
    assert targets.row(LEAST)[0] == verdict
    cells = f"| rate | at least 0.90 | 0.90, met | {second:.2f}, {verdict.value} | `rate.json` |"
    assert cells in targets.page()[0]


def test_every_target_can_be_judged_by_the_files_that_there_are():
    not_measured = []
    for target in (target for several in targets.TARGETS.values() for target in several):
        assert (target.at_least is None) != (target.at_most is None)
        reached = [target.reached(folder) for folder in targets.MACHINES.values()]
        assert all(figure is None or isinstance(figure, int | float) for figure in reached)
        if all(figure is None for figure in reached):
            not_measured.append(target.evidence)
    assert set(not_measured) <= {"engine_cuda.json"}  # else a record's key was renamed


def test_the_best_peer_is_the_one_that_is_nearest():
    def load(ratio):
        return {"clients_64": {"ours_to_theirs_requests_per_s": ratio}}

    record = {"medians": {"ours": {}, "ours_in_processes": load(0.5), "x": load(1.7), "y": load(1.6)}}
    assert target_list._beside_the_best(record) == 1.6


def test_the_fastest_other_way_is_any_in_floats_also_what_the_engine_itself_uses():
    rounds_s = {"engine": [[2, 2], [1, 1]], "A": [[3], [2]], "B": [[3], [1.8]], "B int8": [[1], [1]]}
    record = {"engine_is": "B", "rounds_s": {name: {"8": rounds} for name, rounds in rounds_s.items()}}
    assert target_list._of_the_fastest("8")(record) == (3 / 2 + 1.8 / 1) / 2


@pytest.mark.parametrize("rounds", [[{}] * 4, {"1": [{}] * 9, "64": [{}] * 4}])
def test_a_target_met_in_too_few_rounds_is_not_met_and_one_missed_in_them_is_missed(evidence, monkeypatch, rounds):
    evidence("rate.json", rate=0.95, rounds=[{}] * MIN_ROUNDS)
    evidence("rate.json", "second", rate=0.95, rounds=rounds)
    monkeypatch.setattr(targets, "TARGETS", {"All": [LEAST]})
    assert targets.row(LEAST)[0] == Verdict.TOO_FEW
    assert targets.main() == 2
    page = targets.PAGE.read_text()
    assert "| 0.95, met | 0.95, too few rounds | `rate.json` |" in page
    assert "| `rate.json` | 2000-01-05, 5 rounds | 2000-01-06, 4 rounds |" in page
    evidence("rate.json", "second", rate=0.85, rounds=rounds)
    assert targets.row(LEAST)[0] == Verdict.MISSED


def test_the_rounds_of_a_record_are_those_of_its_smallest_part():
    assert rounds_of({"rounds_s": {"engine": {"1": [[1.0]] * 9, "8": [[1.0]] * 3}, "A": {"1": [[1.0]] * 4}}}) == 3
    assert rounds_of({"shares_of_engine_rate": {"json": [0.9] * 9, "npy": [0.9] * 8}}) == 8
    assert rounds_of({"rate": 1.0}) is None


def judged(what, tmp_path):
    """Return what a target of the page makes of the files in a folder."""
    target = next(one for several in targets.TARGETS.values() for one in several if one.what == what)
    return target.judge(tmp_path / "first")


def test_one_request_lost_in_one_round_is_missed_and_so_is_a_deadline_not_kept(evidence, tmp_path):
    kept = [{"150%": {"failed": failed, "kept_deadline_share": 1.0}} for failed in (0, 0, 1)]
    turns = [*kept, {"150%": {"failed": 0, "kept_deadline_share": 0.9999}}, kept[0]]
    evidence("open_loop.json", rounds=turns, median={"150%": {"kept_deadline_share": 1.0}})
    assert judged("at 150%: failed or lost, in the worst round", tmp_path) == Verdict.MISSED
    share = "share of the requests not refused that were answered within their deadline"
    deadline = f"at 150%: {share}, in the worst round"
    assert judged(deadline, tmp_path) == Verdict.MISSED
    evidence("open_loop.json", rounds=kept[:1] * 5)
    assert judged("at 150%: failed or lost, in the worst round", tmp_path) == Verdict.MET
    assert judged(deadline, tmp_path) == Verdict.MET
    evidence("open_loop.json", rounds=[{"150%": {"failed": 0, "accepted_within_deadline_share": 1.0}}] * 5)
    assert judged(deadline, tmp_path) == Verdict.NOT_MEASURED, "that share was 1 whatever was lost"


@pytest.mark.parametrize(
    ("gpu", "verdict"),
    [
        ("NVIDIA H100 80GB HBM3", Verdict.MET),
        ("NVIDIA H200", Verdict.MET),
        ("NVIDIA A100-SXM4-80GB", Verdict.NOT_MEASURED),
        (None, Verdict.NOT_MEASURED),
    ],
)
def test_targets_of_a_gpu_are_judged_by_that_gpu_alone_and_not_as_a_processors(evidence, monkeypatch, gpu, verdict):
    engine = {"1": {"images_per_s": 2000.0, "p50_ms": 0.5}, "512": {"images_per_s": 160_000.0, "p50_ms": 3.2}}
    evidence(targets.CUDA, gpu=gpu, engine_is="CUDA graphs bfloat16", contenders={"engine": engine})
    monkeypatch.setattr(targets, "TARGETS", {targets.ON_A_GPU: targets.TARGETS[targets.ON_A_GPU], "Else": [LEAST]})
    page, verdicts = targets.page()
    assert verdicts == [verdict, verdict, Verdict.NOT_MEASURED]
    judged = verdict == Verdict.MET
    assert "| | target | GPU | file |" in page
    assert (f"| at least 150,000 | {gpu}: 160,000, met |" in page) == judged
    assert (f"| at most 0.70 | {gpu}: 0.50, met |" in page) == judged
    assert "- first: nothing measured\n- second: nothing measured\n" in page, "no record of these processors"
    assert f"- GPU: {gpu} beside 2 cores of an P (i, j), 2000-01-05" in page
    assert ("the targets are for another one" in page) != judged


@pytest.mark.parametrize(
    ("engine_is", "others", "verdicts"),
    [
        ("bfloat16", ["CUDA graphs bfloat16"], [Verdict.MISSED] * 2),  # the engine's own figures
        ("float16", ["CUDA graphs bfloat16"], [Verdict.MET] * 2),
        ("float32", [], [Verdict.NOT_MEASURED] * 2),
    ],
)
def test_targets_of_a_gpu_are_for_bfloat16_whatever_auto_came_to(evidence, tmp_path, engine_is, others, verdicts):
    slow = {"1": {"images_per_s": 100.0, "p50_ms": 9.0}}
    quick = {"1": {"images_per_s": 2000.0, "p50_ms": 0.5}, "512": {"images_per_s": 160_000.0, "p50_ms": 3.2}}
    contenders = {"engine": slow, **dict.fromkeys(others, quick)}
    evidence(targets.CUDA, gpu="NVIDIA H100", engine_is=f"CUDA graphs {engine_is}", contenders=contenders)
    whats = [target.what for target in targets.TARGETS[targets.ON_A_GPU]]
    assert [judged(what, tmp_path) for what in whats] == verdicts


def test_the_page_is_that_of_the_files():
    assert targets.PAGE.read_text() == targets.page()[0], "make targets"
