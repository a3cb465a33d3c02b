"""Another process converts the checkpoint: the same answers, no torch in this one, and every way it can go wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import children, conversion, engine
from app.backends import open_backend
from app.conversion import open_converted
from app.engine import CheckpointEngine, EngineUnavailable, load_engine, may_need_torch
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint
from model.checkpoint import CheckpointError
from tests.checkpoints import write_turned
from tests.conftest import ROOT, resident_kb

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere torch converts in the process that serves")

ON_CPU = Settings(device="cpu", batch_sizes=(1, 2))


@pytest.fixture(scope="module")
def source():
    return checkpoint.load(SHIPPED_WEIGHTS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_answers_are_those_of_a_network_converted_here(source, precision):
    settings = Settings(device="cpu", precision=precision)
    facts, backend = open_converted(settings)
    assert (backend.dtype, facts.sha256, facts.metadata) == (precision, source.sha256, source.metadata)
    images = source.self_test_images.numpy()
    np.testing.assert_array_equal(facts.self_test_images, images)
    np.testing.assert_array_equal(facts.self_test_probabilities, source.self_test_probabilities.numpy())
    np.testing.assert_allclose(backend.logits(images), open_backend(source, settings).logits(images), atol=1e-4)


def test_auto_is_decided_where_torch_is():
    assert open_converted(Settings(device="cpu"))[1].dtype in {"float32", "bfloat16"}


WITHOUT_TORCH = """
import resource, sys
from app.engine import load_engine
from app.settings import Settings
engine = load_engine(Settings(device="cpu", batch_sizes=(1,)))
print(engine.card["runtime"], "torch" in sys.modules, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_a_process_that_serves_has_no_torch():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, cwd=ROOT, capture_output=True, text=True)
    runtime, has_torch, largest_kb = ended.stdout.split()
    assert (runtime, has_torch) == ("openvino", "False")
    if sys.platform == "linux":  # elsewhere the unit is another one
        assert int(largest_kb) < 1 << 20  # the gigabyte that the README asks for


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
def test_the_converted_weights_are_given_back_before_ready(source):
    facts, backend = open_converted(Settings(device="cpu"))
    values = backend._constants.values
    assert resident_kb(values) > 40_000
    made = CheckpointEngine(facts, backend, (1, 16))
    made.prepare(16)
    assert resident_kb(values) < 1_000
    made.run(facts.self_test_images[:16])
    assert resident_kb(values) < 1_000


def test_nothing_is_left_on_the_disk_or_open(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    load_engine(ON_CPU).close()  # what is opened once stays
    before = sorted(Path("/dev/fd").iterdir())
    load_engine(ON_CPU).close()
    assert sorted(Path("/dev/fd").iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_checkpoint_is_said_in_the_same_words(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"\x80\x02 a pickle")
    with pytest.raises(CheckpointError) as here:
        checkpoint.load(path)
    for broken, expected in ((path, str(here.value)), (tmp_path / "none", "cannot be read: No such file")):
        with pytest.raises(CheckpointError) as there:
            open_converted(Settings(device="cpu", weights=broken))
        assert expected in str(there.value)


def test_a_pinned_digest_is_compared(tmp_path):
    path = write_turned(tmp_path / "turned.safetensors")
    with pytest.raises(CheckpointError, match="is not the one expected"):
        open_converted(Settings(device="cpu", weights=path, weights_sha256="0" * 64))


def converted_by(monkeypatch, code):
    """Let Python run `code` in the place of the module that converts."""

    def command(_module, *arguments):
        _, environment = children.module_command("model.convert")
        return [sys.executable, "-c", code, *arguments], environment

    monkeypatch.setattr(conversion, "module_command", command)


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import os; os.kill(os.getpid(), 9)", "signal 9; was there too little memory"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_process_that_does_not_get_to_the_end_is_one_line(monkeypatch, code, ending):
    converted_by(monkeypatch, code)
    with pytest.raises(EngineUnavailable, match=ending):
        open_converted(ON_CPU)


def test_an_error_over_there_is_an_error_here_with_its_trace(monkeypatch):
    code = """
from model import convert
def fail(*arguments):
    raise ZeroDivisionError("over there")
convert.model_of = fail
convert.main()
"""
    converted_by(monkeypatch, code)
    with pytest.raises(RuntimeError, match=r"(?s)could not be converted.*Traceback.*ZeroDivisionError: over there"):
        open_converted(ON_CPU)


@pytest.mark.parametrize(
    ("options", "seen", "expected"),
    [
        ({"device": "cpu"}, True, False),
        ({"device": "auto"}, False, False),
        ({"device": "auto"}, True, True),
        ({"device": "cuda"}, False, True),
        ({"device": "cpu", "runtime": "torch"}, False, True),
        ({"device": "cpu", "runtime": "openvino"}, True, False),
    ],
)
def test_torch_is_here_only_where_it_may_compute(monkeypatch, options, seen, expected):
    monkeypatch.setattr(engine, "_gpu_in_sight", lambda: seen)
    assert may_need_torch(Settings(**options)) is expected


def test_without_openvino_or_a_folder_for_temporary_files_torch_is_here(monkeypatch):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.gettempdir", nowhere)
        assert may_need_torch(ON_CPU)
        assert load_engine(ON_CPU).card["runtime"] == "openvino"
    monkeypatch.setattr(engine, "find_spec", lambda _name: None)
    assert may_need_torch(ON_CPU)
