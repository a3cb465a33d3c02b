"""What serves on a CPU never loads torch, and gives back what only setting up needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import engine
from app.backends.backend import EngineUnavailable
from app.backends.choice import resolve
from app.backends.openvino_backend import open_openvino, precision_of
from app.engine import CheckpointEngine, load_engine, may_need_torch
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint
from tests.conftest import ROOT, resident_kb

ON_CPU = Settings(device="cpu", batch_sizes=(1, 2))

WITHOUT_TORCH = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # as if it were not installed
from app.engine import load_engine
from app.settings import Settings
engine = load_engine(Settings(device="cpu", batch_sizes=(1,), precision=sys.argv[1]))
status = Path("/proc/self/status")
print(engine.card["runtime"], status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0)
"""


@pytest.fixture(scope="module")
def source():
    return checkpoint.load(SHIPPED_WEIGHTS)


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_a_cpu_serves_where_there_is_no_torch(precision):
    command = [sys.executable, "-c", WITHOUT_TORCH, precision]
    ended = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    runtime, largest_kb = ended.stdout.split()
    assert runtime == "openvino" or (precision, runtime) == ("auto", "mnn")
    assert int(largest_kb) < 512 << 10  # what the README asks for


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_first_copy_of_the_weights_is_given_back_before_ready(source, precision):
    backend = open_openvino(source, Settings(device="cpu", precision=precision))
    values = np.frombuffer(backend._constants._memory, np.uint8)
    assert resident_kb(values) > 40_000
    made = CheckpointEngine(source.facts, backend, (1, 16))
    made.prepare(16)
    assert resident_kb(values) < 1_000
    made.run(source.facts.self_test_images[:16])
    assert resident_kb(values) < 1_000


def test_nothing_is_left_on_the_disk_or_open(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load_engine(ON_CPU).close()  # what is opened once stays
    before = sorted(Path("/dev/fd").iterdir())
    load_engine(ON_CPU).close()
    assert sorted(Path("/dev/fd").iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_the_precision_is_the_same_with_torch_in_sight():
    for precision in ("auto", "float32", "int8"):
        settings = Settings(device="cpu", runtime="openvino", precision=precision)
        assert resolve(settings) == ("openvino", "cpu", precision_of(settings))


@pytest.mark.parametrize(
    ("options", "seen", "expected"),
    [
        ({"device": "cpu"}, True, False),
        ({"device": "auto"}, False, False),
        ({"device": "auto"}, True, True),
        ({"device": "cuda"}, False, True),
        ({"device": "cpu", "runtime": "torch"}, False, True),
        ({"device": "cpu", "runtime": "openvino"}, True, False),
        ({"device": "cpu", "runtime": "mnn"}, True, False),
    ],
)
def test_torch_is_here_only_where_it_may_compute(monkeypatch, options, seen, expected):
    monkeypatch.setattr(engine, "_gpu_in_sight", lambda: seen)
    assert may_need_torch(Settings(**options)) is expected


def test_without_openvino_torch_computes(monkeypatch):
    monkeypatch.setattr(engine, "_is_installed", lambda package: package != "openvino")
    assert may_need_torch(ON_CPU)


def test_a_gpu_is_of_no_use_without_torch(monkeypatch, caplog):
    monkeypatch.setattr(engine, "_is_installed", lambda package: package != "torch")
    monkeypatch.setattr(engine, "_gpu_in_sight", lambda: True)
    assert not may_need_torch(Settings(device="auto"))
    load_engine(Settings(device="auto", batch_sizes=(1,))).close()
    assert "there is a GPU, but PyTorch is not installed here: serving on the CPU" in caplog.messages


INSTALL_TORCH = "PyTorch is not installed here: pip install torch torchvision tqdm"
INSTALL_OPENVINO = "neither OpenVINO nor PyTorch is installed here: pip install openvino"


@pytest.mark.parametrize(
    ("options", "missing", "message"),
    [
        ({"device": "cuda"}, {"torch"}, f"{INSTALL_TORCH}; or device cpu"),
        ({"device": "cpu", "runtime": "torch"}, {"torch"}, INSTALL_TORCH),
        ({"device": "cuda", "runtime": "torch"}, {"torch"}, INSTALL_TORCH),
        ({"device": "auto"}, {"torch", "openvino"}, INSTALL_OPENVINO),
        ({"device": "cpu"}, {"torch", "openvino"}, INSTALL_OPENVINO),
    ],
)
def test_what_is_missing_is_told_with_what_helps(monkeypatch, options, missing, message):
    monkeypatch.setattr(engine, "_is_installed", lambda package: package not in missing)
    with pytest.raises(EngineUnavailable) as error:
        load_engine(Settings(**options))
    assert str(error.value) == message


def test_a_command_that_needs_torch_says_so_in_one_line(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from app.cli import main; main()"
    command = [sys.executable, "-c", code, "evaluate", "--data", "cifar10", "--root", str(tmp_path)]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert (
        ended.stderr
        == "resnet: error: this needs torch, which is not installed here: pip install torch torchvision tqdm\n"
    )
