"""What serves on a CPU never loads torch, and gives back what only setting up needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.backends.openvino_backend import open_openvino
from app.engine import CheckpointEngine, load_engine
from app.settings import Settings
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
    backend = open_openvino(source, Settings(), precision)
    values = np.frombuffer(backend._constants._memory, np.uint8)
    assert resident_kb(values) > 40_000
    made = CheckpointEngine(source, backend, (1, 16))
    made.prepare(16)
    assert resident_kb(values) < 1_000
    made.run(source.self_test_images[:16])
    assert resident_kb(values) < 1_000


def test_nothing_is_left_on_the_disk_or_open(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load_engine(ON_CPU).close()  # what is opened once stays
    before = sorted(Path("/dev/fd").iterdir())
    load_engine(ON_CPU).close()
    assert sorted(Path("/dev/fd").iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_needs_torch_says_so_in_one_line(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from app.cli import main; main()"
    command = [sys.executable, "-c", code, "evaluate", "--data", "cifar10", "--root", str(tmp_path)]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert (
        ended.stderr
        == "resnet: error: this needs torch, which is not installed here: pip install torch torchvision tqdm\n"
    )
