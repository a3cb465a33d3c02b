"""A file that whoever reads it waits for, to hold a process where it reads a checkpoint."""

import os
import select
from contextlib import contextmanager


class Fifo:
    """The writing end of a FIFO that somebody reads."""

    def __init__(self, file):
        self._file = file

    def is_left(self, within_s=60):
        """Whether nobody reads any more, or soon does not."""
        poll = select.poll()
        poll.register(self._file, 0)  # an error is reported in any case
        return bool(poll.poll(within_s * 1000))


@contextmanager
def read_by_somebody(path):
    """Open a FIFO that os.mkfifo has made, once somebody reads it."""
    file = os.open(path, os.O_WRONLY)
    try:
        yield Fifo(file)
    finally:
        os.close(file)
