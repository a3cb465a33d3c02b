"""`make sbom` with and without a Docker engine, beside a stand-in for `docker`."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.conftest import ROOT

ANSWERS = """#!/bin/sh
echo "$@" >>asked
if [ "$1" = run ]; then echo '{"bomFormat": "CycloneDX"}'; fi
"""
BREAKS = """#!/bin/sh
[ "$1" != run ]
"""
NO_ENGINE = """#!/bin/sh
exit 1
"""


def sbom(folder: Path, docker: str) -> subprocess.CompletedProcess[str]:
    (folder / "docker").write_text(docker)
    (folder / "docker").chmod(0o755)
    shutil.copy(ROOT / "pyproject.toml", folder)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = [ROOT / "tools" / "sbom.sh", Path(sys.executable).parent]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_is_the_one_in_the_image_just_built(tmp_path: Path) -> None:
    assert sbom(tmp_path, ANSWERS).returncode == 0
    assert json.loads((tmp_path / "sbom.cdx.json").read_text()) == {"bomFormat": "CycloneDX"}
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["info", "compose build", "run --rm --entrypoint cat resnet-service /srv/resnet/sbom.cdx.json"]


def test_an_image_without_it_is_an_error_and_leaves_no_list(tmp_path: Path) -> None:
    assert sbom(tmp_path, BREAKS).returncode == 1
    assert not (tmp_path / "sbom.cdx.json").exists()


def test_without_an_engine_it_is_of_the_environment_and_says_so(tmp_path: Path) -> None:
    done = sbom(tmp_path, NO_ENGINE)
    assert done.returncode == 0, done.stderr
    assert "no Docker engine answers" in done.stdout
    listed = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    assert listed["metadata"]["component"]["name"] == "resnet-service"
    versions = {one["name"]: one["version"] for one in listed["components"]}
    for name in ("torch", "fastapi", "pillow"):
        assert versions[name] == version(name)
