"""Known vulnerabilities of the pinned versions, from pip-audit's source of advisories: `python -m tools.audit`.

Exit code 0: none is known of any of them. 1: some are. 2: none is known, but not everything could be checked, which is
no good news: pip-audit itself says "No known vulnerabilities found" of packages that its source does not know at all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
COMMAND = ["pip_audit", "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--requirement"]

CLEAN, FOUND, NOT_CHECKED = 0, 1, 2


def judge(report: str, complaint: str = "") -> tuple[int, list[str]]:
    """Return the exit code for what pip-audit wrote, and the lines to print.

    `report` is its JSON, or anything else if it broke off, and `complaint` what it said on standard error.
    """
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (complaint.strip().splitlines() or ["it gave no reason"])[-1]
        return NOT_CHECKED, [f"NOTHING WAS CHECKED: pip-audit could not ask its source of advisories: {reason}"]
    found = []
    for package in packages:
        for one in package.get("vulns", ()):
            names = ", ".join([one["id"], *one["aliases"]])
            fixed = ", ".join(one["fix_versions"]) or "no version yet"
            found.append(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return NOT_CHECKED, [f"NOTHING WAS CHECKED: the source of advisories knows none of {len(packages)} packages"]
    lines = [*found, f"{len(packages) - len(unknown)} pinned versions checked, {len(found)} known vulnerabilities"]
    if unknown:
        lines.append(f"{len(unknown)} packages WERE NOT CHECKED: {', '.join(unknown)}")
    return FOUND if found else NOT_CHECKED if unknown else CLEAN, lines


def main() -> int:
    """Run pip-audit on constraints.txt and print what came of it."""
    done = subprocess.run([sys.executable, "-m", *COMMAND, str(PINS)], capture_output=True, text=True, check=False)
    code, lines = judge(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
