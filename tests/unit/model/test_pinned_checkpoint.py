"""A checkpoint whose SHA-256 is pinned, by a file beside it or by who loads it."""

import hashlib
from pathlib import Path

import pytest

from model import checkpoint
from model.metadata import CheckpointError
from tests.toy_checkpoint import METADATA, refusal, toy_images, toy_probabilities, toy_tensors


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, narrow_stages: None) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "intact.safetensors"
    checkpoint.save(path, METADATA, toy_tensors(), toy_images(), toy_probabilities())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pinned_file_loads_if_it_is_the_pinned_one(intact: Path, path: Path) -> None:
    path.write_bytes(intact.read_bytes())
    pins = path.with_name("SHA256SUMS")
    other = f"{'0' * 64}  other.safetensors\n"
    for line in (f"{digest(path)}  {path.name}\n", f"{digest(path).upper()} *./{path.name}\n"):
        pins.write_text(other + line)
        assert checkpoint.load(path).sha256 == digest(path)
    pins.write_text(f"{'0' * 64}  {path.name}\n")
    assert refusal(path) == f"its SHA-256 {digest(path)} is not the one in {pins}: {'0' * 64}"


def test_only_a_file_with_the_pinned_digest_is_looked_into(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"made to harm whoever parses it")
    path.with_name("SHA256SUMS").write_text(f"{'0' * 64}  {path.name}\n")
    monkeypatch.setattr(checkpoint, "parse", lambda _: pytest.fail("parsed"))
    assert "is not the one in" in refusal(path)


@pytest.mark.parametrize(
    ("pins", "reason"),
    [
        (b"", "does not list it"),
        (b"0" * 64 + b"  folder/model.safetensors\n", "does not list it"),
        (b"0" * 63 + b"  model.safetensors\n", "line 1: not a line of sha256sum"),
        (b"SHA256 (model.safetensors) = " + b"0" * 64, "line 1: not a line of sha256sum"),
        (b"\xff", "cannot be read"),
    ],
)
def test_pins_that_say_nothing_of_the_file_are_no_leave_to_load_it(
    intact: Path, path: Path, pins: bytes, reason: str
) -> None:
    path.write_bytes(intact.read_bytes())
    path.with_name("SHA256SUMS").write_bytes(pins)
    assert reason in refusal(path)


def test_expected_digest_is_required_of_the_file(intact: Path) -> None:
    assert checkpoint.load(intact, digest(intact).upper()).path == intact
    with pytest.raises(CheckpointError, match=f"its SHA-256 {digest(intact)} is not the one expected: {'0' * 64}"):
        checkpoint.load(intact, "0" * 64)
