"""What `resnet bench engine` compares: the names on a GPU, and that none of them stands for something else."""

import re
import shlex
from functools import partial

import numpy as np
import pytest
import torch

from app.backends import cuda_backend
from app.backends.cuda_backend import CudaBackend, open_cuda_backend
from app.backends.torch_backend import TorchBackend
from app.commands.bench_contenders import contenders
from app.engine_errors import EngineUnavailable
from app.settings import Settings
from benchmarks.target_list import CUDA_BFLOAT16
from tests.conftest import ROOT
from tests.fake_cuda import FakeCuda


def test_on_a_gpu_eager_folded_compiled_and_graphs_are_compared(source):
    names = contenders(source, Settings(device="cuda", threads=1), "cuda").keys()
    for way in ("eager", "folded", "torch.compile", "CUDA graphs"):
        assert any(name.startswith(way) for name in names), names
    assert not [name for name in contenders(source, Settings(threads=1), "cpu") if name.startswith("CUDA")]


def test_what_make_bench_cuda_asks_for_is_there_and_what_the_targets_need_is_asked_for(source):
    makefile = (ROOT / "Makefile").read_text()
    names = shlex.split(re.search(r"^ON_A_GPU = (.+)$", makefile, re.M)[1])
    assert set(names) < contenders(source, Settings(device="cuda", threads=1), "cuda").keys()
    assert CUDA_BFLOAT16 in names
    sizes, rounds = re.search(r"bench engine --device cuda --sizes (\S+) --rounds (\d+)", makefile).groups()
    assert "1" in sizes.split(",")
    assert int(rounds) >= 5
    # Two minutes of turns of 0.4 s, with their pauses; the rest of ten is for what is compiled and searched.
    assert (1 + len(names)) * len(sizes.split(",")) * int(rounds) * 0.4 <= 120


def test_every_size_is_compiled_for_each_that_compiles(source, monkeypatch):
    compiled = []

    def backend(graph, _examples):
        compiled.append(graph)
        return graph.forward

    compile_with = partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, mode: compile_with(module, dynamic=dynamic))
    sizes = range(1, 7)
    for name in ("torch.compile float32", "torch.compile bfloat16"):
        run = contenders(source, Settings(threads=1), "cpu")[name]()
        for size in sizes:
            run(source.self_test_images[:size])
    assert len(compiled) == 2 * len(sizes)


def cuda_graphs(source):
    return contenders(source, Settings(device="cuda", threads=1), "cuda")["CUDA graphs float32"]()


def test_cuda_graphs_are_what_is_measured(source, monkeypatch):
    cuda = FakeCuda().install(monkeypatch)
    monkeypatch.setattr(cuda_backend, "PIECE", 4)
    monkeypatch.setattr(
        "app.commands.bench_contenders.open_cuda_backend",
        lambda source, _device, precision, threads: open_cuda_backend(source, "cpu", precision, threads),
    )
    images = source.self_test_images
    off = np.abs(cuda_graphs(source)(images) - source.self_test_probabilities)
    assert off.max() < source.metadata.self_test_tolerance
    assert cuda.graphs


def test_what_fell_back_is_left_out(source, monkeypatch):
    monkeypatch.setattr(
        "app.commands.bench_contenders.open_cuda_backend",
        lambda source, _device, precision, threads: CudaBackend(
            TorchBackend(source, "cpu", precision, threads), [], source.self_test_images, (1,)
        ),
    )
    with pytest.raises(EngineUnavailable, match="no CUDA graph"):
        cuda_graphs(source)(source.self_test_images)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_openvino_by_itself_computes_the_same_for_any_number_of_images(source):
    pytest.importorskip("openvino")
    run = contenders(source, Settings(threads=1), "cpu")["OpenVINO converted"]()
    images, wanted = source.self_test_images, source.self_test_probabilities
    for count in (1, len(images)):
        assert np.abs(run(images[:count]) - wanted[:count]).max() < source.metadata.self_test_tolerance
