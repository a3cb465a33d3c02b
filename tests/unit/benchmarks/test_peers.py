import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from app.settings import Settings
from benchmarks.peers import __main__ as peers_main
from benchmarks.peers import report
from benchmarks.peers.contenders import CONTENDERS, HERE, OURS
from benchmarks.peers.engine import ENGINE_VARIABLE, NULL_PROBABILITIES, Classifier, EagerEngine, decode
from benchmarks.peers.server import ContenderError, check
from benchmarks.records import FOLDER, MACHINES
from model.hardware.cores import available_cores
from tests.http_server import http_server


def load(rate, cpu, errors=0):
    figures = {"requests_per_s": rate, "p50_ms": 1.0, "p99_ms": 2.0, "errors": errors}
    return figures | {"cpu_ms_per_request": cpu, "peak_memory_mb": 100}


def turn(rate, cpu, errors=0):
    return {"clients_1": load(rate, cpu), "clients_64": load(10 * rate, cpu, errors), "open_loop": load(5.0, cpu)}


@pytest.fixture
def record():
    about = {"title": "X", "settings": "some", "versions": {"x": "1.0"}}
    return {
        "engine": "null",
        "clients": [1, 64],
        "seconds": 4,
        "closed_loop": "wrk",
        "open_loop_share": 0.5,
        "machine": {"date": "2000-01-01", "processor": "P", "cores": 2, "torch": "2", "instructions": ["avx2"]},
        "contenders": {
            OURS: about | {"title": "this service", "settings": CONTENDERS[0].settings},
            "x": about,
            "broken": about | {"title": "B"},
        },
        "rounds": [
            {OURS: turn(100, 1.0), "x": turn(50, 2.0, errors=3), "broken": {"error": "B: exited with 1\nlog"}},
            {OURS: turn(300, 1.0), "x": turn(100, 4.0), "broken": {"error": "B: exited with 1\nlog"}},
            {OURS: turn(200, 1.0), "x": turn(400, 4.0), "broken": {"error": "B: exited with 1\nlog"}},
        ],
    }


def test_ratios_are_medians_of_the_rounds_own(record):
    assert report.ratio(record, "x", "clients_1", "requests_per_s") == 2.0  # of 2, 3 and 0.5
    medians = report.medians(record)
    assert medians[OURS]["clients_1"]["requests_per_s"] == 200
    assert medians["x"]["clients_64"]["ours_to_theirs_cpu_ms_per_request"] == 0.25
    assert "broken" not in medians


def test_the_table_has_a_row_for_each_that_was_measured(record):
    lines = report.table(record).splitlines()
    assert len(lines) == 2 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "| **this service** | 200 | 2,000 |" in lines[2]
    assert "| X 1.0 | 100 | 1,000 |" in lines[3]
    assert "| 3 |" in lines[3], "errors of all rounds"


@pytest.mark.parametrize(
    ("engine", "since", "told"),
    [
        ("null", {}, []),
        ("eager", {}, ["all peers (float32 not channels last)"]),
        ("eager", {"peers_max_batch": 32}, []),
    ],
)
def test_settings_other_than_todays_stand_below_the_table(record, engine, since, told):
    now = {contender.name: contender.settings for contender in CONTENDERS}
    changed = {
        "litserve": now["litserve"].replace("max_batch_size 32", "max_batch_size 8"),
        "torchserve": now["torchserve"].removesuffix("; 10 s to get used to each load"),
        "mosec": now["mosec"] + ", two stages",
        "bentoml": now["bentoml"].replace("(so that it refuses nothing)", "(or it would refuse)"),  # the same, in words
    }
    about = {"versions": {}}
    record["contenders"] = {
        name: about | {"title": name.title(), "settings": settings} for name, settings in (now | changed).items()
    }
    record["rounds"] = [dict.fromkeys(now, turn(100, 1.0))]
    lines = report.section(record | since | {"engine": engine}).splitlines()
    (note,) = [line for line in lines if line.startswith("Measured with")]
    told = [
        "Litserve (max_batch_size 8; today max_batch_size 32)",
        "Mosec (two stages; today without)",
        "Torchserve (without 10 s to get used to each load)",
        *told,
    ]
    assert note == f"Measured with other settings than today's: {', '.join(told)}."
    assert lines.index(note) > max(number for number, line in enumerate(lines) if line.startswith("| "))


def test_todays_settings_need_no_note(record):
    text = report.section(record)
    assert "Medians of 3 rounds of 4 s" in text
    assert "each 50% of what it answered" in text
    assert "Measured with" not in text


@pytest.mark.parametrize(("since", "end"), [({}, ", straight after that load"), ({"open_loop_warmed_up": True}, ".\n")])
def test_an_open_loop_without_a_warm_up_of_its_own_is_told(record, since, end):
    assert f"in the same round{end}" in report.section(record | since)


def test_the_page_is_that_of_the_files():
    assert report.page(report.load(FOLDER)) == (report.DOCS / "peers.md").read_text(), "benchmarks.peers.report.publish"


def test_every_round_begins_with_the_next_contender():
    rounds = [peers_main.rotated([*CONTENDERS[:3]], number) for number in range(4)]
    assert [one[0] for one in rounds] == [*CONTENDERS[:3], CONTENDERS[0]]
    assert all(sorted(one, key=CONTENDERS.index) == [*CONTENDERS[:3]] for one in rounds)


def test_few_rounds_are_no_record_to_show(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers_main.sys, "argv", ["peers", "--engine", "null", "--rounds", "4"])
    for shown in MACHINES.values():
        monkeypatch.setattr(peers_main, "RECORDS", shown)
        with pytest.raises(SystemExit):
            peers_main.parse()
    assert "are a trial" in capsys.readouterr().err
    monkeypatch.setattr(peers_main, "RECORDS", tmp_path)
    assert peers_main.parse().rounds == 4


def test_the_open_loop_asks_half_of_what_the_contender_itself_can_do(monkeypatch):
    """At half of our rate, whoever is slower than that shows an overload instead of latencies."""
    asked = []

    class LoadGenerator:
        def closed(self, server, clients, seconds):
            asked.append((clients, seconds))
            return {"requests_per_s": 10.0 * clients}

        def open(self, server, rate, seconds, seed):
            asked.append((f"{rate} a second", seconds))
            return {"requests_per_s": rate, "seed": seed, "seconds": seconds}

    monkeypatch.setattr(peers_main, "running", lambda *_: nullcontext())
    monkeypatch.setattr(peers_main, "check", lambda *_: 10)
    learns = replace(CONTENDERS[2], warm_up_s=7)
    turn = peers_main.TurnPlan("null", [1, 64], 5, LoadGenerator()).turn(learns, None, 3)
    assert turn["open_loop"] == {"offered_per_s": 320.0, "requests_per_s": 320.0, "seed": 3, "seconds": 5}
    assert asked == [(1, 7), (1, 5), (64, 7), (64, 5), ("320.0 a second", 7), ("320.0 a second", 5)]


def test_a_slow_server_is_loaded_for_longer(monkeypatch):
    """In five seconds it would answer a batch or two, and what it is at in the end would be a third of them."""
    asked = []

    class LoadGenerator:
        def closed(self, server, clients, seconds):
            asked.append(seconds)
            return {"requests_per_s": 64.0}

        def open(self, server, rate, seconds, seed):
            return {}

    monkeypatch.setattr(peers_main, "running", lambda *_: nullcontext())
    monkeypatch.setattr(peers_main, "check", lambda *_: 10)
    peers_main.TurnPlan("eager", [64], 5, LoadGenerator()).turn(CONTENDERS[2], None, 0)
    assert asked == [CONTENDERS[2].warm_up_s, 20]


def test_what_failed_is_said(record):
    text = report.section(record)
    assert "B failed in round 1: B: exited with 1" in text
    assert "log" not in text.replace("log.", "")


def test_the_chart_is_drawn(record, tmp_path):
    report.draw(record, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000


def test_every_peer_has_its_pins_and_its_module():
    for contender in CONTENDERS:
        assert (HERE / f"{contender.module}.py").is_file()
        if contender.packages:
            pins = (HERE / "requirements" / f"{contender.name}.txt").read_text().splitlines()
            assert all("==" in pin for pin in pins)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_eager_engine_is_laid_out_channels_last_and_has_all_cores(monkeypatch, precision):
    """Ray gives a replica as many threads as the cores that it reserves."""
    import app.commands.bench_contenders as ways

    made = []
    names = {f"eager {dtype}{layout}" for dtype in ("float32", "bfloat16") for layout in ("", " channels-last")}
    monkeypatch.setattr(ways, "contenders", lambda *_: {name: partial(made.append, name) for name in names})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(available_cores() + 1)
        EagerEngine(Settings(device="cpu", precision=precision))
        assert torch.get_num_threads() == available_cores()
    finally:
        torch.set_num_threads(before)
    assert made == [f"eager {precision} channels-last"]


@pytest.fixture
def ask(monkeypatch):
    """Start a server of the given answers, and check it as a null engine's."""
    monkeypatch.setenv(ENGINE_VARIABLE, "null")

    def run(answer):
        with http_server(lambda body, _headers: answer(body)) as url:
            return check(SimpleNamespace(url=url), "null")

    return run


def refuse_or(answer):
    return lambda body: (200, answer(body)) if body.startswith(b"\x89PNG") else (422, b"")


def test_a_contender_that_answers_rightly_passes(ask):
    classifier = Classifier()
    assert ask(refuse_or(lambda body: classifier.answers([decode(body)])[0])) == 10
    answer = json.loads(classifier.answers([np.zeros((3, 32, 32), np.uint8)])[0])
    assert [one["probability"] for one in answer["predictions"][0]["probabilities"]] == list(NULL_PROBABILITIES)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: (200, b"{}"), "what is no picture"),
        (lambda _: (500, b"broken"), "status 500: broken"),
    ],
    ids=["answers anything", "fails"],
)
def test_a_contender_that_does_not_is_named(ask, answer, message):
    with pytest.raises(ContenderError, match=message):
        ask(answer)


def test_other_probabilities_are_refused(ask):
    wrong = {"predictions": [{"probabilities": [{"label": "x", "index": n, "probability": 0.1} for n in range(10)]}]}
    with pytest.raises(ContenderError, match="other than the null engine"):
        ask(refuse_or(lambda _: json.dumps(wrong).encode()))


def test_this_service_in_eight_bit_integers_takes_part_where_the_peers_compute_in_floats_only():
    takes_part = {engine: [one.name for one in CONTENDERS if engine in one.engines] for engine in peers_main.CLIENTS}
    assert {engine for engine, names in takes_part.items() if "ours_int8" in names} == {"eager"}
    assert all({OURS, "mosec", "fastapi"} <= set(names) for names in takes_part.values())
