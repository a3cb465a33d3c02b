"""`resnet evaluate`: accuracy and calibration of a checkpoint, or of a running service, on a labelled dataset."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from app.commands.argument_types import share, whole
from app.commands.data_flags import AmongPictures, add_data, check_outside, check_writable, named_path
from app.commands.endings import CommandError
from app.commands.labelled_data import load_labelled
from app.commands.recorded_scores import check_recordable, record
from app.commands.settings_flags import add_settings, read_settings
from app.logs import set_up_logging

if TYPE_CHECKING:
    import torch

    from app.settings import Settings
    from model.checkpoint import Checkpoint
    from model.data import Dataset
    from model.evaluate import Scores

SPLITS = ("test", "train", "all")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_data(parser)
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="which images; scores on those that it was trained on mean little [%(default)s]",
    )
    parser.add_argument(
        "--url",
        help="ask this running service instead of loading --weights; pictures are decoded and resized here and sent as "
        "PNGs of the network's size, so this does not show that the service takes the files themselves",
    )
    parser.add_argument("--concurrency", type=whole(1), default=32, help="requests at once, with --url [%(default)s]")
    parser.add_argument("--limit", type=whole(1), help="only the first LIMIT images")
    parser.add_argument("--min-accuracy", type=share, default=0.0, help="exit 1 below this share, 0 to 1 [%(default)s]")
    parser.add_argument("--robustness", action="store_true", help="also as JPEG, WebP, greyscale, and upscaled")
    parser.add_argument("--json", type=named_path, help="also write the result to this file")
    parser.add_argument(
        "--report", type=named_path, metavar="DIR", help="also draw confusion matrix and the like into DIR"
    )
    parser.add_argument("--record", action="store_true", help="write the scores into the checkpoint's metadata")
    add_settings(
        parser,
        only={"weights", "weights_sha256", "device", "api_key"},
        described={"weights": "checkpoint to measure (safetensors)", "api_key": "key that the service of --url wants"},
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the scores; return 1 below --min-accuracy.

    Raises CommandError where something cannot be read, computed or written.
    """
    from model.data import DataError
    from model.extras import MissingExtra
    from model.hardware.device import DeviceError, lacks_memory
    from model.metadata import CheckpointError

    set_up_logging("info", "text")
    for flag in ("record", "robustness"):
        if arguments.url and getattr(arguments, flag):
            raise CommandError(f"--{flag} needs a checkpoint, not --url")
    settings = read_settings(arguments)
    try:
        dataset, measured = _measure(arguments, settings)
    except (DataError, AmongPictures, CheckpointError, MissingExtra, DeviceError, OSError) as error:
        raise CommandError(error) from None
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise CommandError("out of memory: --device cpu may have more, a smaller folder needs less") from None
    # Before printing, which fails if the reader has gone.
    result = measured.result
    failed = _write_files(arguments, result, dataset, measured.probabilities) or measured.unrecorded
    _print(result)
    if failed:  # the scores, which have taken minutes, are told first
        raise CommandError(failed)
    if arguments.report:
        print(f"report in {arguments.report}")
    if result["top1"] < arguments.min_accuracy:
        print(f"top-1 {result['top1']:.4f} is below {arguments.min_accuracy}", file=sys.stderr)
        return 1
    return 0


class _Measured(NamedTuple):
    """The result as --json writes it, float32 probabilities (N, classes), and what prevented --record, if it did."""

    result: dict[str, Any]
    probabilities: torch.Tensor
    unrecorded: Exception | None = None


def _measure(arguments: argparse.Namespace, settings: Settings) -> tuple[Dataset, _Measured]:
    """Return what was evaluated, and how it did."""
    import torch

    from model import checkpoint
    from model.hardware.device import limit_threads, pick_device
    from model.report import require_matplotlib

    limit_threads()
    if arguments.report:  # its errors are to come before the minutes that the evaluation takes
        require_matplotlib()
        check_outside("--report", arguments.report, arguments.data)
        check_writable(arguments.report / "report.json")
    check_writable(arguments.json)
    device = torch.device("cpu") if arguments.url else pick_device(settings.device)
    source = None if arguments.url else checkpoint.load(settings.weights, settings.weights_sha256)
    if arguments.record:  # of a file that is there: its folder is not made for a path that is wrong
        check_recordable(settings.weights)
    dataset = load_labelled(arguments, source, _key(settings))
    if source is None:
        return dataset, _ask_service(arguments, settings, dataset)
    return dataset, _score_and_record(arguments, source, dataset, device)


def _write_files(
    arguments: argparse.Namespace, result: dict[str, Any], dataset: Dataset, probabilities: torch.Tensor
) -> OSError | None:
    """Write what --json and --report ask for; return the error that prevented it, if one did."""
    from model.report import write_report

    try:
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        if arguments.report:
            write_report(arguments.report, None, dataset, probabilities)
    except OSError as error:
        return error
    return None


def _key(settings: Settings) -> str | None:
    return settings.api_key.get_secret_value() if settings.api_key else None


def _score_and_record(
    arguments: argparse.Namespace, source: Checkpoint, dataset: Dataset, device: torch.device
) -> _Measured:
    """Score a checkpoint on a device, and record the scores in its file with --record."""
    from model.evaluate import as_result, score_checkpoint
    from model.metadata import CheckpointError

    clean, probabilities = score_checkpoint(source, dataset, device)
    scores = clean.to_dict()
    if arguments.robustness:
        scores["robustness"] = _robustness(source, dataset, clean, device)
    unrecorded: Exception | None = None
    if arguments.record:
        try:
            source = record(source, scores)
        except (CheckpointError, OSError) as error:
            unrecorded = error
    result = as_result(source.metadata.name, source.version, "checkpoint", scores)
    return _Measured(result, probabilities, unrecorded)


def _robustness(
    source: Checkpoint, dataset: Dataset, clean: Scores, device: torch.device
) -> dict[str, dict[str, float]]:
    """Score the dataset as people would send it, which takes seven times as long as the clean one."""
    from tqdm import tqdm

    from model.robustness import CLEAN, CORRUPTIONS, robustness_table, score_corrupted

    metadata = source.metadata
    names = [name for name in CORRUPTIONS if name != CLEAN]
    with tqdm(total=len(names) * len(dataset), unit="image", disable=not sys.stderr.isatty()) as bar:
        by_name = score_corrupted(
            source.network().to(device),
            dataset,
            metadata.mean,
            metadata.std,
            metadata.calibration,
            names=names,
            progress=bar.update,
        )
    return robustness_table({CLEAN: clean} | by_name)


def _ask_service(arguments: argparse.Namespace, settings: Settings, dataset: Dataset) -> _Measured:
    """Score what a running service answers."""
    from app.client import classify_dataset
    from model.evaluate import as_result, score

    work = classify_dataset(arguments.url, dataset, min(arguments.concurrency, len(dataset)), _key(settings))
    model, probabilities = asyncio.run(work)
    scores = score(probabilities, dataset).to_dict()
    return _Measured(as_result(model["name"], model["version"], "service", scores), probabilities)


def _print(result: dict[str, Any]) -> None:
    print(f"{result['model']} version {result['version']} ({result['source']}) on {result['split']}")
    print(f"images {result['images']}")
    print(f"top-1  {result['top1']:.4f}")
    print(f"nll    {result['nll']:.4f}")
    print(f"ece    {result['ece']:.4f} (15 bins)")
    print(f"balanced accuracy {result['balanced_accuracy']:.4f}, the mean of the classes below that have images:")
    for name, accuracy in result["per_class"].items():
        print(f"  {name:<12} {'no images' if accuracy is None else f'{accuracy:.4f}'}")
    if "robustness" in result:
        print(f"{'sent as':<14} top-1    change   nll     ece")
        for name, row in result["robustness"].items():
            print(f"  {name:<12} {row['top1']:.4f}  {row['top1_change']:+.4f}  {row['nll']:.4f}  {row['ece']:.4f}")
