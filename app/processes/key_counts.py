"""How many requests each key has in flight in all HTTP processes together, so that a key's limit is one for all.

Each name has a row in a part of the shared memory, and in it each HTTP process has a word of its own, which nobody else
writes while it lives: no request waits for another process, not even for one that has been stopped. Rows are given to
names, under a lock on the file, when keys are read. The kernel lets that lock go if its holder dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

# For the names that any process knows. What no name has ever needed takes no memory.
ROWS = 1 << 16

DIGEST_BYTES = 16
NO_DIGEST = bytes(DIGEST_BYTES)
WORD_BYTES = 8


def table_bytes(processes: int) -> int:
    """Return the bytes that the table takes of the shared memory with this many HTTP `processes`."""
    return ROWS * (DIGEST_BYTES + WORD_BYTES * processes)


class KeyTable:
    """The rows in `memory`, `table_bytes` of zeros at first that processes share; `file` is what they lock.

    A row has the digest of a name, and a word for each process: 0 where it does not know the name, else one more than
    it has requests in flight. The row is the name's as long as any word is not 0.
    """

    def __init__(self, memory: memoryview, file: int, processes: int) -> None:
        self._digests = memory[: ROWS * DIGEST_BYTES]
        self._words = memory[ROWS * DIGEST_BYTES :].cast("q")
        self._processes = processes
        self._file = file

    def claim(self, names: Iterable[str], index: int) -> dict[str, int]:
        """Return the row of each name, from now on that of the process `index`, too; names without one are left out."""
        rows = {}
        with self._locked():
            digests = dict(self._used())
            owned = {digest: row for row, digest in digests.items() if any(self._words_of(row))}
            free = (row for row in range(ROWS) if row not in digests or not any(self._words_of(row)))
            for name in names:
                digest = hashlib.sha256(name.encode()).digest()[:DIGEST_BYTES]
                row = owned.get(digest, -1)
                if row < 0:
                    row = next(free, -1)
                if row >= 0:
                    self._digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES] = digest
                    self._words[row * self._processes + index] = self.word(row, index) or 1
                    rows[name] = row
        return rows

    def word(self, row: int, index: int) -> int:
        """Return the word of a process."""
        return self._words[row * self._processes + index]

    def write(self, row: int, index: int, word: int) -> None:
        """Write the word of a process, which only that process may."""
        self._words[row * self._processes + index] = word

    def in_flight(self, row: int) -> int:
        """Return how many requests a row's name has under way, in all processes."""
        return sum(word - 1 for word in self._words_of(row) if word)

    def forget(self, index: int) -> None:
        """Take out what a process had counted that is no more."""
        for row, _ in self._used():
            self.write(row, index, 0)

    def _words_of(self, row: int) -> memoryview:
        return self._words[row * self._processes : (row + 1) * self._processes]

    def _used(self) -> Iterator[tuple[int, bytes]]:
        """Yield the rows that are, or were, some name's, with its digest; they are the first ones."""
        for row in range(ROWS):
            digest = bytes(self._digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES])
            if digest == NO_DIGEST:
                return
            yield row, digest

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


class SharedInFlight:
    """app.keys.InFlight of the process `index`, in a table that all see.

    No limit is ever exceeded. Of requests that come to several processes within a microsecond, where there is room for
    one more, all may be refused.
    """

    def __init__(self, table: KeyTable, index: int) -> None:
        self._table = table
        self._index = index
        self._names: Collection[str] = ()
        self._rows: dict[str, int] = {}  # also of names that are no longer known, while they have requests in flight
        self._fence = threading.Lock()

    def know(self, names: Collection[str]) -> None:
        """Be ready to count these names, and no others."""
        self._names = set(names)
        self._rows |= self._table.claim(self._names, self._index)
        for name in self._rows.keys() - self._names:
            self._let_go(name)
        if len(self._rows.keys() & self._names) < len(self._names):
            log.error("there are too many keys: not all of them can be counted, and those are refused")

    def begin(self, name: str, limit: int | None) -> bool:
        """Count a request, unless there are `limit` already, or the name has no row; return whether it was counted."""
        row = self._rows.get(name)
        if row is None or (limit is not None and self._table.in_flight(row) >= limit):
            return False
        self._add(row, 1)
        with self._fence:  # else the processor may read the others' words before they can see this one
            pass
        if limit is not None and self._table.in_flight(row) > limit:
            self._add(row, -1)
            return False
        return True

    def end(self, name: str) -> None:
        """Count a request no longer."""
        self._add(self._rows[name], -1)
        if name not in self._names:
            self._let_go(name)

    def _add(self, row: int, requests: int) -> None:
        self._table.write(row, self._index, self._table.word(row, self._index) + requests)

    def _let_go(self, name: str) -> None:
        """Leave the row of a name that is no longer known to others, once it has no request here."""
        if self._table.word(self._rows[name], self._index) == 1:
            self._table.write(self._rows.pop(name), self._index, 0)
