"""A lane over a torch.cuda that only pretends: what is copied when, what a graph works on, and what is let go."""

import threading
import time

import numpy as np
import pytest
import torch

from app.backends import cuda_lane
from app.backends.cuda_lane import ASKED_SIZE, WARM_UP_RUNS, CudaLane, CudnnSearch, take_stream
from app.backends.lanes import Lanes
from tests.fake_cuda import FakeCuda

CPU = torch.device("cpu")
WEIGHT = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def forward(images):
    return images.flatten(1).float() @ WEIGHT


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda().install(monkeypatch)


def make_lane(compute=forward):
    return CudaLane(compute, CPU, 4, 2, 5, search=CudnnSearch())


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 2, 2), dtype=np.uint8)


def expected(batch):
    return forward(torch.from_numpy(batch)).numpy()


@pytest.mark.usefixtures("cuda")
def test_each_size_has_a_graph_that_works_on_what_was_sent():
    lane = make_lane()
    for size in (4, 1, 2):
        lane.prepare(size)
    for size in (1, 4, 2, 4, 1):
        batch = images(size, seed=size)
        lane.start(batch, size)
        np.testing.assert_allclose(lane.finish(), expected(batch), rtol=1e-5)


@pytest.mark.usefixtures("cuda")
def test_padding_gives_no_answers_and_changes_none():
    lane = make_lane()
    lane.prepare(4)
    for count in (4, 3, 1):
        batch = images(count, seed=count)
        lane.start(batch, 4)
        np.testing.assert_allclose(lane.finish(), expected(batch), rtol=1e-5)


def test_start_returns_before_anything_is_computed_and_has_its_own_copy(cuda):
    lane = make_lane()
    lane.prepare(4)
    batch = images(4)
    wanted = expected(batch)
    lane.start(batch, 4)
    batch[:] = 0
    assert cuda.streams[0].work
    np.testing.assert_allclose(lane.finish(), wanted, rtol=1e-5)
    assert not cuda.streams[0].work


@pytest.mark.usefixtures("cuda")
def test_two_lanes_share_nothing_but_the_network():
    lanes = Lanes([make_lane(), make_lane()], (1, 2, 4))
    for lane in lanes.lanes:
        for size in lanes.sizes:
            lane.prepare(size)
    for count in (1, 4, 5, 8, 11, 15):
        batch = images(count, seed=count)
        np.testing.assert_allclose(lanes.run(batch), expected(batch), rtol=1e-5)


def test_graphs_of_a_lane_share_memory_and_are_recorded_once_beside_whoever_serves(cuda):
    lane = make_lane()
    for size in (4, 1, 4):
        lane.prepare(size)
    assert len(cuda.graphs) == 2
    assert cuda.pools == [(0, 0), (0, 0)]
    assert set(cuda.modes) == {"thread_local"}


@pytest.mark.usefixtures("cuda")
def test_what_was_set_up_at_the_first_sight_of_a_shape_is_not_recorded():
    seen = []

    def compute(batch):
        if batch.shape not in seen:
            seen.append(batch.shape)
            batch.float().sum().item()  # as a library that looks for its best kernel
        return forward(batch)

    lane = make_lane(compute)
    lane.prepare(2)
    lane.start(images(2), 2)
    np.testing.assert_allclose(lane.finish(), expected(images(2)), rtol=1e-5)


@pytest.mark.parametrize("set_before", [False, True])
def test_cudnn_searches_before_the_recording_and_never_within_it(cuda, monkeypatch, set_before):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", set_before)
    seen = []

    def compute(batch):
        seen.append((bool(cuda.modes), torch.backends.cudnn.benchmark))
        return forward(batch)

    make_lane(compute).prepare(2)
    assert seen == [(False, True)] * WARM_UP_RUNS + [(True, False)]
    assert torch.backends.cudnn.benchmark is set_before


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("set_before", [False, True])
def test_cudnn_guesses_once_its_search_has_taken_its_time_also_within_a_size(monkeypatch, set_before):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", set_before)
    seen, computing = [], threading.Event()

    class Timer(threading.Timer):
        """Its time begins with the first run, however long a busy machine takes to come to it."""

        def run(self):
            computing.wait(60)
            super().run()

    monkeypatch.setattr(cuda_lane.threading, "Timer", Timer)

    def compute(batch):
        seen.append(torch.backends.cudnn.benchmark)
        computing.set()
        deadline = time.monotonic() + 10
        while torch.backends.cudnn.benchmark and time.monotonic() < deadline:
            time.sleep(0.001)  # as a search does that takes all of the time
        return forward(batch)

    search = CudnnSearch(budget_s=0.2)
    lanes = [CudaLane(compute, CPU, 4, 2, 5, search=search) for _ in range(2)]
    for lane, size in ((lanes[0], 1), (lanes[0], 2), (lanes[1], 1)):
        lane.prepare(size)
    assert seen == [True] + [False] * (3 * (WARM_UP_RUNS + 1) - 1)
    assert torch.backends.cudnn.benchmark is set_before


@pytest.mark.usefixtures("cuda")
def test_what_the_search_took_and_where_it_came_to_its_end_is_told_of_each_size_once(monkeypatch):
    now, left = [0.0], [3.0]
    monkeypatch.setattr(cuda_lane.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cuda_lane, "SEARCH_S", left[0])  # read when a search is made

    def compute(batch):
        now[0] += 0.5
        return forward(batch)

    search = CudnnSearch()
    assert search.summary() == "0.0 s of search, to its end for batches of none"
    lanes = [CudaLane(compute, CPU, 4, 2, 5, search=search) for _ in range(2)]
    lanes[0].prepare(4)
    assert search.summary() == "1.5 s of search, to its end for batches of 4"
    lanes[0].prepare(1)
    lanes[0].prepare(2)
    lanes[1].prepare(4)
    assert search.summary() == "3.0 s of search, to its end for batches of 4, guesses for 1, 2"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("size", "sleeps"), [(1, False), (ASKED_SIZE, False), (ASKED_SIZE + 1, True)])
def test_who_waits_for_a_small_batch_stays_awake(size, sleeps):
    lane = CudaLane(forward, CPU, 2 * ASKED_SIZE, 2, 5, search=CudnnSearch())
    for other in (2 * ASKED_SIZE, 1):  # whatever came before
        lane.prepare(other)
        lane.start(images(other), other)
        lane.finish()
    lane.prepare(size)
    lane.start(images(size), size)
    assert lane._done.blocking is sleeps
    np.testing.assert_allclose(lane.finish(), expected(images(size)), rtol=1e-5)


@pytest.mark.usefixtures("cuda")
def test_the_end_of_the_search_is_for_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    make_lane(forward).prepare(1)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_the_search_ends_with_what_fails(cuda):
    def fails(_batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        make_lane(fails).prepare(2)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("cuda")
def test_logits_of_pictures_seen_before_cannot_pass_for_new_ones():
    first = {}

    def remembering(batch):
        return first.setdefault(len(batch), forward(batch))

    lane = make_lane(remembering)
    lane.prepare(4)
    lane.start(images(4), 4)
    lane.finish()
    lane.prepare(2)  # the buffer holds the pictures that follow
    lane.start(images(4)[:2], 2)
    assert np.abs(lane.finish() - expected(images(4)[:2])).max() > 1


def waiting(batch):
    """As no recording allows: the host waits for the device."""
    return forward(batch) * batch.float().sum().item()


def in_use(cuda):
    """The pools that graphs have."""
    return +cuda.uses


def test_what_cannot_be_recorded_raises_and_leaves_the_stream_as_it_was(cuda):
    before = cuda.current
    lane = make_lane(waiting)
    with pytest.raises(RuntimeError, match="capturing"):
        lane.prepare(2)
    assert cuda.current is before
    lane.close()
    assert take_stream(CPU) is cuda.streams[0]


def test_a_stream_that_records_for_ever_is_taken_by_no_other_lane(cuda):
    lane = make_lane(waiting)
    cuda.capturing = True
    with pytest.raises(RuntimeError, match="capturing"):
        lane.prepare(2)
    lane.close()
    assert take_stream(CPU) is not cuda.streams[0]


@pytest.mark.parametrize("reset_frees", [True, False])
def test_a_recording_that_failed_keeps_no_memory_and_leaves_other_graphs_theirs(cuda, reset_frees):
    cuda.reset_frees = reset_frees
    lane = make_lane(lambda batch: (forward if len(batch) == 1 else waiting)(batch))
    lane.prepare(1)
    with pytest.raises(RuntimeError, match="capturing"):
        lane.prepare(2)
    assert not cuda.under_way
    assert in_use(cuda) == {(0, 0): 1}
    lane.start(images(1), 1)
    np.testing.assert_allclose(lane.finish(), expected(images(1)), rtol=1e-5)
    lane.close()
    assert not in_use(cuda)


def test_a_torch_without_what_frees_memory_loses_it_and_tells_the_error_all_the_same(cuda, monkeypatch):
    cuda.reset_frees = False
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    with pytest.raises(RuntimeError, match="capturing"):
        make_lane(waiting).prepare(2)


@pytest.mark.parametrize("end_error", [None, RuntimeError("operation failed due to a previous error during capture")])
@pytest.mark.parametrize("reset_frees", [True, False])
def test_a_lane_whose_first_recording_found_too_little_memory_records_later(cuda, reset_frees, end_error):
    def greedy(batch):
        if len(cuda.modes) == 1:  # it is recorded for the first time
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    cuda.reset_frees, cuda.end_error = reset_frees, end_error
    lane = make_lane(greedy)
    with pytest.raises(RuntimeError):
        lane.prepare(2)
    assert not in_use(cuda)
    cuda.modes.append("later")
    lane.prepare(2)
    lane.start(images(2), 2)
    np.testing.assert_allclose(lane.finish(), expected(images(2)), rtol=1e-5)


def test_a_recording_that_finds_too_little_memory_keeps_neither_memory_nor_stream(cuda):
    def greedy(batch):
        if len(cuda.modes) > 1:  # it is recorded
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    lane = make_lane(greedy)
    lane.prepare(1)
    with pytest.raises(torch.OutOfMemoryError):
        lane.prepare(2)
    lane.start(images(1), 1)
    np.testing.assert_allclose(lane.finish(), expected(images(1)), rtol=1e-5)
    lane.close()
    assert [graph.was_reset for graph in cuda.graphs] == [True, True]
    assert take_stream(CPU) is cuda.streams[0]


def test_a_closed_lane_lets_go_of_its_graphs_and_of_its_stream(cuda):
    lane = make_lane()
    lane.prepare(1)
    lane.prepare(2)
    lane.close()
    assert all(graph.was_reset for graph in cuda.graphs)
    assert not [value for value in vars(lane).values() if isinstance(value, torch.Tensor)]
    assert make_lane()._stream is cuda.streams[0]


def test_however_many_lanes_come_and_go_a_live_one_has_its_stream_alone(cuda):
    live = make_lane()
    for _ in range(40):
        passing = make_lane()
        assert passing._stream is not live._stream
        passing.close()
    assert len(cuda.streams) == 2
