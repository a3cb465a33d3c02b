"""One file that holds all of a trained network: tensors, metadata, and a proof that it still works.

The format is safetensors: a JSON header and raw numbers, so that loading one can never run code. The header's
`resnet` entry is model.metadata.Metadata as JSON; the tensors `self_test.images` and `self_test.probabilities` are
inputs and the answers that training measured, which an engine must reproduce before it serves. A digest over
metadata and tensors makes a changed byte show; the SHA-256 of the whole file is the checkpoint's version.

Both say that a file is intact, not that it is the right one: whoever makes another file makes its digests. That is what
a pinned SHA-256 is for, in a file SHA256SUMS beside the checkpoint or given by the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import ValidationError

from model.architecture import ARCHITECTURES, Architecture
from model.metadata import CheckpointError, Metadata
from model.stored import StoredTensor, parse

if TYPE_CHECKING:  # an installation that only serves on a CPU has no torch
    from torch import Tensor, nn

    from model.resnet import ResNet

METADATA_KEY = "resnet"
SELF_TEST_IMAGES = "self_test.images"
SELF_TEST_PROBABILITIES = "self_test.probabilities"
MAX_FILE_BYTES = 2 << 30
PINS = "SHA256SUMS"  # what `sha256sum` writes and `sha256sum -c` reads
PIN = re.compile(r"(?P<sha256>[0-9A-Fa-f]{64}) [ *](?P<name>.+)")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory: `stored` are the network's tensors as the file has them, by name.

    `sha256` (hex) is the file's. `self_test_images`, uint8 (K, 3, S, S), and `self_test_probabilities`, float32
    (K, classes), are what an engine must reproduce. Only `tensors` and `network` import torch.
    """

    path: Path
    sha256: str
    metadata: Metadata
    stored: dict[str, StoredTensor]
    self_test_images: NDArray[np.uint8]
    self_test_probabilities: NDArray[np.float32]

    @property
    def version(self) -> str:
        """The first 12 hex digits of the file's SHA-256."""
        return self.sha256[:12]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The network's tensors, on the CPU as stored."""
        return {name: stored.tensor() for name, stored in self.stored.items()}

    def network(self) -> ResNet:
        """Build the network in float32 with the checkpoint's weights, in evaluation mode."""
        network = Architecture.from_dict(self.metadata.architecture).build()
        network.load_state_dict({k: v.float() for k, v in self.tensors.items()}, strict=False)
        return network.eval()


def tensors_to_store(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to store: convolution and linear weights as float16, batch norm and biases as float32.

    Batch norm's batch counters are left out, which only training with momentum None would use.
    """
    import torch

    return {
        name: value.detach().cpu().to(torch.float16 if value.ndim > 1 else torch.float32).contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def content_digest(metadata: dict[str, Any], tensors: dict[str, StoredTensor]) -> str:
    """Return the SHA-256 (hex) over metadata and over every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0torch.{tensor.dtype}\0{tensor.shape}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one: temporary name, fsync, rename.

    The new one has the old one's mode and, as far as the system allows it, owner and group. Raises OSError with the
    file's name; then nothing is left of the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            before = path.stat() if path.exists() else None
            if before is not None:  # others may not be allowed to read it; some shares know no modes
                with suppress(OSError):
                    os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if before is not None:
                _take_permissions(file.fileno(), before)  # last: what a crash leaves can be written over
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _take_permissions(descriptor: int, before: os.stat_result) -> None:
    """Give an open file the owner, the group and the mode of another one, as far as the system allows it."""
    for owner in (before.st_uid, -1):  # only root may give it to somebody else; a group may be one's own
        with suppress(OSError):
            os.fchown(descriptor, owner, before.st_gid)
            break
    with suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def save(
    path: Path,
    metadata: Metadata,
    tensors: dict[str, Tensor],
    self_test_images: NDArray[np.uint8],
    self_test_probabilities: NDArray[np.float32],
) -> None:
    """Write a checkpoint. `self_test_images` uint8 (K, 3, S, S), `self_test_probabilities` float32 (K, classes)."""
    import safetensors.torch
    import torch

    everything = {
        **tensors,
        SELF_TEST_IMAGES: torch.tensor(self_test_images).contiguous(),
        SELF_TEST_PROBABILITIES: torch.tensor(self_test_probabilities).contiguous(),
    }
    fields = metadata.model_dump(mode="json")
    stored = {name: StoredTensor.of(tensor) for name, tensor in everything.items()}
    header = {"digest": content_digest(fields, stored), "metadata": fields}
    write_atomically(path, safetensors.torch.save(everything, {METADATA_KEY: json.dumps(header)}))


def pinned_sha256(path: Path) -> str | None:
    """Return the SHA-256 (hex) that SHA256SUMS in the file's folder pins it to, or None without a SHA256SUMS.

    Raises CheckpointError if SHA256SUMS cannot be read, or does not list the file: it says what the folder may hold.
    """
    pins = path.with_name(PINS)
    try:
        lines = pins.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {path}: {pins} cannot be read") from error
    found = None
    for number, line in enumerate(lines, start=1):
        pin = PIN.fullmatch(line)
        if pin is None:
            raise CheckpointError(f"checkpoint {path}: {pins}, line {number}: not a line of sha256sum")
        if Path(pin["name"]) == Path(path.name):
            found = pin["sha256"].lower()
    if found is None:
        raise CheckpointError(f"checkpoint {path}: {pins} does not list it")
    return found


def load(path: Path, expected_sha256: str | None = None) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError, whose message is one line, for anything amiss.

    Nothing in a file is looked at unless its SHA-256 is the one that SHA256SUMS beside it pins, where there is one, and
    `expected_sha256` (hex), where that is given.
    """
    data, sha256 = _read_as_pinned(path, expected_sha256)
    try:
        tensors = parse(data)
        header_bytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_bytes])["__metadata__"][METADATA_KEY]
        parsed = json.loads(header)
        digest, fields = parsed["digest"], parsed["metadata"]
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"checkpoint {path}: not an intact safetensors file ({_looks_like(data)})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: no readable metadata of ours in the safetensors header") from error
    metadata = _parse_metadata(path, fields)
    _check_tensors(path, metadata, tensors)
    if content_digest(fields, tensors) != digest:
        raise CheckpointError(f"checkpoint {path}: content does not match its SHA-256 digest: the file is corrupt")
    images, probabilities = tensors.pop(SELF_TEST_IMAGES).array(), tensors.pop(SELF_TEST_PROBABILITIES).array()
    return Checkpoint(path, sha256, metadata, tensors, images, probabilities)


def sha256_of(path: Path, expected_sha256: str | None = None) -> str:
    """Return the SHA-256 (hex) that `load` would give the file, of which nothing else is looked at.

    Raises CheckpointError if it cannot be read, or is not the one that is pinned or expected.
    """
    return _read_as_pinned(path, expected_sha256)[1]


def _read_as_pinned(path: Path, expected_sha256: str | None) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256 (hex). Raises CheckpointError, also where another one is asked for."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"checkpoint {path}: larger than {MAX_FILE_BYTES} bytes")
        data = path.read_bytes()
    except IsADirectoryError as error:
        example = next((file for file in sorted(path.glob("*.safetensors"))), path / "checkpoint.safetensors")
        raise CheckpointError(f"checkpoint {path}: a folder: give the file in it, such as {example}") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    for expected, whose in ((expected_sha256, "expected"), (pinned_sha256(path), f"in {path.with_name(PINS)}")):
        if expected is not None and sha256 != expected.lower():
            raise CheckpointError(f"checkpoint {path}: its SHA-256 {sha256} is not the one {whose}: {expected}")
    return data, sha256


def _looks_like(data: bytes) -> str:
    """Guess what a file is instead, for the error message."""
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it looks like a pickle, which is never loaded"
    if not data:
        return "it is empty"
    return "wrong or damaged header, or a truncated file"


def _parse_metadata(path: Path, fields: object) -> Metadata:
    """Validate the header's metadata; the first thing wrong is the reason given."""
    try:
        metadata = Metadata.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"checkpoint {path}: bad metadata: {where}: {reason}") from error
    name = metadata.architecture.get("arch")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"checkpoint {path}: unknown architecture {str(name)[:60]!r} (known: {known})")
    return metadata


def _check_tensors(path: Path, metadata: Metadata, tensors: dict[str, StoredTensor]) -> None:
    """Require exactly the tensors of the architecture and of the self-test, in their shapes."""
    try:
        expected = metadata.network_spec().shapes
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    size, classes = metadata.input_size, len(metadata.classes)
    images = tensors.get(SELF_TEST_IMAGES)
    count = images.shape[0] if images is not None and images.shape else 0
    expected[SELF_TEST_IMAGES] = (max(count, 1), 3, size, size)
    expected[SELF_TEST_PROBABILITIES] = (max(count, 1), classes)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise CheckpointError(f"checkpoint {path}: {len(missing)} missing tensor(s): {', '.join(missing[:3])}")
    if unknown:
        raise CheckpointError(f"checkpoint {path}: {len(unknown)} unknown tensor(s): {', '.join(unknown[:3])}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(f"checkpoint {path}: tensor {name} has shape {tensor.shape}, expected {shape}")
        if not (tensor.dtype == "uint8" if name == SELF_TEST_IMAGES else tensor.is_float):
            raise CheckpointError(f"checkpoint {path}: tensor {name} has unexpected type {tensor.dtype}")
        if not np.isfinite(tensor.array()).all():
            raise CheckpointError(f"checkpoint {path}: tensor {name} holds values that are not finite")
