"""The README's figures are those of the files that it names."""

import pytest

from benchmarks import readme_figures

MACHINE = {"cores": 2, "processor": "P", "instructions": ["i"], "torch": "2", "date": "2000-01-01"}


def test_the_readme_has_the_figures_of_the_evidence():
    text = readme_figures.OPERATIONS.read_text()
    assert f"<!-- open loop -->\n{readme_figures.open_loop()}\n<!-- end -->" in text
    text = readme_figures.PAGE.read_text()
    for name, part in readme_figures.PARTS.items():
        assert f"<!-- figures: {name} -->\n{part()}\n<!-- end -->" in text


def test_a_load_under_which_the_queue_grew_in_some_rounds_shows_their_range(monkeypatch):
    def load(p50):
        return {"offered_per_s": 9.0, "p50_ms": p50, "p99_ms": 2 * p50, "refused_share": 0.0, "requests_per_s": 9.0}

    rounds = [{"50%": load(steady), "95%": load(growing)} for steady, growing in ((10.0, 500.0), (12.0, 40.0))]
    record = {"machine": MACHINE, "rounds": rounds, "median": {"single": load(1.0), **rounds[0]}}
    monkeypatch.setattr(readme_figures, "read", lambda _name: record)
    text = readme_figures.open_loop()
    assert "| 50% of capacity | 9 | 10 | 20 | 0% |" in text
    assert "| 95% of capacity | 9 | 40 to 500 | 80 to 1000 | 0% |" in text
    assert [line[:9] for line in text.splitlines() if "still growing" in line] == ["At 95% th"]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"x": 101.0, "y": 90.0}, "the quickest, X, reaches 1.01 times this service's rate"),
        ({"x": 50.0, "y": 97.0}, "the quickest, Y, reaches 0.97 times this service's rate"),
    ],
)
def test_the_quickest_peer_with_the_same_engine_is_named_by_the_record(monkeypatch, rates, said):
    def load(rate):
        return {"requests_per_s": rate, "ours_to_theirs_requests_per_s": 100 / rate, "peak_memory_mb": 1}

    every = {"ours": 100.0, "ours_in_processes": 200.0, **rates}
    record = {
        "machine": MACHINE,
        "clients": [1, 64],
        "contenders": {name: {"title": name.upper()} for name in every},
        "medians": {name: {"clients_1": load(10.0), "clients_64": load(rate)} for name, rate in every.items()},
    }
    monkeypatch.setattr(readme_figures, "read", lambda _name: record)
    assert said in readme_figures.beside_peers()
