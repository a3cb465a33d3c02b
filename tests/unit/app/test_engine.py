"""The shipped checkpoint in the engine: the same answers in every batch and precision, and failures told apart."""

import io
import weakref
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from app.backends.agreement import BOUND, compared_pictures
from app.backends.batch_sizes import ladder
from app.backends.choice import open_backend
from app.engine import CheckpointEngine, SelfTestFailed, load_engine
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.settings import Settings
from model.evaluate import compute_logits
from model.runtimes.batch_norm_folding import fold_batch_norm

KINDS = [("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16")]


@pytest.fixture(scope="module", params=[*KINDS, ("mnn", "float32"), ("openvino", "int8")], ids="-".join)
def engine(request, source):
    return make(source, *request.param)


@pytest.fixture(scope="module")
def pictures(examples):
    images = [np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) for data in examples.values()]
    return np.ascontiguousarray(np.stack(images))


def make(source, runtime="torch", precision="float32", batch_sizes=(1, 2, 4, 16)):
    backend = open_backend(source, Settings(device="cpu", runtime=runtime, precision=precision))
    return CheckpointEngine(source, backend, batch_sizes)


def test_it_passes_its_self_test(engine):
    engine.self_test()


def test_answers_are_distributions(engine, pictures):
    probabilities = engine.run(pictures)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (10, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_alone_padded_or_in_a_batch_an_image_gets_the_same_answer(engine, pictures):
    alone = np.concatenate([engine.run(pictures[i : i + 1]) for i in range(10)])
    padded = np.concatenate([engine.run(pictures[i : i + 3]) for i in range(0, 10, 3)])
    together = engine.run(pictures)
    for other in (padded, together):
        assert np.abs(alone - other).max() <= 1e-3
        np.testing.assert_array_equal(alone.argmax(axis=1), other.argmax(axis=1))


def test_so_does_one_that_is_not_classified_with_certainty(engine, source):
    """Where an error of the logits moves probabilities the most."""
    pictures = compared_pictures(source.self_test_images)
    alone = np.concatenate([engine.run(picture[None]) for picture in pictures])
    assert (alone.max(axis=1) < 0.9).mean() > 0.5
    for size in (3, 16):
        together = np.concatenate([engine.run(pictures[i : i + size]) for i in range(0, len(pictures), size)])
        assert np.abs(alone - together).max() <= BOUND


def test_images_that_may_not_be_written_to_are_computed_like_others(engine, pictures):
    read_only = np.frombuffer(pictures[:1].tobytes(), np.uint8).reshape(1, *pictures.shape[1:])
    np.testing.assert_array_equal(engine.run(read_only), engine.run(pictures[:1]))


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_float32_is_what_evaluation_computes(source, pictures, runtime):
    metadata = source.metadata
    logits = compute_logits(source.network(), torch.from_numpy(pictures), metadata.mean, metadata.std)
    expected = metadata.calibration.probabilities(logits).numpy()
    np.testing.assert_allclose(make(source, runtime).run(pictures), expected, atol=1e-5)


def test_folding_batch_norm_changes_nothing_but_rounding(source):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source.network()(images)
        folded = fold_batch_norm(source.network())
        torch.testing.assert_close(folded(images), expected, atol=1e-4, rtol=1e-4)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_another_transform_fails_the_self_test(source):
    wrong = make(source)
    wrong.backend._offset = torch.zeros(1, 3, 1, 1)
    with pytest.raises(SelfTestFailed, match="differ by"):
        wrong.self_test()


def test_a_broken_kernel_fails_the_self_test(source):
    broken = make(source)
    broken.backend.network.register_forward_hook(lambda _module, _inputs, logits: logits * float("nan"))
    with pytest.raises(SelfTestFailed):
        broken.self_test()


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), EngineOutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), EngineOutOfMemory),
        (RuntimeError("CUDA error: device-side assert triggered"), EngineBroken),
        (RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_failures_are_told_apart(source, pictures, raised, seen):
    engine = make(source)
    engine.backend._device = torch.device("cuda")  # only a name here: a sticky error is one of a CUDA device

    def fail(_images):
        raise raised

    engine.backend._forward = fail
    with pytest.raises(seen) as caught:
        engine.run(pictures)
    assert type(caught.value) is seen


def test_int8_tolerates_rounding_and_no_more(source):
    engine = make(source, "openvino", "int8")
    engine._self_test_probabilities = np.roll(engine._self_test_probabilities, 1, axis=0)
    with pytest.raises(SelfTestFailed, match=r"tolerance 0\.1"):
        engine.self_test()


@pytest.mark.parametrize(
    ("dtype", "off", "passes"),
    [("float32", 0.04, True), ("float32", 0.07, False), ("bfloat16", 0.07, False), ("int8", 0.07, True)],
)
def test_only_eight_bit_integers_may_be_further_off_than_the_checkpoint_says(source, dtype, off, passes):
    backend = Noting(resizes_freely=True)
    backend.dtype = dtype
    engine = CheckpointEngine(source, backend, (len(source.self_test_images),))
    engine.run = lambda _images: source.self_test_probabilities + np.float32(off)
    with nullcontext() if passes else pytest.raises(SelfTestFailed, match=r"tolerance 0\.05"):
        engine.self_test(*engine.batch_sizes)


def test_batch_sizes_are_measured_unless_given(source):
    engine = make(source, "openvino", batch_sizes=())
    engine.prepare(4)
    assert engine.batch_sizes == (1, 2, 3, 4)
    pinned = make(source, "openvino", batch_sizes=(3,))
    pinned.prepare(4)
    assert pinned.batch_sizes == (3,)


class Noting:
    """Notes the sizes of its batches."""

    runtime, device, dtype = "none", "cpu", "float32"

    def __init__(self, resizes_freely):
        self.resizes_freely = resizes_freely
        self.overlaps = False
        self.sizes = []

    def logits(self, images):
        self.sizes.append(len(images))
        return np.zeros((len(images), 10), np.float32)

    def release_setup_memory(self):
        self.has_released = True


@pytest.mark.parametrize(("overlaps", "told"), [(True, 1), (False, 0)])
def test_a_backend_that_overlaps_batches_is_told_whom_to_tell_that_it_is_nearly_done(source, overlaps, told):
    backend, calls = Noting(resizes_freely=True), []

    def logits(images, *nearly_done):
        for tell in nearly_done:
            tell()
        return np.zeros((len(images), 10), np.float32)

    backend.logits, backend.overlaps = logits, overlaps
    engine = CheckpointEngine(source, backend)
    assert engine.overlaps is overlaps
    engine.run(np.zeros((2, 3, 32, 32), np.uint8), lambda: calls.append(True))
    engine.run(np.zeros((2, 3, 32, 32), np.uint8))
    assert len(calls) == told


@pytest.mark.parametrize(
    ("resizes_freely", "chosen", "run"),
    [(False, ladder(64, 4), ladder(64, 4)), (True, (*range(1, 65),), (1, 64))],
    ids=str,
)
def test_where_sizes_change_freely_none_is_padded_and_those_between_are_not_run(
    source, monkeypatch, resizes_freely, chosen, run
):
    monkeypatch.setattr("app.engine.choose_batch_sizes", lambda *_, steps, **_options: ladder(64, steps))
    backend = Noting(resizes_freely)
    engine = CheckpointEngine(source, backend)
    engine.prepare(64)
    assert engine.batch_sizes == chosen
    assert backend.sizes == [*reversed(run), run[-1], run[-1]]  # the last one is timed, the one before warms up
    assert engine.images_per_s > 0
    assert backend.has_released
    engine.run(np.zeros((33, 3, 32, 32), np.uint8))
    assert backend.sizes[-1] == (33 if resizes_freely else 40)


def test_an_engine_without_a_finite_answer_for_a_black_image_is_refused(source):
    """By such an image it is found out whether an engine works."""
    backend = Noting(resizes_freely=False)
    backend.logits = lambda images: np.full((len(images), 10), np.where(len(images) == 2, np.nan, 0), np.float32)
    with pytest.raises(SelfTestFailed, match="no finite answer for a black image"):
        CheckpointEngine(source, backend, (1, 2, 4)).prepare(4)


def test_what_was_chosen_by_measurement_is_told_as_settings_of_the_same_engine(engine, pictures, monkeypatch):
    monkeypatch.setattr("app.engine.choose_batch_sizes", None)  # nothing is measured again
    assert engine.tuning.keys() <= Settings.model_fields.keys()
    again = load_engine(Settings(device="cpu", **engine.tuning))
    assert again.tuning == engine.tuning
    assert again.batch_sizes == engine.batch_sizes
    assert [again.card[name] for name in ("runtime", "dtype")] == [engine.card[name] for name in ("runtime", "dtype")]
    np.testing.assert_allclose(again.run(pictures), engine.run(pictures), atol=1e-6)
    again.close()


def test_the_card_says_what_is_served(source):
    engine = load_engine(Settings(device="cpu", batch_sizes=(1, 2)))
    assert engine.card["name"] == "resnet18-cifar10"
    assert engine.card["sha256"] == source.sha256
    assert engine.card["version"] == source.sha256[:12]
    assert engine.card["device"] == "cpu"
    assert engine.card["calibrated"] is True


@pytest.mark.parametrize(("fitted_on", "calibrated"), [("5000 images", True), ("given", False), ("not fitted", False)])
def test_a_temperature_that_was_fitted_on_no_images_is_no_calibration(source, fitted_on, calibrated):
    metadata = source.metadata.model_copy(update={"temperature_fitted_on": fitted_on})
    engine = CheckpointEngine(replace(source, metadata=metadata), Noting(resizes_freely=True))
    assert engine.card["calibrated"] is calibrated


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_answers_of_the_cpu(source, pictures):
    gpu = CheckpointEngine(source, open_backend(source, Settings(device="cuda", precision="float32")), (1, 16))
    gpu.self_test()
    np.testing.assert_allclose(gpu.run(pictures), make(source).run(pictures), atol=5e-3)


def test_what_did_not_fit_is_let_go_of_before_a_smaller_batch_is_tried(source, pictures):
    """The batcher tries the halves while it handles the error."""
    engine, held = make(source), []

    def fail(_images):
        activations = torch.zeros(1)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.backend._forward = fail
    with pytest.raises(EngineOutOfMemory) as caught:
        engine.run(pictures)
    assert caught.value.__cause__ is not None
    assert held[0]() is None
