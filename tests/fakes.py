"""An engine for tests: answers from the mean colour, can be held, broken, or made to run out of memory."""

import threading

import numpy as np

CLASSES = [f"class{i}" for i in range(10)]


def rounded_probabilities(images):
    """Return `probabilities_of` as answers carry them: float64, rounded to six digits."""
    return probabilities_of(images).astype(np.float64).round(6)


def probabilities_of(images):
    """Map uint8 (N, 3, S, S) to a distribution over ten classes that only the image's own pixels decide."""
    scores = np.stack([images[:, c].mean(axis=(1, 2)) * (k + 1) for c in range(3) for k in range(4)], axis=1)[:, :10]
    scores = np.exp((scores - scores.max(axis=1, keepdims=True)) / 100)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


class FakeEngine:
    """`hold()` keeps the next batch inside the engine until `release()`; `errors` are raised one a batch.

    Another `shift` is another model: the same distribution, turned by so many classes, under a version of its own.
    """

    def __init__(self, size=32, shift=0, batch_sizes=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32)):
        self.shift = shift
        self.closed = False
        self.images_per_s = 0.0
        self.overlaps = False
        self.batch_sizes = batch_sizes
        self.batches = []
        self.errors = []
        self.entered = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self.card = {
            "name": "fake",
            "version": f"{shift}123456789ab",
            "sha256": f"{shift}123456789ab" + "0" * 52,
            "architecture": {"arch": "fake"},
            "classes": CLASSES,
            "input_size": size,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "temperature": 1.0,
            "calibration_exponent": 1.0,
            "calibrated": False,
            "temperature_fitted_on": "not fitted",
            "measured": [],
            "dataset": {},
            "recipe": {},
            "epochs": 0,
            "seed": 0,
            "libraries": {},
            "created": "",
            "device": "cpu",
            "dtype": "float32",
            "runtime": "fake",
        }

    @property
    def tuning(self):
        return {"batch_sizes": self.batch_sizes, "precision": self.card["dtype"]}

    def hold(self):
        self._open.clear()
        self.entered.clear()

    def release(self):
        self._open.set()

    def run(self, images, nearly_done=None):
        del nearly_done  # it tells nobody before it is done
        self.batches.append(len(images))
        self.entered.set()
        assert self._open.wait(timeout=30), "the test forgot to release the engine"
        if self.errors:
            raise self.errors.pop(0)
        return np.roll(probabilities_of(images), self.shift, axis=1)

    def close(self):
        self.closed = True


class Cats:
    """An engine that takes everything for a cat."""

    def __init__(self):
        self.card = {"classes": ["cat", "dog"], "input_size": 32}

    def run(self, images):
        return np.full((len(images), 2), (0.75, 0.25), np.float32)
