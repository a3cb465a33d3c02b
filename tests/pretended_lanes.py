"""A CudaBackend's eager network and lanes on the CPU, of pictures of 2 x 2: what they are told; errors on demand."""

import numpy as np

from app.backends.cuda_backend import CudaBackend
from app.backends.cuda_proof import ExecutionMode

SIZES = (1, 2, 4)
EXAMPLES = np.random.default_rng(0).integers(0, 256, (3, 3, 2, 2), dtype=np.uint8)


def logits_of(images):
    return images.reshape(len(images), -1)[:, :5].astype(np.float32)


class PretendedEager:
    device = "cuda"  # only a name here: the errors are those of a CUDA device
    dtype = "float32"

    def __init__(self):
        self.batches = []
        self.errors = []
        self.closed = False
        self.entered = 0

    def enter(self):
        self.entered += 1

    def logits(self, images):
        assert self.entered
        self.batches.append(len(images))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return logits_of(images)

    def close(self):
        assert self.entered
        self.closed = True


class PretendedLane:
    """Computes `answers(images)`; raises one of `errors` at each step that meets one."""

    def __init__(self, answers=logits_of):
        self.answers = answers
        self.errors = {"prepare": [], "start": [], "close": []}
        self.told = []
        self.ready = set()
        self.closed = False

    def _step(self, name):
        if self.errors[name]:
            raise self.errors[name].pop(0)

    def prepare(self, size):
        if size not in self.ready:
            self.told.append(("prepare", size))
            self._step("prepare")
            self.ready.add(size)

    def start(self, images, size):
        self.told.append(("start", len(images), size))
        self._step("start")
        self._logits = self.answers(images)

    def finish(self):
        return self._logits

    def close(self):
        self.closed = True
        self.ready.clear()
        self._step("close")


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 2, 2), dtype=np.uint8)


def make(*ways):
    """A backend over ways "way 0", "way 1", ..., each a list of lanes or an error that opening them raises."""

    def opener(lanes):
        def open_lanes():
            if isinstance(lanes, Exception):
                raise lanes
            return lanes

        return open_lanes

    named = [ExecutionMode(f"way {number}", opener(lanes)) for number, lanes in enumerate(ways)]
    return CudaBackend(PretendedEager(), named, EXAMPLES, SIZES)
