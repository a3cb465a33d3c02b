"""Whether files have changed, by what the file system says of them."""

import os

import pytest

from app.file_watch import FileWatch


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys"
    path.write_text("one")
    return path


def exchange(path):
    """By another file of the same length and time."""
    other = path.with_name("other")
    other.write_text("two")
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.rename(path)


def write(path):
    path.write_text("two")
    os.utime(path, ns=(0, 1))


@pytest.mark.parametrize("change", [exchange, write, lambda path: path.unlink(), lambda path: path.chmod(0)])
def test_a_file_that_is_written_exchanged_removed_or_made_readable_has_changed(path, change):
    watch = FileWatch([path])
    assert not watch.changed()
    change(path)
    assert watch.changed()
    watch.remember()
    assert not watch.changed()


def test_one_that_is_not_there_yet_changes_when_it_comes(tmp_path):
    watch = FileWatch([tmp_path / "keys"])
    assert not watch.changed()
    (tmp_path / "keys").touch()
    assert watch.changed()
