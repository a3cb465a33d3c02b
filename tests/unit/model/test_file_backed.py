import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from model.file_backed import FileBacked, file_with_room
from tests.conftest import resident_kb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")


def test_a_file_takes_memory_only_while_it_is_read():
    written = np.random.default_rng(0).integers(0, 256, 12 << 20, np.uint8)
    with file_with_room(written.nbytes) as file:
        file.write(written)
        file.flush()
        backed = FileBacked(file)
    np.testing.assert_array_equal(backed.values, written)
    assert resident_kb(backed.values) >= written.nbytes >> 10
    backed.let_go()
    assert resident_kb(backed.values) == 0
    np.testing.assert_array_equal(backed.values, written)


def test_room_is_claimed_at_once():
    with file_with_room(1 << 20) as file:
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20


def test_on_a_full_disk_it_lies_in_memory(monkeypatch):
    def no_room(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with file_with_room(4) as file:
        assert "memfd" in str(Path(f"/proc/self/fd/{file.fileno()}").readlink())
        file.write(b"1234")
        file.flush()
        assert bytes(FileBacked(file).values) == b"1234"


def test_an_empty_file_is_refused():
    with file_with_room(0) as file:
        file.truncate(0)
        with pytest.raises(ValueError, match="empty"):
            FileBacked(file)
