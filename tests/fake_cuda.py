"""As much of torch.cuda as a lane needs, on the CPU: streams that work later, and graphs that are recorded.

What is copied or launched on a stream happens when somebody waits for the stream, and not before; memory that is used
too early or too late therefore shows. What is recorded into a graph has not been computed by the end of the recording,
works on the very tensors that it was recorded with, and fails where the host waits for the device. A recording that
fails so does not end well either, and leaves the allocator believing in it, as torch does.
"""

from collections import Counter, defaultdict
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from app.backends import cuda_lane

aten = torch.ops.aten

NO_ENGINE = "FIND was unable to find an engine to execute this computation"


class Stream:
    def __init__(self, _device=None):
        self.work = []

    def wait_stream(self, _other):
        pass  # what is not on a stream of ours has been done at once

    def synchronize(self):
        while self.work:
            self.step()

    def step(self):
        with _disable_current_modes():  # now is later
            self.work.pop(0)()


class Event:
    def __init__(self, blocking=False):
        self.blocking = blocking
        self.stream, self.left = None, 0

    def record(self, stream):
        def arrived():
            self.left -= 1

        self.stream = stream
        self.left += 1
        stream.work.append(arrived)

    def synchronize(self):
        while self.left:
            self.stream.step()


class Graph:
    def __init__(self, cuda):
        self.cuda = cuda
        self.steps = None
        self.was_reset = False
        self.pool = None
        self.has_ended = False

    def replay(self):
        assert self.steps is not None
        assert not self.was_reset
        self.cuda.current.work.append(self._run)

    @torch.inference_mode()
    def _run(self):
        for function, arguments, options, result in self.steps:
            again = function(*arguments, **options)
            if isinstance(result, torch.Tensor) and result.data_ptr() != again.data_ptr():
                result.copy_(again)

    def reset(self):
        self.was_reset = True
        if self.pool is not None and (self.has_ended or self.cuda.reset_frees):
            self.cuda.under_way.discard(self.pool)
            self.cuda.release_pool(0, self.pool)
            self.pool = None


class Later(TorchDispatchMode):
    """Copies are put off until the stream comes to them."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is aten.copy_.default:
            self.stream.work.append(lambda: function(*args, **(kwargs or {})))
            return args[0]
        return function(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (aten._local_scalar_dense.default, aten.item.default):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.steps.append((function, args, kwargs or {}, result))
        return result


class FakeCuda:
    """Takes the place of torch.cuda's parts by `install`; keeps what was made.

    `reset_frees` says whether a graph whose recording has not ended well lets go of its pool when it is reset: that of
    torch 2.14 does, that of 2.11 does not. `under_way` are the pools that the allocator believes to be recorded into,
    `uses` says how many graphs have each.
    """

    def __init__(self):
        self.reset_frees = True
        self.capturing = False
        self.end_error = None
        self.under_way = set()
        self.uses = Counter()
        self.handles = 0
        self.current = Stream()
        self.graphs = []
        self.pools = []
        self.streams = []
        self.modes = []

    def install(self, monkeypatch):
        empty = torch.empty

        def pageable(*shape, pin_memory=False, **options):
            return empty(*shape, **options)

        monkeypatch.setattr(torch, "empty", pageable)
        monkeypatch.setattr(cuda_lane, "_idle_streams", defaultdict(list))
        replaced = {
            "Stream": self.make_stream,
            "Event": Event,
            "CUDAGraph": self.make_graph,
            "graph": self.graph,
            "graph_pool_handle": self.make_pool,
            "current_stream": lambda _device=None: self.current,
            "current_device": lambda: 0,
            "is_current_stream_capturing": lambda: self.capturing,
            "stream": self.stream,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(cuda_lane, "_unfit", [])
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release_pool, raising=False)
        return self

    def make_pool(self):
        self.handles += 1
        return 0, self.handles - 1

    def end_allocating(self, _device, pool):
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release_pool(self, _device, pool):
        self.uses[pool] -= 1
        assert self.uses[pool] >= 0

    def make_stream(self, device):
        self.streams.append(Stream(device))
        return self.streams[-1]

    def make_graph(self):
        self.graphs.append(Graph(self))
        return self.graphs[-1]

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            with Later(stream):
                yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert stream is self.current
        assert not stream.work
        if pool in self.under_way:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if pool in self.uses and not self.uses[pool]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.pools.append(pool)
        self.modes.append(capture_error_mode)
        self.uses[pool] += 1
        self.under_way.add(pool)
        graph.pool = pool
        steps = []
        try:
            with Recording(steps):
                yield
        except torch.OutOfMemoryError:
            if self.end_error is not None:
                raise self.end_error  # noqa: B904 -- torch's has no cause either
            self._end(graph)
            raise
        self._end(graph)
        for *_, result in steps:  # computed by nobody yet
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                result.fill_(torch.nan)
        stream.work.clear()
        graph.steps = steps

    def _end(self, graph):
        self.under_way.remove(graph.pool)
        graph.has_ended = True
