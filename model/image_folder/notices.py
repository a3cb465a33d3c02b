"""What is said of a folder's pictures before the time for training, or for scoring them, is spent."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.data import Dataset, held_out_mask
from model.image_folder.bad_files import MAX_NAMED
from model.image_folder.layout import PictureFile, some_of
from model.image_folder.near_duplicates import compared, in_floats, near_duplicates, thumbnails
from model.pictures.files import SERVED_PIXELS

log = logging.getLogger(__name__)

FEW_PICTURES = 10  # of a class
UNEVEN_TIMES = 10  # as many pictures of one class as of another
LARGE_TIMES = 4  # as many pixels on the shorter side as the network is to see
LONG_TIMES = 2  # as long as wide: less than half of the picture is left by the crop to a square
NOTHING_STD = 3.0  # grey levels
MAX_SHOWN = 5

Pictures = tuple[Tensor, Sequence[str]]  # thumbnails, float32 (N, 192), and their N files


def tell_of_training_pictures(root: Path, files: Sequence[PictureFile], dataset: Dataset) -> None:
    """Say how many pictures each class has, where there are few or far fewer, and where much of a picture is lost.

    `files` are those that were to be used, `dataset` holds those that can be.
    """
    classes, side = dataset.classes, dataset.images.shape[-1]
    counts = dict(zip(classes, dataset.labels.bincount(minlength=len(classes)).tolist(), strict=True))
    ranked = sorted(counts, key=lambda name: counts[name])
    shown = classes if len(classes) <= MAX_NAMED else ranked[:MAX_NAMED]
    beginning = "" if len(shown) == len(classes) else "the smallest: "
    log.info("%s: %s%s", root, beginning, ", ".join(f"{name} {counts[name]}" for name in shown))
    few = [name for name in ranked[:MAX_NAMED] if counts[name] < FEW_PICTURES]
    if few:
        log.warning("%s: fewer than %d pictures to train on: %s", root, FEW_PICTURES, ", ".join(few))
    least, most = ranked[0], ranked[-1]
    times = counts[most] // counts[least]
    if times >= UNEVEN_TIMES:
        found_out = f"top-1 hardly shows that a network answers {most} too often, balanced accuracy does"
        note = f"{found_out}; more pictures of {least} help, or else fewer of {most}"
        log.warning("%s: %d times as many pictures of %s as of %s: %s", root, times, most, least, note)
    found = int(np.median([file.side for file in files]))
    if found > LARGE_TIMES * side:
        note = "a larger --image-size keeps more of them, and takes longer"
        log.info("%s: pictures of some %d pixels are brought to %d: %s", root, found, side, note)
    long = sum(file.pixels > LONG_TIMES * file.side**2 for file in files)
    if long:
        note = "only the square in their middle is seen, here and in the service: crop them, or pad them to squares"
        log.info("%s: %d training picture(s) are more than %d times as long as wide: %s", root, long, LONG_TIMES, note)
    _tell_of_nothing(root, dataset)


def tell_of_refused_pictures(root: Path, files: Sequence[PictureFile]) -> None:
    """Say how many pictures of a split the service would refuse by its default: scores count them all the same."""
    large = sum(file.pixels > SERVED_PIXELS for file in files)
    if large:
        note = f"more than {SERVED_PIXELS} pixels, unless RESNET_MAX_PIXELS is raised"
        log.info("%s: the service would refuse %d of the pictures: %s", root, large, note)


def _tell_of_nothing(root: Path, dataset: Dataset) -> None:
    """Warn of pictures of which the network sees hardly more than one colour, all over and in all channels."""
    paths = dataset.paths or ()
    deviations = [part.std(dim=(1, 2, 3)) for part in in_floats(dataset.images)]
    blank = (torch.cat(deviations) < NOTHING_STD).nonzero()[:, 0].tolist()
    if blank:
        name = _below(root, paths[blank[0]])
        note = "transparency lies on white, and of 16 bits the upper eight count"
        log.warning("%s: %d picture(s) show next to nothing, such as %s: %s", root, len(blank), name, note)


def tell_of_test_pictures(
    root: Path, dataset: Dataset, tested: Tensor, labels: Tensor, paths: Sequence[str], *, more_to_test_on: str
) -> None:
    """Warn if of all or of some classes nothing is kept for the test, and of what looks like a training picture.

    `dataset` is the training set, `tested` are the thumbnails of the test pictures, float32 (M, 192), `labels`, int64
    (M,), their classes, and `paths` their M files; `more_to_test_on` is what to do for more of them.
    """
    if not paths:
        log.warning("%s: no picture is kept for the test: %s", root, more_to_test_on)
        return
    counts = labels.bincount(minlength=len(dataset.classes)).tolist()
    untested = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if untested:
        log.warning("%s: no test picture of %s: %s", root, some_of(untested, MAX_NAMED), more_to_test_on)
    note = "look like training pictures, so the test says more than it should"
    _tell_of_near_duplicates(root, (thumbnails(dataset.images), dataset.paths or ()), (tested, paths), ("test", note))


def tell_of_held_out_pictures(dataset: Dataset, count: int, *, fitted: bool) -> None:
    """Warn of pictures that look like others, where one of two is held out by `hold_out` and the other trained on.

    `dataset` is all of a training set, of which `count` are held out; `fitted` is whether the calibration is fitted on
    them. Of one without files, nothing is said. Raises DataError as `hold_out` does.
    """
    held = held_out_mask(dataset, count)
    if dataset.paths is None or not count:
        return
    root = Path(os.path.commonpath(dataset.paths))
    thumbs = thumbnails(dataset.images)
    kept, taken = (
        (thumbs[chosen], [dataset.paths[i] for i in chosen.nonzero()[:, 0].tolist()]) for chosen in (~held, held)
    )
    del thumbs  # both parts are copies
    say = "held-out figures and calibration say" if fitted else "held-out figures say"
    note = f"look like ones that are trained on, so {say} more than they should"
    _tell_of_near_duplicates(root, kept, taken, ("held-out", note))


def _tell_of_near_duplicates(root: Path, trained: Pictures, others: Pictures, words: tuple[str, str]) -> None:
    """Warn of the `others` that look like pictures to train on; `words` are what they are called, and what it means."""
    called, note = words
    (thumbs, paths), (looked_at_thumbs, looked_at_paths) = trained, others
    count = len(looked_at_paths)
    looked_at = len(compared(len(paths), count))
    if looked_at < count:
        log.info("%s: %d of %d %s pictures were compared with all training pictures", root, looked_at, count, called)
    pairs = near_duplicates(thumbs, looked_at_thumbs)
    if pairs:
        shown = pairs[:MAX_SHOWN]
        some = "; ".join(f"{_below(root, looked_at_paths[i])} like {_below(root, paths[j])}" for i, j in shown)
        more = f"; and {len(pairs) - MAX_SHOWN} more" if len(pairs) > MAX_SHOWN else ""
        of = f" of {looked_at}" if looked_at < count else ""
        log.warning("%s: %d%s %s picture(s) %s: %s%s", root, len(pairs), of, called, note, some, more)


def _below(root: Path, path: str) -> str:
    """Return a file's path below the root, quoted: names may hold line breaks."""
    return repr(str(Path(path).relative_to(root)))
