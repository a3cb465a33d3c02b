import json

import pytest

from benchmarks import machine, targets
from benchmarks.targets import Target, Verdict


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """Write a file of evidence, and keep the real page as it is."""
    monkeypatch.setattr(machine, "FOLDER", tmp_path)
    monkeypatch.setattr(targets, "PAGE", tmp_path / "targets.md")

    def write(name, **figures):
        about = {"processor": "P", "date": "2000-01-01"}
        (tmp_path / name).write_text(json.dumps({"machine": about, **figures}))

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
    assert [verdict for verdict, _ in targets.rows([LEAST, MOST])] == verdicts
    assert targets.main() == status
    page = targets.PAGE.read_text()
    assert "| rate | at least 0.90 |" in page
    assert "| time | at most 5.0 |" in page
    assert "P, 2000-01-01" in page


def test_every_target_can_be_judged_by_the_files_that_there_are():
    for several in targets.TARGETS.values():
        for target in several:
            assert (target.at_least is None) != (target.at_most is None)
            assert target.reached() is None or isinstance(target.reached(), int | float)


def test_the_best_peer_is_the_one_that_is_nearest():
    def load(ratio):
        return {"clients_64": {"ours_to_theirs_requests_per_s": ratio}}

    record = {"medians": {"ours": {}, "ours_in_processes": load(0.5), "x": load(1.7), "y": load(1.6)}}
    assert targets._beside_the_best(record) == 1.6


def test_the_page_is_that_of_the_files():
    assert targets.PAGE.read_text() == targets.page()[0], "make targets"
