"""Writes docs/targets.md: the targets of this service beside the figures in the files under benchmarks/.

Several machines have been measured; a target is met if all of them meet it. Targets for a GPU are judged by the GPU
that the record names, whatever processor is beside it and whichever folder it lies in.

python -m benchmarks.targets exits with 1 if a target is missed, with 2 if none is but some were not measured, or in too
few rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.judging import CUDA, MIN_ROUNDS, Target, Verdict, judged_gpu, rounds_of
from benchmarks.records import FOLDER, MACHINES, cores_of, read
from benchmarks.target_list import ON_A_GPU, TARGETS

PAGE = FOLDER.parent / "docs" / "targets.md"


def row(target: Target) -> tuple[Verdict, str]:
    """Return a target's verdict over all machines and its line of the table."""
    figures = [target.reached(folder) for folder in MACHINES.values()]
    verdicts = [target.judge(folder) for folder in MACHINES.values()]
    cells = [
        "" if figure is None else f"{figure:{target.form}}, {verdict.value}"
        for figure, verdict in zip(figures, verdicts, strict=True)
    ]
    if target.evidence == CUDA:
        of_gpus = zip(MACHINES.values(), cells, strict=True)
        cells = ["; ".join(f"{judged_gpu(read(CUDA, folder))}: {cell}" for folder, cell in of_gpus if cell)]
    order = (Verdict.MISSED, Verdict.TOO_FEW, Verdict.MET, Verdict.NOT_MEASURED)
    line = f"| {' | '.join([target.what, target.asked(), *cells, f'`{target.evidence}`'])} |"
    return next(verdict for verdict in order if verdict in verdicts), line


def _machine(folder: Path) -> str:
    """Return in words a machine's processor, and the days on which its figures were measured."""
    names = {target.evidence for targets in TARGETS.values() for target in targets} - {CUDA}
    records = [read(name, folder) for name in names if (folder / name).is_file()]
    found = [one["machine"] for one in records if "machine" in one]
    dates = sorted({machine["date"] for machine in found})
    whole = sorted({cores_of(machine) for machine in found})
    return f"{'; '.join(whole)}, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}" if found else "nothing measured"


def _records() -> list[str]:
    """Return the lines of a table of the files: the day and the commit of each machine's, and how many rounds it has.

    A file without a commit was made before records had one, or outside of a repository.
    """
    names = dict.fromkeys(target.evidence for targets in TARGETS.values() for target in targets)
    rows = [f"| `{name}` | {' | '.join(_origin(folder, name) for folder in MACHINES.values())} |" for name in names]
    return [f"| file | {' | '.join(MACHINES)} |", f"|---|{'---|' * len(MACHINES)}", *rows]


def _origin(folder: Path, name: str) -> str:
    """Return the day, the commit and the rounds of a file; "" if it is not there."""
    if not (folder / name).is_file():
        return ""
    one = read(name, folder)
    machine, rounds = one.get("machine", {}), rounds_of(one)
    parts = [machine.get("date"), machine.get("commit"), None if rounds is None else f"{rounds} rounds"]
    return ", ".join(part for part in parts if part)


def _gpus() -> list[str]:
    """Return a line for each GPU that was measured: its processor, the day, and whether the targets are for it."""
    records = [read(CUDA, folder) for folder in MACHINES.values() if (folder / CUDA).is_file()]
    return [
        f"- GPU: {one['machine']['gpu']} beside {cores_of(one['machine'])}, {one['machine']['date']}"
        + ("" if judged_gpu(one) else "; the targets are for another one")
        for one in records
    ]


def page() -> tuple[str, list[Verdict]]:
    """Return the page and every target's verdict."""
    verdicts: list[Verdict] = []
    tables = []
    for title, targets in TARGETS.items():
        found = [row(target) for target in targets]
        verdicts += [verdict for verdict, _ in found]
        columns = ["GPU"] if title == ON_A_GPU else [*MACHINES]
        lines = [
            f"| | target | {' | '.join(columns)} | file |",
            f"|---|---|{'---:|' * len(columns)}---|",
            *(line for _, line in found),
        ]
        tables += [f"## {title}", "\n".join(lines)]
    tables += ["## The files", "By day, commit and rounds:", "\n".join(_records())]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict.value.strip('*')}" for verdict in Verdict)
    head = [
        "# Targets and results",
        "Made by `make targets` from the files under `benchmarks/`; do not edit. It fails while a target is missed. "
        f"A target is met if every machine that was measured for it meets it, in {MIN_ROUNDS} rounds at least where it "
        "was measured in rounds.",
        f"{len(verdicts)} targets: {counts}.",
        "\n".join([*(f"- {name}: {_machine(folder)}" for name, folder in MACHINES.items()), *_gpus()]),
    ]
    return "\n\n".join([*head, *tables]) + "\n", verdicts


def main() -> int:
    """Write the page, print it, and return the exit status."""
    text, verdicts = page()
    PAGE.write_text(text)
    print(text)
    return 1 if Verdict.MISSED in verdicts else 2 if {Verdict.TOO_FEW, Verdict.NOT_MEASURED} & {*verdicts} else 0


if __name__ == "__main__":
    sys.exit(main())
