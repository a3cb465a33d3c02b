"""API keys: who asks, and how many of their requests may be in flight. Only digests are kept, never a key."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from app.errors import TooManyRequests
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)

LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64}):(?P<digest>[0-9A-Fa-f]{64})(:(?P<limit>[1-9][0-9]{0,5}))?")
SINGLE = "RESNET_API_KEY"  # the name of the key that is given as a setting


@dataclass(frozen=True, slots=True)
class Key:
    """A key's name, the SHA-256 digest of the key, and how many requests it may have in flight (None: any number)."""

    name: str
    digest: bytes
    max_concurrent: int | None = None


class InFlight(Protocol):
    """Counts the requests in flight by their keys' names."""

    def know(self, names: Collection[str]) -> None:
        """Be ready to count these names, and no others."""

    def begin(self, name: str, limit: int | None) -> bool:
        """Count a request, unless there are `limit` already; return whether it was counted."""

    def end(self, name: str) -> None:
        """Count a request no longer."""


class LocalInFlight:
    """Those of this process."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def know(self, names: Collection[str]) -> None:
        """Be ready to count these names; here any name can be."""

    def begin(self, name: str, limit: int | None) -> bool:
        """Count a request, unless there are `limit` already; return whether it was counted."""
        count = self._counts.get(name, 0)
        if limit is not None and count >= limit:
            return False
        self._counts[name] = count + 1
        return True

    def end(self, name: str) -> None:
        """Count a request no longer."""
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._counts[name]


class Keys:
    """The keys of `api_key` and `api_keys_file`. Raises SettingsError if the file cannot be used."""

    def __init__(self, settings: Settings) -> None:
        single = settings.api_key
        self._single = [Key(SINGLE, digest_of(single.get_secret_value().encode()))] if single else []
        self._path = settings.api_keys_file
        self._keys: list[Key] = []
        self.in_flight: InFlight = LocalInFlight()
        self._read()

    def count_in(self, in_flight: InFlight) -> None:
        """Count requests there from now on; to be called before the first one."""
        self.in_flight = in_flight
        in_flight.know([key.name for key in self._keys])

    @property
    def required(self) -> bool:
        """Whether the service asks for a key at all."""
        return bool(self._keys)

    def find(self, authorization: str) -> Key | None:
        """Return the key that an Authorization header carries. The time taken does not depend on which one, or none."""
        scheme, _, given = authorization.partition(" ")
        digest = digest_of(given.strip(" \t").encode("latin-1", "replace"))  # the header's own bytes
        found = None
        for key in self._keys:
            if secrets.compare_digest(digest, key.digest):
                found = key
        return found if scheme.lower() == "bearer" else None

    def take(self, key: Key) -> Callable[[], None]:
        """Count a request as in flight until what is returned is called.

        Raises TooManyRequests if the key has as many as it may.
        """
        if not self.in_flight.begin(key.name, key.max_concurrent):
            raise TooManyRequests(retry_after_s=1)
        return partial(self.in_flight.end, key.name)

    def reload(self) -> bool:
        """Read the file again and log what came of it; a file that cannot be used leaves the keys as they are."""
        try:
            self._read()
        except SettingsError as error:
            log.error("the keys stay as they were: %s", error)
            return False
        if self._path is not None:
            log.info("read %d keys from %s", len(self._keys) - len(self._single), self._path)
        return True

    def _read(self) -> None:
        from_file = read_keys(self._path) if self._path is not None else []
        self._keys = self._single + from_file
        self.in_flight.know([key.name for key in self._keys])


def digest_of(key: bytes) -> bytes:
    """Return a key's SHA-256 digest, 32 bytes. Keys are long and random, so that a slow hash would gain nothing."""
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> list[Key]:
    """Read lines `name:sha256-hex[:max_concurrent]`; blank ones and those that begin with # are skipped.

    Raises SettingsError, one line that names the file and the line's number but nothing that stands in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"api_keys_file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"api_keys_file {path}: not a text file") from None
    keys: list[Key] = []
    taken: set[str | bytes] = {SINGLE}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise SettingsError(f"api_keys_file {path}, line {number}: not name:sha256-hex[:max_concurrent]")
        limit = match["limit"]
        key = Key(match["name"], bytes.fromhex(match["digest"]), int(limit) if limit else None)
        if not taken.isdisjoint((key.name, key.digest)):
            raise SettingsError(f"api_keys_file {path}, line {number}: this name or key is taken")
        taken |= {key.name, key.digest}
        keys.append(key)
    if not keys:
        raise SettingsError(f"api_keys_file {path}: holds no key")
    return keys
