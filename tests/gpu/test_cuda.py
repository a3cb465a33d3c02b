"""On a real CUDA device: graphs over two lanes give the eager network's answers, and give back what they took."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.backends.agreement import BOUND, distinct
from app.backends.batch_sizes import LADDER_STEPS, MAX_BATCH, ladder
from app.backends.cuda_backend import LANES, PIECE, CudaBackend, open_cuda_backend
from app.backends.cuda_lane import CudaLane, CudnnSearch
from app.backends.cuda_proof import TOLERANCES, ExecutionMode
from app.engine import load_engine
from app.engine_errors import EngineOutOfMemory
from app.settings import Settings
from model.runtimes.fused_convolutions import FusedNetwork, PlainKernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

DEVICE = "cuda"
SIZES = ladder(PIECE, LADDER_STEPS[DEVICE])
MANY = 1000
COUNTS = {*ladder(MANY, LADDER_STEPS[DEVICE]), 5, PIECE - 1, PIECE + 1, 2 * PIECE + 1, 3 * PIECE + 44}


@pytest.fixture(scope="module")
def pictures(source):
    """So many pictures that no two of them are alike, in no order that a piece could hide in."""
    return np.ascontiguousarray(np.random.default_rng(0).permutation(distinct(source.self_test_images, MANY)))


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def backend(request, source):
    made = open_cuda_backend(source, DEVICE, request.param, 1)
    yield made
    made.close()


def require_same(backend, images):
    expected = backend.eager.logits(images)
    logits = backend.logits(images)
    assert backend.mode != "eager"
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= TOLERANCES[backend.dtype] * np.abs(expected).max()


@pytest.mark.parametrize("count", sorted(COUNTS))
def test_graphs_give_the_eager_logits(backend, pictures, count):
    require_same(backend, pictures[:count])


def test_the_fused_convolutions_work_whether_or_not_they_are_the_quickest(backend, pictures):
    if backend.dtype == "float32":
        pytest.skip("cuDNN need not have them for float32 without TF32")
    backend.logits(pictures[:PIECE])
    names = {lanes.mode.name for lanes in backend._modes}
    assert "CUDA graphs with fused convolutions" in names  # otherwise all is right, and slower than it may be


def test_every_lane_has_its_share(backend, pictures, monkeypatch):
    backend.logits(pictures)
    started = []
    for number, lane in enumerate(lanes_of(backend)):
        monkeypatch.setattr(lane, "start", counting(lane.start, number, started))
    backend.logits(pictures)
    assert started == [number % LANES for number in range(-(-MANY // PIECE))]


def lanes_of(backend):
    return backend._modes[0].opened().lanes


def counting(start, number, started):
    def counted(images, size):
        started.append(number)
        start(images, size)

    return counted


def test_buffers_keep_nothing_of_the_batch_before(backend, pictures):
    first = backend.logits(pictures[:300])
    backend.logits(pictures[300:])
    again = backend.logits(pictures[:300])
    assert np.abs(again - first).max() <= 0.01 * np.abs(first).max()
    alone = np.concatenate([backend.logits(pictures[i : i + 1]) for i in range(5)])
    assert np.abs(alone - first[:5]).max() <= TOLERANCES[backend.dtype] * np.abs(first).max()


def test_recorded_in_one_thread_and_run_in_another(source, pictures):
    backend = open_cuda_backend(source, DEVICE, "float32", 1)
    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1) as engine:
        expected = loader.submit(backend.logits, pictures[:300]).result()
        logits = engine.submit(backend.logits, pictures[:300]).result()
        np.testing.assert_allclose(logits, expected, atol=0.01 * np.abs(expected).max())
        assert backend.mode != "eager"
        loader.submit(backend.close).result()


def test_one_is_recorded_while_another_one_serves(source, pictures):
    serving = open_cuda_backend(source, DEVICE, "float32", 1)
    batch = pictures[:600]
    expected = serving.logits(batch)
    done = []

    def serve():
        runs = []
        while not done or not runs:
            runs.append(serving.logits(batch))
        return runs

    with ThreadPoolExecutor(1) as engine:
        runs = engine.submit(serve)
        try:
            loaded = open_cuda_backend(source, DEVICE, "float32", 1)
            for count in (1, 16, PIECE, 600):
                loaded.logits(pictures[:count])
        finally:
            done.append(True)
        for logits in runs.result():
            np.testing.assert_allclose(logits, expected, atol=0.01 * np.abs(expected).max())
    assert "eager" not in (loaded.mode, serving.mode)
    loaded.close()
    serving.close()


def test_an_engine_measures_its_sizes_and_has_recorded_them_all_by_then(source, pictures):
    engine = load_engine(Settings(device=DEVICE))
    assert 1 <= engine.batch_sizes[-1] <= MAX_BATCH["cuda"]
    proven = set(engine.backend._modes[0]._proven)
    for count in range(1, min(engine.batch_sizes[-1], MANY) + 1, 7):
        probabilities = engine.run(pictures[:count])
        assert probabilities.shape == (count, len(source.metadata.classes))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert engine.backend._modes[0]._proven == proven
    engine.self_test()
    engine.close()


def test_a_picture_gets_the_same_answer_alone_and_in_every_batch(pictures):
    engine = load_engine(Settings(device=DEVICE))  # in the precision that is found to allow for it
    alone = np.concatenate([engine.run(pictures[i : i + 1]) for i in range(64)])
    for size in engine.batch_sizes:
        batches = [engine.run(pictures[begin : begin + size]) for begin in range(0, min(64, len(pictures)), size)]
        together = np.concatenate(batches)[:64]
        assert np.abs(together - alone[: len(together)]).max() <= BOUND, size
    engine.close()


def test_reloads_take_no_more_memory_each_time(source, pictures):
    def load_and_close():
        backend = open_cuda_backend(source, DEVICE, "bfloat16", 1)
        for count in (PIECE, 1, 600):
            backend.logits(pictures[:count])
        taken = torch.cuda.memory_reserved()
        backend.close()
        return taken, torch.cuda.memory_reserved()

    load_and_close()  # what libraries set up once, such as cuBLAS' workspace
    taken, left = load_and_close()
    assert left < taken
    for _ in range(3):
        again, left_again = load_and_close()
        assert again <= 1.1 * taken
        assert left_again <= left


def test_a_serving_lane_has_its_stream_alone_after_many_reloads(source):
    live = open_cuda_backend(source, DEVICE, "float32", 1)
    images = source.self_test_images[:1]
    live.logits(images)
    streams = {lane._stream for lane in lanes_of(live)}
    assert len(streams) == LANES
    for _ in range(20):  # two streams each: more than torch has
        passing = open_cuda_backend(source, DEVICE, "float32", 1)
        passing.logits(images)
        assert not streams & {lane._stream for lane in lanes_of(passing)}
        passing.close()
    live.close()


def allow_no_more_memory():
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)


def open_lanes_with(forward, source):
    size, classes = source.metadata.input_size, len(source.metadata.classes)
    search = CudnnSearch()
    return [CudaLane(forward, torch.device(DEVICE), PIECE, size, classes, search=search) for _ in range(LANES)]


def test_too_little_memory_is_told_and_leaves_the_way_open(source, pictures):
    backend = open_cuda_backend(source, DEVICE, "float32", 1)
    backend.logits(pictures[:1])
    count = 3 * PIECE // 4  # not recorded yet, as the largest is
    torch.cuda.empty_cache()
    allow_no_more_memory()
    try:
        with pytest.raises(EngineOutOfMemory):
            backend.logits(pictures[:count])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert backend.mode != "eager"
    require_same(backend, pictures[:count])
    backend.close()


def test_too_little_memory_in_the_midst_of_a_recording_is_told_and_leaves_the_way_open(source, pictures, caplog):
    eager = open_cuda_backend(source, DEVICE, "float32", 1).eager
    network = FusedNetwork(eager.network, PlainKernels())
    recorded = []

    def scarce(images):
        if torch.cuda.is_current_stream_capturing():
            recorded.append(len(images))
            if len(recorded) == 1:
                allow_no_more_memory()
        return eager.logits_by(network, images)

    ways = [ExecutionMode("scarce", lambda: open_lanes_with(scarce, source))]
    backend = CudaBackend(eager, ways, source.self_test_images, SIZES)
    try:
        with pytest.raises(EngineOutOfMemory):
            backend.logits(pictures[:PIECE])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    failed = len(recorded)
    assert set(recorded) == {PIECE}  # what was warmed up before has fitted
    require_same(backend, pictures[:PIECE])
    assert backend.mode == "scarce"
    assert recorded == [PIECE] * (failed + 1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    backend.close()


def test_what_cannot_be_recorded_leaves_a_device_that_works(source, pictures, caplog):
    good = open_cuda_backend(source, DEVICE, "float32", 1)
    network = FusedNetwork(good.eager.network, PlainKernels())

    def waiting(images):
        logits = good.eager.logits_by(network, images)
        return logits + 0 * logits.sum().item()  # the host waits for the device, which no recording allows

    ways = [ExecutionMode("waiting", lambda: open_lanes_with(waiting, source)), *(lanes.mode for lanes in good._modes)]
    backend = CudaBackend(good.eager, ways, source.self_test_images, SIZES)
    require_same(backend, pictures[:300])
    assert backend.mode != "waiting"
    assert "waiting does not work here" in caplog.text
    backend.close()


def test_recordings_that_fail_take_no_more_memory_each_time(source, pictures):
    def fail():
        eager = open_cuda_backend(source, DEVICE, "float32", 1).eager
        network = FusedNetwork(eager.network, PlainKernels())

        def waiting(images):
            logits = eager.logits_by(network, images)
            return logits + 0 * logits.sum().item()

        ways = [ExecutionMode("waiting", lambda: open_lanes_with(waiting, source))]
        backend = CudaBackend(eager, ways, source.self_test_images, SIZES)
        backend.logits(pictures[:300])
        assert backend.mode == "eager"
        backend.close()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    fail()  # what libraries set up once
    left = fail()
    for _ in range(3):
        assert fail() <= left
