import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model import checkpoint
from model.checkpoint import SELF_TEST_IMAGES, SELF_TEST_PROBABILITIES, Checkpoint
from model.metadata import MAX_CLASSES, CheckpointError, Metadata
from tests.toy_checkpoint import (
    METADATA,
    Images,
    Probabilities,
    refusal,
    toy_images,
    toy_probabilities,
    toy_tensors,
)


@pytest.fixture(scope="module")
def tensors(narrow_stages: None) -> dict[str, Tensor]:
    return toy_tensors()


@pytest.fixture(scope="module")
def images() -> Images:
    return toy_images()


@pytest.fixture(scope="module")
def probabilities() -> Probabilities:
    return toy_probabilities()


@pytest.fixture(scope="module")
def intact(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], images: Images, probabilities: Probabilities
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "intact.safetensors"
    checkpoint.save(path, METADATA, tensors, images, probabilities)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_round_trip_keeps_everything(
    intact: Path, tensors: dict[str, Tensor], images: Images, probabilities: Probabilities
) -> None:
    loaded = checkpoint.load(intact)
    assert loaded.path == intact
    assert loaded.metadata == METADATA
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)
    assert all(loaded.tensors[name].dtype == tensors[name].dtype for name in tensors)
    assert np.array_equal(loaded.self_test_images, images)
    assert np.array_equal(loaded.self_test_probabilities, probabilities)


def test_loaded_network_computes_in_float32_what_the_tensors_say(intact: Path, tensors: dict[str, Tensor]) -> None:
    network = checkpoint.load(intact).network()
    assert not network.training
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    state = network.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in tensors.items())


def test_checkpoint_from_before_groups_and_plain_networks_still_loads(
    path: Path, tensors: dict[str, Tensor], images: Images, probabilities: Probabilities
) -> None:
    older = {"arch": "resnet18", "num_classes": 3, "stem": "cifar"}
    checkpoint.save(path, METADATA.model_copy(update={"architecture": older}), tensors, images, probabilities)
    loaded = checkpoint.load(path)
    assert loaded.metadata.architecture == older
    assert torch.equal(loaded.network().head.bias, tensors["head.bias"])


def test_weights_are_stored_in_half_precision_and_the_rest_in_full(tensors: dict[str, Tensor]) -> None:
    assert tensors["stem.conv.weight"].dtype == tensors["head.weight"].dtype == torch.float16
    assert tensors["stem.norm.running_var"].dtype == tensors["head.bias"].dtype == torch.float32
    assert not any(name.endswith("num_batches_tracked") for name in tensors)


def test_version_is_the_start_of_the_files_sha256(intact: Path) -> None:
    loaded = checkpoint.load(intact)
    assert loaded.sha256 == hashlib.sha256(intact.read_bytes()).hexdigest()
    assert loaded.version == loaded.sha256[:12]


def test_saving_replaces_the_file_and_leaves_nothing_else(
    path: Path, tensors: dict[str, Tensor], images: Images, probabilities: Probabilities
) -> None:
    path.write_bytes(b"an older file")
    checkpoint.save(path, METADATA, tensors, images, probabilities)
    assert checkpoint.load(path).metadata == METADATA
    assert list(path.parent.iterdir()) == [path]


def header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def tensor_start(data: bytes, name: str) -> int:
    header = json.loads(data[8 : header_end(data)])
    return header_end(data) + header[name]["data_offsets"][0]


@pytest.mark.parametrize(
    "position",
    [
        pytest.param(lambda data: 0, id="header length"),
        pytest.param(lambda data: 8, id="header start"),
        pytest.param(lambda data: data.index(b'"F16"') + 2, id="dtype"),
        pytest.param(lambda data: data.index(b'"shape":[') + 9, id="shape"),
        pytest.param(lambda data: data.index(b"stem.conv.weight"), id="tensor name"),
        pytest.param(lambda data: data.index(b"__metadata__"), id="metadata key"),
        pytest.param(lambda data: data.index(b"digest") + 13, id="digest"),
        pytest.param(lambda data: data.index(b"temperature"), id="metadata field"),
        pytest.param(lambda data: data.index(b"cat"), id="class name"),
        pytest.param(lambda data: data.index(b"0.25"), id="std"),
        pytest.param(header_end, id="first data byte"),
        pytest.param(lambda data: tensor_start(data, "stem.conv.weight"), id="convolution"),
        pytest.param(lambda data: tensor_start(data, "head.bias"), id="bias"),
        pytest.param(lambda data: tensor_start(data, SELF_TEST_IMAGES), id="self-test images"),
        pytest.param(lambda data: tensor_start(data, SELF_TEST_PROBABILITIES), id="self-test probabilities"),
        pytest.param(lambda data: len(data) // 2, id="middle"),
        pytest.param(lambda data: len(data) - 1, id="last byte"),
    ],
)
def test_one_flipped_bit_is_refused(intact: Path, path: Path, position: Callable[[bytes], int]) -> None:
    data = bytearray(intact.read_bytes())
    data[position(bytes(data))] ^= 1
    path.write_bytes(data)
    assert refusal(path)


def test_flipped_weight_is_told_by_the_digest(intact: Path, path: Path) -> None:
    data = bytearray(intact.read_bytes())
    data[tensor_start(bytes(data), "head.weight")] ^= 1
    path.write_bytes(data)
    assert "SHA-256" in refusal(path)


def test_inconsistent_tensors_are_refused(
    path: Path, tensors: dict[str, Tensor], images: Images, probabilities: Probabilities
) -> None:
    def reason(
        changed: dict[str, Tensor], images: Images = images, probabilities: Probabilities = probabilities
    ) -> str:
        checkpoint.save(path, METADATA, changed, images, probabilities)
        return refusal(path)

    without_bias = {name: value for name, value in tensors.items() if name != "head.bias"}
    not_a_number = tensors["head.bias"].clone()
    not_a_number[1] = float("nan")
    infinite = tensors["stem.conv.weight"].clone()
    infinite[0, 0, 0, 0] = float("inf")
    assert reason(without_bias) == "1 missing tensor(s): head.bias"
    assert reason(tensors | {"head.extra": torch.zeros(1)}) == "1 unknown tensor(s): head.extra"
    assert "unknown tensor" in reason(tensors | {"two\nlines": torch.zeros(1)})
    assert "head.bias has shape (4,), expected (3,)" in reason(tensors | {"head.bias": torch.zeros(4)})
    assert "head.bias holds values that are not finite" in reason(tensors | {"head.bias": not_a_number})
    assert "stem.conv.weight holds values that are not" in reason(tensors | {"stem.conv.weight": infinite})
    assert "head.bias has unexpected type" in reason(tensors | {"head.bias": torch.zeros(3, dtype=torch.int64)})
    assert f"{SELF_TEST_IMAGES} has unexpected type" in reason(tensors, images=images.astype(np.int64))
    assert f"{SELF_TEST_IMAGES} has shape" in reason(tensors, images=images[..., :4])
    assert f"{SELF_TEST_IMAGES} has shape" in reason(tensors, images=images[:0], probabilities=probabilities[:0])
    assert f"{SELF_TEST_IMAGES} has shape" in reason(tensors, images=np.array(0, np.uint8))
    assert f"{SELF_TEST_PROBABILITIES} has shape" in reason(tensors, probabilities=probabilities[:2])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": {"arch": "vgg16", "num_classes": 3}}, "unknown architecture 'vgg16' (known: resnet18"),
        ({"architecture": {"arch": ["resnet18"], "num_classes": 3}}, "unknown architecture"),
        ({"architecture": {"num_classes": 3}}, "unknown architecture"),
        ({"architecture": {"arch": "resnet18", "num_classes": 3, "depth": 9}}, "unknown architecture options"),
        ({"architecture": {"arch": "resnet18", "num_classes": 3, "stem": "tiny"}}, "unknown stem 'tiny'"),
        ({"architecture": {"arch": "resnet34", "num_classes": 3}}, "missing tensor(s)"),
        ({"architecture": {"arch": "resnet18", "num_classes": 3, "shortcut": None}}, "unknown shortcut None"),
        ({"architecture": {"arch": "resnet18", "num_classes": 3, "shortcut": "none"}}, "unknown tensor(s)"),
        ({"architecture": {"arch": "resnet18", "num_classes": 3, "groups": 4}}, "for bottleneck blocks"),
        ({"architecture": {"arch": "resnet50", "num_classes": 3, "groups": 10**12}}, "product at most"),
        ({"architecture": {"arch": "resnet50", "num_classes": 3, "width_per_group": 1e9}}, "must be integers"),
        ({"architecture": {"arch": "resnet152", "num_classes": 3, "width_per_group": 2048}}, "missing tensor(s)"),
        ({"classes": ("cat", "dog")}, "bad metadata: metadata: 2 class names for a network of 3 classes"),
        ({"classes": ("cat", "dog", "cat")}, "bad metadata: classes: two classes are called 'cat'"),
        ({"classes": ("cat", "caf\u00e9", "cafe\u0301")}, "two classes are called 'caf\u00e9'"),
        ({"classes": ("cat", " ", "dog")}, "bad metadata: classes: ' ' is no name for a class: it is blank, too"),
        ({"classes": ("cat", "", "dog")}, "'' is no name for a class"),
        ({"classes": ("cat", "dog\n", "elk")}, r"'dog\n' is no name for a class"),
        ({"classes": ("cat", "x" * 201, "elk")}, "x' is no name for a class: it is blank, too long"),
        ({"classes": ("cat", "dog\u202etac", "elk")}, r"'dog\u202etac' is no name for a class"),
        ({"classes": ("cat", "dog", "\ud800")}, r"'\ud800' is no name for a class"),
        ({"classes": ("cat", "dog\u2028", "elk")}, r"'dog\u2028' is no name for a class"),
        ({"classes": ()}, "bad metadata: classes"),
        ({"input_size": 16}, f"tensor {SELF_TEST_IMAGES} has shape"),
        ({"std": (0.2, 0.0, 0.2)}, "bad metadata: std.1"),
        ({"temperature": 0.0}, "bad metadata: temperature"),
        ({"format": 2}, "bad metadata: format"),
        ({"name": "../toy"}, "bad metadata: name"),
    ],
)
def test_wrong_metadata_is_refused(
    path: Path,
    tensors: dict[str, Tensor],
    images: Images,
    probabilities: Probabilities,
    changes: dict[str, object],
    expected: str,
) -> None:
    checkpoint.save(path, METADATA.model_copy(update=changes), tensors, images, probabilities)
    assert expected in refusal(path)


def test_classes_may_have_any_other_names(
    path: Path, tensors: dict[str, Tensor], images: Images, probabilities: Probabilities
) -> None:
    names = ("forêt 森林", 'Forest, "old"/new', "🌲")
    checkpoint.save(path, METADATA.model_copy(update={"classes": names}), tensors, images, probabilities)
    assert checkpoint.load(path).metadata.classes == names


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"resnet": "not JSON"},
        {"resnet": "[]"},
        {"resnet": '{"digest": "0"}'},
        {"resnet": "[" * 100_000},
        {"other": "{}"},
    ],
    ids=["none", "not JSON", "a list", "half of it", "deeply nested", "another key"],
)
def test_safetensors_without_our_metadata_is_refused(
    path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None
) -> None:
    safetensors.torch.save_file(tensors, path, header)
    assert "no readable metadata of ours" in refusal(path)


@pytest.mark.parametrize(
    "recipe",
    ['{"note": "\\ud800"}', '{"in": {"\\ud800": 1}}', '{"note": ' + "[" * 300 + "]" * 300 + "}"],
    ids=["half a letter", "half a name", "deeply nested"],
)
def test_metadata_that_could_not_be_shown_is_refused(path: Path, tensors: dict[str, Tensor], recipe: str) -> None:
    fields = METADATA.model_dump_json().replace('"recipe":{}', f'"recipe":{recipe}')
    safetensors.torch.save_file(tensors, path, {"resnet": f'{{"digest": "", "metadata": {fields}}}'})
    assert "bad metadata: metadata: it is no JSON" in refusal(path)


def test_metadata_that_is_no_object_is_refused(path: Path, tensors: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(tensors, path, {"resnet": '{"digest": "0", "metadata": 7}'})
    assert "bad metadata" in refusal(path)


class Bomb:
    """Makes a folder where it is unpickled; large, as weights are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.makedirs, (str(self.path),), {"weights": [0.0] * 1000}


def test_pickles_are_refused_unread(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)
    assert "looks like a pickle, which is never loaded" in refusal(path)
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded"), protocol))
        assert "looks like a pickle, which is never loaded" in refusal(path)
    assert not (path.parent / "exploded").exists()


@pytest.mark.parametrize("length", [1, 8, 100, 5_000, -1])
def test_truncated_file_is_refused(intact: Path, path: Path, length: int) -> None:
    path.write_bytes(intact.read_bytes()[:length])
    assert "truncated" in refusal(path)


def test_appended_bytes_are_refused(intact: Path, path: Path) -> None:
    path.write_bytes(intact.read_bytes() + b"\0")
    assert "not an intact safetensors file" in refusal(path)


def test_empty_file_is_refused(path: Path) -> None:
    path.touch()
    assert "it is empty" in refusal(path)


def test_missing_file_is_refused(path: Path) -> None:
    assert refusal(path) == "cannot be read: No such file or directory"


def test_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"a folder: give the file in it, such as {tmp_path}/checkpoint.safetensors"
    (tmp_path / "best.safetensors").touch()
    assert refusal(tmp_path) == f"a folder: give the file in it, such as {tmp_path}/best.safetensors"


def test_oversized_file_is_refused_unread(intact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read a file that is too large"))
    assert refusal(intact) == "larger than 1000 bytes"


def test_loading_the_same_file_twice_gives_the_same_version(intact: Path, path: Path) -> None:
    path.write_bytes(intact.read_bytes())
    copies: list[Checkpoint] = [checkpoint.load(intact), checkpoint.load(path)]
    assert copies[0].version == copies[1].version


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"):
        checkpoint.write_atomically(path, b"new")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == mode


def test_on_a_share_that_knows_no_modes_a_file_is_replaced_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.fchown", refuse)
    monkeypatch.setattr("os.fchmod", refuse)
    (tmp_path / "file").write_bytes(b"old")
    checkpoint.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_crash_while_a_file_is_replaced_leaves_nothing_that_cannot_be_written_over(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o440)
    modes = []
    monkeypatch.setattr("os.fsync", lambda descriptor: modes.append(os.fstat(descriptor).st_mode & 0o777))
    checkpoint.write_atomically(path, b"new")
    assert modes == [0o600]
    assert path.stat().st_mode & 0o777 == 0o440


def test_a_file_that_is_replaced_keeps_its_owner_and_group_and_one_that_may_not_keeps_its_mode(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    asked = []

    def refuse(_descriptor, user, group):
        asked.append((user, group))
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.fchown", refuse)
    checkpoint.write_atomically(path, b"new")
    assert asked == [(path.stat().st_uid, path.stat().st_gid), (-1, path.stat().st_gid)]
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == 0o640


def test_a_files_own_words_reach_no_terminal_as_codes_and_fill_no_log() -> None:
    error = str(CheckpointError("checkpoint x: \x1b[2J\x1b]0;owned\x07 in\nits metadata" + "A" * 300_000))
    assert error.startswith("checkpoint x: ?[2J?]0;owned? in its metadataAAA")
    assert len(error) < 600


def test_there_are_no_more_classes_than_can_be_counted() -> None:
    classes = tuple(map(str, range(MAX_CLASSES + 1)))
    architecture = {"num_classes": len(classes)}
    with pytest.raises(ValueError, match="at most 65535"):
        Metadata(name="x", architecture=architecture, classes=classes, input_size=32, mean=(0, 0, 0), std=(1, 1, 1))
