"""How many requests each key has in flight in all HTTP processes together, so that a key's limit is one for all.

Rows of a part of the shared memory, found by the name's digest and changed under a lock on the file, which the kernel
lets go if its holder dies. A row whose count is zero is free: it may become another name's.
"""

from __future__ import annotations

import fcntl
import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

ROWS = 4096
NEAR = 64  # rows from a name's own place on that may be its

DIGEST_BYTES = 16
ROW = struct.Struct(f"{DIGEST_BYTES}sQ")  # digest of the name, requests in flight
TABLE_BYTES = ROWS * ROW.size


class SharedInFlight:
    """app.keys.InFlight in `table`, TABLE_BYTES of zeros at first that processes share; `file` is what they lock."""

    def __init__(self, table: memoryview, file: int) -> None:
        self._table = table
        self._file = file
        self._digests: dict[str, bytes] = {}

    def begin(self, name: str, limit: int | None) -> bool:
        """Count a request, unless there are `limit` already, or no row is left; return whether it was counted."""
        digest = self._digest(name)
        with self._locked():
            row, count = self._find(digest)
            if row is None or (limit is not None and count >= limit):
                return False
            ROW.pack_into(self._table, row, digest, count + 1)
            return True

    def end(self, name: str) -> None:
        """Count a request no longer."""
        digest = self._digest(name)
        with self._locked():
            row, count = self._find(digest)
            assert row is not None
            ROW.pack_into(self._table, row, digest, count - 1)

    def _digest(self, name: str) -> bytes:
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(name.encode()).digest()[:DIGEST_BYTES]
        return self._digests[name]

    def _find(self, digest: bytes) -> tuple[int | None, int]:
        """Return the offset of a name's row and its count: its own, or a free one, or None."""
        free = None
        first = int.from_bytes(digest[:4], "little")
        for step in range(NEAR):
            row = (first + step) % ROWS * ROW.size
            found, count = ROW.unpack_from(self._table, row)
            if not count:
                free = row if free is None else free
            elif found == digest:
                return row, count
        return free, 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
