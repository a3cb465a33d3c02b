"""Which backend runs: what "auto" means, what is refused in one line, and what is imported for it."""

import pytest
import torch

from app.backends import choice, cuda_device, cuda_precision, mnn_backend, openvino_backend
from app.backends.choice import may_need_torch, open_backend, resolve
from app.backends.torch_backend import TorchBackend
from app.engine import load_engine
from app.engine_errors import EngineUnavailable
from app.settings import Settings
from tests.conftest import warnings_of

FLOATS = Settings(device="cpu", precision="float32", threads=2)


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
    monkeypatch.setattr(choice, "_gpu_in_sight", lambda: seen)
    assert may_need_torch(Settings(**options)) is expected


def test_without_openvino_torch_computes(monkeypatch):
    monkeypatch.setattr(choice, "_is_installed", lambda package: package != "openvino")
    assert may_need_torch(Settings(device="cpu"))


def test_without_openvino_a_cpu_runs_torch(source, monkeypatch):
    monkeypatch.setattr(choice, "_is_installed", lambda package: package != "openvino")
    assert open_backend(source, Settings(device="cpu")).runtime == "torch"
    with pytest.raises(EngineUnavailable, match="not installed"):
        open_backend(source, Settings(device="cpu", runtime="openvino"))


def test_a_gpu_is_of_no_use_without_torch(monkeypatch, caplog):
    monkeypatch.setattr(choice, "_is_installed", lambda package: package != "torch")
    monkeypatch.setattr(choice, "_gpu_in_sight", lambda: True)
    assert not may_need_torch(Settings(device="auto"))
    assert resolve(Settings(device="auto"))[:2] == ("openvino", "cpu")
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
    monkeypatch.setattr(choice, "_is_installed", lambda package: package not in missing)
    with pytest.raises(EngineUnavailable) as error:
        resolve(Settings(**options))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "runtime": "torch", "precision": "int8"}, "int8 needs device cpu and OpenVINO"),
        ({"device": "cpu", "runtime": "torch", "precision": "float16"}, "float16 needs device cuda"),
        ({"device": "cpu", "runtime": "openvino", "precision": "float16"}, "float16 needs device cuda"),
        ({"device": "cpu", "runtime": "mnn", "precision": "float16"}, "float16 needs device cuda"),
        ({"device": "cuda", "runtime": "openvino", "precision": "float32"}, "openvino needs device cpu"),
        ({"device": "cuda", "runtime": "mnn", "precision": "float32"}, "mnn needs device cpu"),
        ({"device": "cuda", "runtime": "openvino"}, "openvino needs device cpu"),
        ({"device": "cpu", "runtime": "mnn", "precision": "int8"}, "mnn computes in float32"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message):
    with pytest.raises(EngineUnavailable, match=message):
        resolve(Settings(**options))


@pytest.mark.parametrize(("seen", "device", "warned"), [(True, "auto", 1), (False, "auto", 0), (True, "cpu", 0)])
def test_a_gpu_that_torch_cannot_use_is_told_of_with_the_driver_it_needs(monkeypatch, caplog, seen, device, warned):
    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(choice, "_gpu_in_sight", lambda: seen)
    assert resolve(Settings(device=device, precision="float32"))[1] == "cpu"
    message = (
        "serving on the CPU, but there is an NVIDIA GPU that torch cannot use: The NVIDIA driver on your system is too "
        "old (found version 12040); CUDA 13.0 needs driver R580 or newer"
    )
    assert warnings_of(caplog) == [message] * warned


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [(0, "cuda", "device cuda cannot be used: no driver"), (2, "cuda:2", "no device cuda:2: torch sees 2 of them")],
)
def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_line(monkeypatch, count, device, message):
    def fails():
        raise AssertionError("no driver")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "init", fails)
    with pytest.raises(EngineUnavailable, match=message):
        resolve(Settings(device=device))


@pytest.mark.parametrize(("generation", "precision"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_is_a_gpu_that_torch_can_use_and_its_faster_float(monkeypatch, generation, precision):
    monkeypatch.setattr(choice, "_gpu_in_sight", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: generation)
    assert resolve(Settings()) == ("torch", "cuda", precision)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_gets_the_backend_for_it(source, device, monkeypatch):
    opened = []

    def opening(*arguments):
        opened.append(arguments)
        return TorchBackend(source, "cpu", *arguments[2:4])

    monkeypatch.setattr(cuda_precision, "open_cuda_backend", opening)
    monkeypatch.setattr(cuda_device, "require_gpu", lambda _device: None)
    open_backend(source, Settings(device=device, precision="float32", threads=1, batch_sizes=(1,)))
    assert opened == [(source, device, "float32", 1, 1)]


@pytest.mark.parametrize(("fast", "found"), [(True, "bfloat16"), (False, "float32")])
def test_on_a_cpu_auto_is_openvino_and_its_faster_float(monkeypatch, fast, found):
    monkeypatch.setattr(openvino_backend, "has_fast_bfloat16", lambda: fast)
    assert resolve(Settings(device="cpu")) == ("openvino", "cpu", found)
    for precision in ("float32", "bfloat16", "int8"):
        assert resolve(Settings(device="cpu", precision=precision)) == ("openvino", "cpu", precision)


def test_mnn_that_is_asked_for_computes_in_float32_on_every_processor(source, monkeypatch):
    monkeypatch.setattr(openvino_backend, "has_fast_bfloat16", lambda: True)
    made = open_backend(source, Settings(device="cpu", runtime="mnn"))
    assert (made.runtime, made.dtype, made._single.dtype) == ("mnn", "float32", "float32")


@pytest.mark.parametrize(("faster", "runtime"), [(True, "mnn"), (False, "openvino")])
def test_the_faster_of_the_two_is_taken_and_what_is_given_is_not_measured(source, monkeypatch, faster, runtime):
    monkeypatch.setattr(mnn_backend, "_is_faster", lambda *_: faster)
    settings = FLOATS.model_copy(update={"batch_sizes": (1, 2)})
    first = load_engine(settings)
    assert first.card["runtime"] == runtime
    monkeypatch.setattr(mnn_backend, "_is_faster", lambda *_: not faster)
    assert load_engine(settings.model_copy(update=first.tuning)).tuning == first.tuning


@pytest.mark.parametrize(
    "changes", [{"runtime": "openvino"}, {"split_batches": True}, {"precision": "bfloat16"}, {"precision": "int8"}]
)
def test_what_is_openvinos_is_opened_at_once(source, monkeypatch, changes):
    monkeypatch.setattr(mnn_backend, "MnnModel", lambda *_: pytest.fail("opened"))
    assert open_backend(source, FLOATS.model_copy(update=changes)).runtime == "openvino"


def test_without_mnn_openvino_computes(source, monkeypatch):
    monkeypatch.setattr(choice, "_is_installed", lambda package: package != "MNN")
    monkeypatch.setattr(mnn_backend, "MnnModel", lambda *_: pytest.fail("opened"))
    assert open_backend(source, FLOATS).runtime == "openvino"
