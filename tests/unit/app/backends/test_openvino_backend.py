"""The network in OpenVINO: threads, want of memory, what has to be known of it; batches in pieces: test_pieces.py."""

import subprocess
import sys
from dataclasses import replace

import pytest

from app.backends.openvino_backend import WholeBatch, open_openvino
from app.engine import CheckpointEngine
from app.engine_errors import EngineOutOfMemory
from app.settings import Settings
from model.runtimes.openvino_core import core
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (RuntimeError("std::bad_alloc"), EngineOutOfMemory),
        (MemoryError("std::bad_alloc"), EngineOutOfMemory),
        (RuntimeError("the shapes do not match"), RuntimeError),
    ],
)
def test_openvino_out_of_memory_is_told_apart(source, raised, seen):
    engine = CheckpointEngine(source, open_openvino(source, Settings(), "float32"))

    class Failing:
        def set_input_tensor(self, _tensor):
            pass

        def infer(self, *_arguments, **_options):
            raise raised

    engine.backend._whole, engine.backend._pieces = WholeBatch(Failing()), None
    with pytest.raises(seen) as caught:
        engine.run(source.self_test_images)
    assert type(caught.value) is seen


def test_openvino_cuts_a_layer_into_a_part_for_each_thread(source):
    if "TBB_PARTITIONER" not in core().get_property("CPU", "SUPPORTED_PROPERTIES"):
        pytest.skip("this OpenVINO has no such property")
    compiled = open_openvino(source, Settings(threads=2), "float32")._compiled
    assert [one.get_property("TBB_PARTITIONER").name for one in compiled] == ["STATIC"] * 2  # the whole's, the pieces'


@pytest.mark.parametrize("pin", [True, False])
def test_threads_stay_on_their_cores_only_if_asked_to(source, pin):
    backend = open_openvino(source, Settings(pin_threads=pin), "float32")
    assert all(compiled.get_property("ENABLE_CPU_PINNING") is pin for compiled in backend._compiled)


SIGNAL_AFTER_CLOSE = """
import signal, threading
from app.engine import load_engine
from app.settings import Settings
closer = threading.Thread(target=load_engine(Settings(device="cpu", batch_sizes=(1,))).close)
closer.start()
closer.join()
del closer
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_after_another_thread_closed_openvino_is_handled():
    ended = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_CLOSE], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


@pytest.mark.parametrize(
    ("precision", "note", "told"),
    [("int8", {"self_test": "synthetic"}, True), ("int8", {}, False), ("float32", {"self_test": "synthetic"}, False)],
)
def test_ranges_of_int8_that_come_from_synthetic_images_are_warned_of(source, caplog, precision, note, told):
    metadata = source.metadata.model_copy(update={"dataset": source.metadata.dataset | note})
    open_openvino(replace(source, metadata=metadata), Settings(), precision).close()
    assert ("the ranges of int8 come from the self-test's images, which are synthetic" in caplog.text) == told
