"""Thousands of damaged pictures and bodies, and schemathesis over the OpenAPI document, against the real process.

A few hundred cases by default. `make chaos` runs them all and writes benchmarks/reliability/fuzz.json. The seed stands
in each failure's text; FUZZ_SEED=... sets it, FUZZ_CASES=... the number of cases of each kind.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections import Counter

import pytest
from pydantic import ValidationError

from app.schemas import PredictResponse, Problem
from benchmarks.load import post
from benchmarks.records import write
from tests.conftest import ROOT
from tests.mutations import internal_text, mutated_body, mutated_picture
from tests.raw_client import ask_all

pytestmark = pytest.mark.e2e

CLIENTS = 8
DOCUMENTED = {200, 400, 413, 415, 422}
LIMIT_S = 2  # in a whole run: in a quick one the machine may be busy with something else
GROWTH_BYTES = {"quick": 200 << 20, "whole": 50 << 20}  # after so few cases the allocator has not seen all sizes yet
SCALES = ["quick", pytest.param("whole", marks=pytest.mark.chaos)]
CASES = {
    "pictures": {"quick": 300, "whole": 10_000},
    "bodies": {"quick": 150, "whole": 2_000},
    "schemathesis": {"quick": 60, "whole": 2_000},
}
KEY = "fuzz-key"


@pytest.fixture(scope="module")
def report():
    """What the whole runs measured, by name; written at their end."""
    measured = {}
    yield measured
    if measured:
        write("reliability/fuzz.json", {"command": "make chaos", **measured})


def seed_of(scale):
    return int(os.environ.get("FUZZ_SEED", 0 if scale == "quick" else secrets.randbelow(2**32)))


def cases_of(kind, scale):
    return int(os.environ.get("FUZZ_CASES", CASES[kind][scale]))


def serving(scale, request, **settings):
    """Return a service of its own for a whole run, the one of all tests for a quick one without settings."""
    if scale == "quick" and not settings:
        return request.getfixturevalue("service")
    # However slow the machine is, nothing is refused for that.
    return request.getfixturevalue("start")(timeout_ms=120_000, max_queue_s=120, **settings)


def fault_of(answer):
    """Return what is wrong with an answer to a damaged request, or None."""
    if answer.status not in DOCUMENTED:
        return f"status {answer.status}"
    try:
        if answer.status == 200:
            PredictResponse.model_validate_json(answer.body)
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert Problem.model_validate_json(answer.body).status == answer.status
    except (ValidationError, AssertionError) as error:
        return f"not what is documented: {error}"
    found = internal_text(answer.body)
    return found and f"tells of {found!r}"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("kind", "mutated"), [("pictures", mutated_picture), ("bodies", mutated_body)])
def test_damaged_requests_get_documented_answers_in_time(kind, mutated, scale, request, report):
    service = serving(scale, request)
    seed, cases = seed_of(scale), cases_of(kind, scale)
    statuses, mutators, faults, resident, seconds = Counter(), Counter(), [], [], {}

    def requests():
        for number in range(cases):
            name, content_type, body = mutated(seed, number)
            mutators[name] += 1
            if number % (cases // 100 + 1) == 0:
                resident.append(service.resident_bytes)
            yield (number, name), post("/predict", body, {"content-type": content_type})

    def take(key, answer):
        statuses[answer.status] += 1
        seconds[key] = answer.seconds
        if fault := fault_of(answer):
            faults.append((*key, fault))

    asyncio.run(ask_all(service.port, requests(), CLIENTS, take))
    # What single large pictures take for a moment is not growth; what is allocated once has been by the first quarter.
    quarter = len(resident) // 4
    slowest = max(seconds, key=seconds.get)
    warm, end = min(resident[quarter : 2 * quarter]), min(resident[-quarter:])
    again = f"python -m tests.mutations {'picture' if kind == 'pictures' else 'body'} {seed} NUMBER"
    if scale == "whole":
        report[kind] = {
            "seed": seed,
            "cases": cases,
            "clients": CLIENTS,
            "statuses": dict(sorted(statuses.items())),
            "mutators": dict(sorted(mutators.items())),
            "faults": len(faults),
            "slowest_s": round(seconds[slowest], 3),
            "slowest_case": slowest,
            "resident_mb_second_quarter": round(warm / 2**20, 1),
            "resident_mb_last_quarter": round(end / 2**20, 1),
            "traceback_in_log": "Traceback" in service.log,
        }
    assert not faults, f"{len(faults)} faults, among them {faults[:5]}; again: {again}"
    assert sum(statuses.values()) == cases
    assert statuses[200] > 0
    assert "Traceback" not in service.log, again
    if scale == "whole":
        assert seconds[slowest] < LIMIT_S, f"{slowest}; again: {again}"
    assert end - warm < GROWTH_BYTES[scale], again


@pytest.mark.parametrize(
    ("scale", "key"),
    [
        pytest.param("quick", KEY, id="quick"),  # all that there is without one, and `security`
        pytest.param("whole", None, id="whole-no-key", marks=pytest.mark.chaos),
        pytest.param("whole", KEY, id="whole-key", marks=pytest.mark.chaos),
    ],
)
def test_schemathesis_finds_nothing(key, scale, request, report, tmp_path):
    service = serving(scale, request, **({"api_key": key} if key else {}))
    seed = seed_of(scale)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--checks", "all"]
    command += ["--seed", str(seed), "--max-examples", str(cases_of("schemathesis", scale)), "--no-color"]
    command += ["--continue-on-failure", "--generation-database", "none", "--request-timeout", "120"]
    command += ["--max-response-time", str(LIMIT_S)] if scale == "whole" else []
    command += ["--report", "json", "--report-json-path", str(tmp_path / "report.json")]
    if key:
        command += ["--header", f"Authorization: Bearer {key}"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks",
        "SCHEMATHESIS_SEEN": str(tmp_path / "seen.json"),
    }
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"seed {seed}:\n{run.stdout}{run.stderr}"
    cases = json.loads((tmp_path / "report.json").read_text())
    seen = json.loads((tmp_path / "seen.json").read_text())
    if scale == "whole":
        report["schemathesis_with_key" if key else "schemathesis"] = {
            "seed": seed,
            "cases": cases["test_cases"]["generated"],
            "unique_failures": cases["test_cases"]["unique_failures"],
            "dropped_as_no_failures": cases["filtered"],
            **seen,
            "traceback_in_log": "Traceback" in service.log,
        }
        assert cases["test_cases"]["generated"] >= 2_000
    assert cases["operations"]["tested"] == 6
    assert set(seen["statuses"]) >= {"200", "422"}
    assert "Traceback" not in service.log


def test_every_answer_that_the_document_promises_is_in_it(service):
    """What schemathesis compares answers with: problems in every error, a key only where one is asked for."""
    document = service.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "security" not in operation
            for status, answer in operation["responses"].items():
                assert "x-request-id" in answer["headers"], (path, status)
                if status[0] in "45" and path in {"/predict", "/model"}:
                    assert set(answer["content"]) == {"application/problem+json"}, (path, status)
