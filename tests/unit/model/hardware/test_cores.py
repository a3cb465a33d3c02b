"""Cores are counted by what a container may use, in both versions of control groups."""

import os

import pytest

from model.hardware.cores import available_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
        ("100000 0", 8),
        ("nonsense", 8),
    ],
)
def test_a_limit_of_processor_time_counts_as_so_many_cores(tmp_path, limit, expected):
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert available_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", 8)])
def test_so_does_one_of_the_older_kind(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == expected


def test_without_control_groups_all_cores_of_the_process_count(tmp_path, monkeypatch):
    assert available_cores(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


@pytest.fixture
def unit(tmp_path):
    """The control group of a service of systemd, which sees those above it, and the file that names it."""
    (tmp_path / "self").write_text("1:name=systemd:/other\n0::/system.slice/resnet.service\n")
    group = tmp_path / "system.slice" / "resnet.service"
    group.mkdir(parents=True)
    return group


def test_the_limit_of_a_service_counts_which_is_not_the_machines(tmp_path, unit):
    (unit / "cpu.max").write_text("250000 100000\n")
    assert available_cores(tmp_path, tmp_path / "self") == 3


def test_of_the_groups_above_it_the_tightest_counts(tmp_path, unit):
    (unit / "cpu.max").write_text("max 100000\n")
    (unit.parent / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "cpu.max").write_text("600000 100000\n")
    assert available_cores(tmp_path, tmp_path / "self") == 2


def test_so_it_is_with_groups_of_the_older_kind(tmp_path):
    (tmp_path / "self").write_text("4:cpu,cpuacct:/system.slice/resnet.service\n3:cpuset:/elsewhere\n")
    group = tmp_path / "cpu" / "system.slice" / "resnet.service"
    group.mkdir(parents=True)
    for folder, quota in ((group, 400_000), (group.parent, 300_000), (tmp_path / "cpu", -1)):
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path, tmp_path / "self") == 3


@pytest.mark.parametrize("path", ["/docker/0a1b", "/../../0a1b", "/"])
def test_a_container_that_cannot_see_where_it_is_has_its_limit_at_the_top(tmp_path, path):
    (tmp_path / "self").write_text(f"0::{path}\n4:cpu:{path}\n")
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (tmp_path.parent / "cpu.max").write_text("100000 100000\n")
    assert available_cores(tmp_path, tmp_path / "self") == 2
