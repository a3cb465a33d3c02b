"""An environment for each peer, with the pinned versions of requirements/.

What the work itself needs (our own dependencies, torch's gigabytes among them) is not installed again: links to those
packages of the environment that runs this, and to no others, come last on each peer's path, so that its own win.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.peers.contenders import HERE, Contender


def make(contender: Contender, folder: Path) -> Path:
    """Make the contender's environment unless it is up to date; return its python.

    Raises CalledProcessError, also if something is lacking there, since its list or our own dependencies changed.
    """
    if not contender.packages:
        return Path(sys.executable)
    shared = _shared(folder)  # each time: the environment of this run may be another one
    environment = folder / contender.name
    python = environment / "bin" / "python"
    requirements = HERE / "requirements" / f"{contender.name}.txt"
    installed = environment / "installed.txt"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    if not installed.is_file() or installed.read_text() != requirements.read_text():
        print(f"installing {contender.title} into {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", environment], check=True)
        packages = next((environment / "lib").glob("python*")) / "site-packages"
        (packages / "zz_shared.pth").write_text(f"{shared}\n")
        # The lists are complete: pip need not look for what else a peer could want.
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--requirement", str(requirements)], check=True)
        installed.write_text(requirements.read_text())
    subprocess.run([*pip, "check"], check=True, stdout=sys.stderr)
    return python


def _shared(folder: Path) -> Path:
    """Return a folder of links to the packages that this project depends on, and to what those depend on."""
    project = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    names: dict[str, Path] = {}
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found = distribution(requirement.name)
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            names[name] = Path(str(found.locate_file(name))).resolve()
        for line in found.requires or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                wanted.append(needed)
    shared = folder.resolve() / "shared"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(parents=True)
    for name, path in names.items():
        (shared / name).symlink_to(path)
    return shared


def versions(contender: Contender, python: Path) -> dict[str, str]:
    """Return the versions of the contender's packages, asked in its own environment."""
    code = "import json, sys; from importlib.metadata import version as v; print(json.dumps([*map(v, sys.argv[1:])]))"
    result = subprocess.run([python, "-c", code, *contender.packages], check=True, capture_output=True, text=True)
    return dict(zip(contender.packages, json.loads(result.stdout), strict=True))
