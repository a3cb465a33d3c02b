import sys

import numpy as np
import pytest

from model.file_backed import FileBacked, room_for
from tests.conftest import resident_kb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")


def test_arrays_take_memory_only_while_they_are_read():
    values = np.random.default_rng(0).standard_normal((3, 1 << 20)).astype(np.float32)
    file = FileBacked(room_for(values.nbytes) + room_for(4))
    array, scalar = file.put(values), file.put(np.ones((), np.float32))
    assert resident_kb(array) >= values.nbytes >> 10
    file.let_go()
    assert resident_kb(array) == 0
    np.testing.assert_array_equal(array, values)
    assert scalar == 1
    assert array.ctypes.data % 64 == scalar.ctypes.data % 64 == 0


def test_arrays_outlive_the_object_that_made_them():
    array = FileBacked(64).put(np.arange(16, dtype=np.float32))
    np.testing.assert_array_equal(array, np.arange(16))


def test_more_than_there_is_room_for_is_refused():
    file = FileBacked(64)
    with pytest.raises(ValueError):  # noqa: PT011 - NumPy's words
        file.put(np.zeros(17, np.float32))


def test_a_full_disk_is_an_error_at_once():
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the file system
        FileBacked(1 << 60)
