"""What `make audit` makes of pip-audit's answers: a fake one, since the real one needs the internet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.audit import judge

CHECKED = {"name": "torch", "version": "2.14.1", "vulns": []}
VULNERABLE = {
    "name": "pillow",
    "version": "13.0.0",
    "vulns": [
        {"id": "PYSEC-1", "fix_versions": ["13.0.1", "13.1"], "aliases": ["CVE-2"], "description": "long"},
        {"id": "GHSA-3", "fix_versions": [], "aliases": [], "description": ""},
    ],
}
UNKNOWN = {"name": "fastapi", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def report(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("text", "code", "lines"),
    [
        (report(CHECKED), 0, ["1 pinned versions checked, 0 known vulnerabilities"]),
        (
            report(CHECKED, VULNERABLE),
            1,
            [
                "pillow 13.0.0: PYSEC-1, CVE-2; fixed in 13.0.1, 13.1",
                "pillow 13.0.0: GHSA-3; fixed in no version yet",
                "2 pinned versions checked, 2 known vulnerabilities",
            ],
        ),
        (
            report(UNKNOWN, CHECKED),
            2,
            ["1 pinned versions checked, 0 known vulnerabilities", "1 packages WERE NOT CHECKED: fastapi"],
        ),
        (
            report(UNKNOWN, VULNERABLE),
            1,
            [
                "pillow 13.0.0: PYSEC-1, CVE-2; fixed in 13.0.1, 13.1",
                "pillow 13.0.0: GHSA-3; fixed in no version yet",
                "1 pinned versions checked, 2 known vulnerabilities",
                "1 packages WERE NOT CHECKED: fastapi",
            ],
        ),
        (report(UNKNOWN), 2, ["NOTHING WAS CHECKED: the source of advisories knows none of 1 packages"]),
        (report(), 2, ["NOTHING WAS CHECKED: the source of advisories knows none of 0 packages"]),
    ],
    ids=["clean", "found", "some unknown", "found and unknown", "all unknown", "empty"],
)
def test_verdict_and_words(text: str, code: int, lines: list[str]) -> None:
    assert judge(text) == (code, lines)


@pytest.mark.parametrize("text", ["", "No known vulnerabilities found", "[]", "{}", "null"])
def test_what_is_no_report_means_that_nothing_was_checked(text: str) -> None:
    code, (line,) = judge(text, "WARNING: of no interest\nERROR: connection refused\n")
    assert code == 2
    assert line.startswith("NOTHING WAS CHECKED")
    assert line.endswith("ERROR: connection refused")
    assert judge(text)[1][0].endswith("it gave no reason")


def audit(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run the command with `body` in pip-audit's place."""
    (folder / "pip_audit.py").write_text(body)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tools.audit"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_pinned_versions_are_asked_about(tmp_path: Path) -> None:
    body = "import json, sys, pathlib\nasked = [line.split('==')[0] for line in open(sys.argv[-1]) if '==' in line]\n"
    body += "print(json.dumps({'dependencies': [{'name': n, 'version': '1', 'vulns': []} for n in asked]}))"
    done = audit(tmp_path, body)
    pinned = sum("==" in line for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert (done.returncode, done.stdout) == (0, f"{pinned} pinned versions checked, 0 known vulnerabilities\n")


def test_a_source_that_cannot_be_reached_is_one_line_and_exit_2(tmp_path: Path) -> None:
    body = "import sys; sys.stderr.write('ERROR:pip_audit._cli:Could not connect to the service\\n'); sys.exit(1)"
    done = audit(tmp_path, body)
    assert done.returncode == 2
    assert done.stdout.startswith("NOTHING WAS CHECKED")
    assert done.stdout.endswith("Could not connect to the service\n")
    assert done.stdout.count("\n") == 1
