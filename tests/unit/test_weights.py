"""The shipped checkpoint is what its card says."""

import hashlib
import shutil
import subprocess

import pytest

from app.settings import SHIPPED_WEIGHTS
from model import checkpoint

CARD = SHIPPED_WEIGHTS.parent / "README.md"


def test_the_card_belongs_to_the_checkpoint():
    source = checkpoint.load(SHIPPED_WEIGHTS)
    card = CARD.read_text()
    assert source.sha256 in card
    for scores in source.metadata.measured:
        assert f"{scores['top1']:.2%}" in card
        assert f"{scores['ece']:.2%}" in card


def test_the_shipped_files_are_the_pinned_ones():
    """SHA256SUMS lists every checkpoint of the folder, as sha256sum writes it, and nothing else."""
    files = sorted(SHIPPED_WEIGHTS.parent.glob("*.safetensors"))
    expected = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    pins = SHIPPED_WEIGHTS.with_name(checkpoint.PINS).read_text()
    assert pins == expected, "the shipped checkpoint was changed: if that was meant, `make pin-weights`"


def test_sha256sum_reads_the_pins():
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not here")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=SHIPPED_WEIGHTS.parent, check=True)


def test_the_checkpoint_is_half_precision_and_says_how_it_was_made():
    source = checkpoint.load(SHIPPED_WEIGHTS)
    metadata = source.metadata
    assert SHIPPED_WEIGHTS.stat().st_size < 23 << 20
    assert metadata.recipe["arch"] == "resnet18"
    assert metadata.dataset["name"] == "cifar10"
    assert metadata.epochs == sum(epochs for _, epochs in metadata.recipe["phases"])
    assert metadata.created
    assert metadata.libraries["torch"]


def test_the_checkpoint_reaches_its_target():
    measured = {one["split"]: one for one in checkpoint.load(SHIPPED_WEIGHTS).metadata.measured}
    assert measured["cifar10 test"]["top1"] >= 0.939
