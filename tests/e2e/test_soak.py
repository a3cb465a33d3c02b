"""A short soak: its code, and that a reload and a restart under mixed traffic lose nothing."""

import asyncio

import pytest

from benchmarks.soak import Soak

pytestmark = pytest.mark.e2e


def test_a_short_soak_loses_nothing_answers_rightly_and_leaves_nothing_behind(tmp_path):
    # Memory has not settled after seconds; files, threads and tasks have.
    report = asyncio.run(Soak(tmp_path, cycle_s=3, cycles=4, growth=0.2).run())
    assert report["first_problems"] == []
    assert report["problems"] == 0
    assert report["verified_images"] > 0
    assert len(report["answers_by_version"]) == 2
    assert report["answers"]["leaving"] > 0
    assert [len(one["at_rest"]) for one in report["processes"]] == [2, 2]
    assert [one["event"] for one in report["events"]] == [
        *("reload", "reload"),
        *("SIGTERM", "ready again"),
        *("reload", "reload"),
    ]
