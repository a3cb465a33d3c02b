"""The precision on CUDA: the fastest one in which a picture gets the same answer in whatever batch it comes.

How far answers move with the size of a batch is measured (agreement.py), so a precision is known to do only once the
network has been opened in it.
"""

from __future__ import annotations

import logging

from app.backends.agreement import BOUND, distinct, max_difference_between_batch_sizes, too_much
from app.backends.batch_sizes import LADDER_STEPS, ladder
from app.backends.cuda_backend import PIECE, CudaBackend, open_cuda_backend
from app.memory import clear_error_frames
from app.settings import Settings
from model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

# What "auto" takes in place of a precision whose answers move too much with the size of a batch. float16 is as fast as
# bfloat16 and rounds to an eighth of it; its smaller range is checked when a size is proven (cuda_proof.py).
FINER = {"bfloat16": "float16", "float16": "float32"}

# So many pictures are compared in batches of each size: the worst of a few says little of the worst of all. They are
# the checkpoint's own and shifted ones, see `distinct`.
COMPARED = 256


def open_on_cuda(source: Checkpoint, settings: Settings, device: str, precision: str) -> CudaBackend:
    """Open the network in `precision` or, if the settings leave it open, in a finer one whose answers agree.

    Warns of each that does not do. Raises EngineOutOfMemory, EngineBroken, and what torch raises.
    """
    most = max(settings.batch_sizes or (settings.max_queue_images,))
    while True:
        backend = open_cuda_backend(source, device, precision, settings.engine_threads, most)
        try:
            off = _max_difference(source, settings, backend)
        except BaseException as error:
            clear_error_frames(error)
            backend.close()
            raise
        finer = FINER.get(precision) if settings.precision == "auto" else None
        if off <= BOUND or finer is None:
            break
        backend.close()
        log.warning("not in %s but in %s: %s", precision, finer, too_much(off))
        precision = finer
    if off > BOUND:
        log.warning("in %s %s", precision, too_much(off))
    return backend


def _max_difference(source: Checkpoint, settings: Settings, backend: CudaBackend) -> float:
    """Measure with the sizes that batches may have; all of them are to be run before ready in any case."""
    calibration = source.metadata.calibration
    sizes = settings.batch_sizes or ladder(min(PIECE, settings.max_queue_images), LADDER_STEPS["cuda"])
    pictures = distinct(source.self_test_images, COMPARED)
    return max_difference_between_batch_sizes(
        lambda images: calibration.probabilities_numpy(backend.logits(images)),
        pictures,
        {min(size, PIECE) for size in sizes},
    )
