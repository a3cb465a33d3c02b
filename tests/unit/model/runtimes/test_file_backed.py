import errno
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from model.runtimes.file_backed import ALIGNMENT, FileBacked
from tests.conftest import resident_kb

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")


def numbers(count):
    return np.random.default_rng(count).random(count, np.float32)


@on_linux
def test_arrays_take_memory_only_while_they_are_read():
    written = numbers(3 << 20)
    backed = FileBacked(written.nbytes)
    kept = backed.keep(written)
    np.testing.assert_array_equal(kept, written)
    assert resident_kb(kept) >= written.nbytes >> 10
    backed.drop_pages()
    assert resident_kb(kept) == 0
    np.testing.assert_array_equal(kept, written)


def test_arrays_lie_beside_each_other_in_their_shapes_and_outlive_the_room():
    arrays = [numbers(count).reshape(shape) for count, shape in ((6, (2, 3)), (5, (5,)), (64, (4, 4, 2, 2)))]
    backed = FileBacked(FileBacked.size_of([array.nbytes for array in arrays]))
    kept = [backed.keep(array) for array in arrays]
    del backed
    for array, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(copy, array)
        assert copy.ctypes.data % ALIGNMENT == 0


def test_more_than_there_is_room_for_is_refused():
    backed = FileBacked(8)
    backed.keep(numbers(1))
    with pytest.raises(ValueError, match="no room"):
        backed.keep(numbers(2))


@on_linux
def test_room_on_the_disk_is_claimed_at_once_and_nothing_has_a_name(tmp_path, monkeypatch):
    claimed = []
    claim = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: claimed.append(arguments[1:]) or claim(*arguments))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(Path("/dev/fd").iterdir())
    backed = FileBacked(1 << 20)
    assert claimed == [(0, 1 << 20)]
    assert list(tmp_path.iterdir()) == []
    del backed
    assert sorted(Path("/dev/fd").iterdir()) == before


@pytest.mark.parametrize("missing", ["room", "folder"])
def test_without_room_or_folder_they_lie_in_memory(monkeypatch, missing):
    def fail(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if missing == "room":
        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    else:
        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    written = numbers(1000)
    backed = FileBacked(written.nbytes)
    kept = backed.keep(written)
    backed.drop_pages()
    np.testing.assert_array_equal(kept, written)
