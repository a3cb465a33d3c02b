"""The memory that all processes see: how much the engine has to do, and who is alive.

So an HTTP process refuses what there is no room for, and answers probes, without asking anybody. Each number is eight
aligned bytes that one process writes: there is nothing to lock, and two of them may be a moment apart. The exact bound
is the engine process' own, when the images get there. How many requests a key has under way, key_counts.py counts in a
part of it.
"""

from __future__ import annotations

import mmap
import os
import time

from app.batching.admission import Load
from app.processes.key_counts import WORD_BYTES, KeyTable, table_bytes

# Written by the engine process.
HEARTBEAT, QUEUED, RUNNING, RATE, MAX_BATCH, STALLED = range(6)
ENGINE_WORDS = 8

# For each HTTP process, eight words (a cache line) that it writes, and eight that the engine process writes.
ADMITTED, ALIVE, DECODER_STALLED, CONNECTIONS, ARRIVED = range(5)
RECEIVED = 8
PROCESS_WORDS = 16

# Every process says ten times a second that it is alive. An event loop that is merely busy is late by less than this.
BEAT_S = 0.1
LATE_S = 1.0


class SharedState:
    """The memory behind an open file; HTTP processes have the indices 0 to `processes` - 1."""

    def __init__(self, file: int, processes: int) -> None:
        self.file = file
        self.processes = processes
        memory = memoryview(mmap.mmap(file, _words_bytes(processes) + table_bytes(processes)))
        self._words = memory[: _words_bytes(processes)].cast("d")
        self.keys = KeyTable(memory[_words_bytes(processes) :], file, processes)
        self._first = [ENGINE_WORDS + PROCESS_WORDS * index for index in range(processes)]

    @classmethod
    def create(cls, processes: int) -> SharedState:
        """Return new memory, all zeros, with every process alive by now. Linux only."""
        file = os.memfd_create("resnet")
        os.ftruncate(file, _words_bytes(processes) + table_bytes(processes))
        shared = cls(file, processes)
        shared.publish(Load(0, 0, 0.0, 0), 0.0)
        for index in range(processes):
            shared.beat(index, 0.0)
        return shared

    # -- the engine process writes

    def publish(self, load: Load, stalled_s: float) -> None:
        """Say what the engine has to do, for how long it has made no progress, and that its process is alive."""
        words = self._words
        words[QUEUED], words[RUNNING], words[RATE], words[MAX_BATCH] = load
        words[STALLED] = stalled_s
        words[HEARTBEAT] = time.monotonic()

    def count_received(self, index: int, images: int) -> None:
        """Count images that have come from an HTTP process: the engine's queue has them from now on."""
        self._words[self._first[index] + RECEIVED] += images

    def forget(self, index: int) -> None:
        """Take out what an HTTP process that is no more had let in and under way."""
        self._words[self._first[index] + RECEIVED] = self._words[self._first[index] + ADMITTED]
        self.keys.forget(index)

    # -- an HTTP process writes

    def count_admitted(self, index: int, images: int) -> None:
        """Count images that are let in, to be decoded and sent; a negative number of those that will not be sent."""
        self._words[self._first[index] + ADMITTED] += images

    def beat(self, index: int, decoder_stalled_s: float) -> None:
        """Say that an HTTP process is alive, and for how long its decoder has made no progress."""
        first = self._first[index]
        self._words[first + DECODER_STALLED] = decoder_stalled_s
        self._words[first + ALIVE] = time.monotonic()

    def count_connections(self, index: int, connections: int, arrived: int) -> None:
        """Say how many connections an HTTP process has, and how many have ever been handed to it."""
        first = self._first[index]
        self._words[first + CONNECTIONS] = connections
        self._words[first + ARRIVED] = arrived

    # -- everybody reads

    def load(self) -> Load:
        """Return what the engine has to do, with what is being decoded or on its way as part of the queue."""
        words = self._words
        return Load(
            int(words[QUEUED]) + self.in_flight_images(), int(words[RUNNING]), words[RATE], int(words[MAX_BATCH])
        )

    def in_flight_images(self) -> int:
        """Return how many images are being decoded or on their way to the engine process."""
        words = self._words
        return max(0, int(sum(words[first + ADMITTED] - words[first + RECEIVED] for first in self._first)))

    @property
    def engine_stalled_s(self) -> float:
        """For how many seconds the engine has had work and made no progress."""
        return self._words[STALLED]

    @property
    def engine_silent_s(self) -> float:
        """For how many seconds nothing has been heard of the engine process."""
        return time.monotonic() - self._words[HEARTBEAT]

    def connections(self, index: int, handed: int) -> int:
        """Return how many connections an HTTP process has, or will have when all that were `handed` to it are there."""
        first = self._first[index]
        return int(self._words[first + CONNECTIONS] + handed - self._words[first + ARRIVED])

    def stalled_s(self, index: int) -> float:
        """Return for how many seconds an HTTP process, or every one of its decoding threads, has made no progress."""
        return max(self.silent_s(index), self.decoder_stalled_s(index))

    def silent_s(self, index: int) -> float:
        """Return for how many seconds nothing has been heard of an HTTP process."""
        return time.monotonic() - self._words[self._first[index] + ALIVE]

    def decoder_stalled_s(self, index: int) -> float:
        """Return for how many seconds every decoding thread of an HTTP process has been busy with one piece of work."""
        return self._words[self._first[index] + DECODER_STALLED]


def _words_bytes(processes: int) -> int:
    return WORD_BYTES * (ENGINE_WORDS + PROCESS_WORDS * processes)
