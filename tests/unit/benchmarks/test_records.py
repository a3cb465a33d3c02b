"""Which of several machines' records is shown."""

import json

import pytest

from benchmarks import records


@pytest.fixture
def machines(monkeypatch, tmp_path):
    """Three machines, the table's own in the middle; write their versions of one record."""
    own = tmp_path / "benchmarks"
    folders = {"first": own / "first", "own": own, "last": own / "last"}
    monkeypatch.setattr(records, "FOLDER", own)
    monkeypatch.setattr(records, "MACHINES", folders)

    def write(**versions):
        for kind, version in versions.items():
            folders[kind].mkdir(parents=True, exist_ok=True)
            (folders[kind] / "one.json").write_text(json.dumps({"version": version}))

    return write


def test_of_several_machines_with_the_same_checkpoint_the_tables_own_is_shown(machines):
    machines(first="a", own="a", last="b")
    assert records.of_version("one.json", "a") == ({"version": "a"}, "benchmarks/one.json")
    assert records.of_version("one.json", "b") == ({"version": "b"}, "benchmarks/last/one.json")
    with pytest.raises(FileNotFoundError, match="of version c"):
        records.of_version("one.json", "c")


def test_where_the_tables_own_has_none_another_ones_is(machines):
    machines(first="a", last="a")
    assert records.of_version("one.json", "a")[1] == "benchmarks/first/one.json"
