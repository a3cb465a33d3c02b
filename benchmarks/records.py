"""Files of evidence: where they lie, and the machine that each names.

README.md and docs/ show those of this folder. `RECORDS=folder make bench` writes to another one, such as avx2/ beside
this file, which is for processors without more than AVX2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from model.hardware.machine import describe

FOLDER = Path(__file__).resolve().parent
MACHINES = {"AMX": FOLDER / "amx", "AVX512-BF16, VNNI": FOLDER, "AVX2": FOLDER / "avx2"}
RECORDS = Path(os.environ.get("RECORDS") or FOLDER).resolve()


def describe_apart() -> dict[str, Any]:
    """Return describe() of another process, so that torch is loaded there and not here."""
    code = "import json; from model.hardware.machine import describe; print(json.dumps(describe()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, check=True, stdout=subprocess.PIPE)
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def write(name: str, result: dict[str, Any]) -> None:
    """Write a file of evidence and print it."""
    text = json.dumps({"machine": describe(), **result}, indent=1)
    path = RECORDS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(text)


def read(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return a file of evidence, by default of FOLDER. Raises FileNotFoundError if it has not been made yet."""
    loaded: dict[str, Any] = json.loads(((folder or FOLDER) / name).read_text())
    return loaded


def newest(name: str) -> tuple[dict[str, Any], str]:
    """Return the newest file of a name, of any machine, and its path in the repository.

    For figures that hardly depend on the processor, such as memory. Of several of the same day, it is the first
    machine's. Raises FileNotFoundError if there is none.
    """
    records = by_machine(name)
    kind = max(records, key=lambda one: str(records[one]["machine"]["date"]))
    return records[kind], path_of(name, kind)


def of_version(name: str, version: str) -> tuple[dict[str, Any], str]:
    """Return the file of a name that is of a checkpoint's version, and its path: of FOLDER, else of any machine.

    For a checkpoint's accuracy and calibration. Raises FileNotFoundError if there is none.
    """
    records = by_machine(name)
    for kind in sorted(records, key=lambda kind: MACHINES[kind] != FOLDER):
        if records[kind]["version"] == version:
            return records[kind], path_of(name, kind)
    raise FileNotFoundError(f"{name} of version {version}")


def by_machine(name: str) -> dict[str, dict[str, Any]]:
    """Return the files of a name by kind of machine. Raises FileNotFoundError if there is none."""
    found = {kind: read(name, folder) for kind, folder in MACHINES.items() if (folder / name).is_file()}
    if not found:
        raise FileNotFoundError(name)
    return found


def cores_of(machine: dict[str, Any]) -> str:
    """Return the processor of a record's machine in words, such as "2 cores of an AMD EPYC (avx2, avx512f)"."""
    return f"{machine['cores']} cores of an {machine['processor']} ({', '.join(machine['instructions'])})"


def path_of(name: str, kind: str) -> str:
    """Return the path in the repository of a machine's file."""
    return (MACHINES[kind] / name).relative_to(FOLDER.parent).as_posix()
