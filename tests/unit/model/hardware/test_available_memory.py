"""Memory is counted by what the machine and a container have left, in both versions of control groups."""

from pathlib import Path

import pytest

from model.hardware.available_memory import available_memory, bytes_in_words

MIB = 1 << 20


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:  {9000 << 10} kB\nMemFree:  {10 << 10} kB\nMemAvailable:  {800 << 10} kB\n")
    return path


def unified(group: Path, limit: str, used: int, cache: int = 0, active: int = 0, slab: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used * MIB}\n")
    stat = {"anon": 5, "file": 7, "inactive_file": cache, "active_file": active, "slab_reclaimable": slab}
    (group / "memory.stat").write_text("".join(f"{name} {number * MIB}\n" for name, number in stat.items()))


def test_without_limits_it_is_what_the_machine_has_left(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "none", meminfo) == 800 * MIB
    unified(tmp_path, "max", 100)
    assert available_memory(tmp_path, tmp_path / "none", meminfo) == 800 * MIB


@pytest.mark.parametrize(
    ("limit", "used", "caches", "left"),
    [
        (500, 100, (0, 0, 0), 400),
        (500, 450, (300, 0, 0), 350),
        (500, 450, (100, 200, 0), 350),
        (500, 450, (100, 200, 30), 380),
        (2000, 100, (0, 0, 0), 800),
        (500, 600, (0, 0, 0), 0),
    ],
)
def test_a_containers_limit_counts_and_files_in_its_cache_make_room(
    tmp_path: Path, meminfo: Path, limit: int, used: int, caches: tuple[int, int, int], left: int
) -> None:
    """Also those read lately, such as the pictures that were just looked at, and the kernel's own caches."""
    unified(tmp_path, str(limit * MIB), used, *caches)
    assert available_memory(tmp_path, tmp_path / "none", meminfo) == left * MIB


def test_of_a_service_and_the_groups_above_it_the_one_with_least_left_counts(tmp_path: Path, meminfo: Path) -> None:
    (tmp_path / "self").write_text("0::/system.slice/training.service\n")
    unified(tmp_path / "system.slice" / "training.service", str(700 * MIB), 100)
    unified(tmp_path / "system.slice", str(900 * MIB), 700)
    assert available_memory(tmp_path, tmp_path / "self", meminfo) == 200 * MIB


def test_so_it_is_with_groups_of_the_older_kind(tmp_path: Path, meminfo: Path) -> None:
    (tmp_path / "self").write_text("4:memory:/training\n3:cpuset:/elsewhere\n")
    for group, limit, used in (("training", 300 * MIB, 200 * MIB), ("", 2**63 - 4096, 5000 * MIB)):
        folder = tmp_path / "memory" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"inactive_file 1\ntotal_inactive_file {50 * MIB}\nactive_file 1\ntotal_active_file {20 * MIB}\n"
        )
    assert available_memory(tmp_path, tmp_path / "self", meminfo) == 170 * MIB


@pytest.mark.parametrize(("processes", "share"), [("1", 800), ("4", 200), ("", 800), ("many", 800), ("0", 800)])
def test_each_process_of_torchrun_has_its_share(
    tmp_path: Path, meminfo: Path, monkeypatch: pytest.MonkeyPatch, processes: str, share: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert available_memory(tmp_path, tmp_path / "none", meminfo) == share * MIB


def test_where_there_is_no_proc_all_memory_counts_or_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (tmp_path, tmp_path / "none", tmp_path / "none")
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory(*nowhere) == 4_096_000

    def unknown(name: str) -> int:
        raise ValueError(f"unrecognized configuration name: {name}")

    monkeypatch.setattr("os.sysconf", unknown)
    assert available_memory(*nowhere) is None


def test_bytes_are_told_in_units_that_suit_them() -> None:
    assert (bytes_in_words(3 * 2**30 // 2), bytes_in_words(300 * MIB)) == ("1.5 GiB", "300.0 MiB")
