"""Where the control groups of this process lie, in both versions: what a container or a service is allowed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups_of(controller: str, cgroup: Path, membership: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of this process' groups and of those above them: of version 2, and of version 1.

    `controller` is a name of version 1, such as "cpu" or "memory"; `membership` is the file that says in which of the
    groups below `cgroup` the process is. A container sees its own group as the first.
    """
    unified = older = "/"
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                unified = path
            elif controller in controllers.split(","):
                older = path
    return _upwards(cgroup, unified), _upwards(cgroup / controller, older)


def _upwards(top: Path, path: str) -> list[Path]:
    """Return the folders of a group and of those above it. Of one that is out of sight, ../, only the first."""
    within = PurePosixPath(path.lstrip("/"))
    if ".." in within.parts:
        within = PurePosixPath()
    return [top / folder for folder in (within, *within.parents)]
