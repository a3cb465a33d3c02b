"""`resnet evaluate`: accuracy and calibration of a checkpoint, or of a running service, on a labelled dataset."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.settings_flags import add_settings, read_settings

if TYPE_CHECKING:
    import torch

    from model.checkpoint import Checkpoint
    from model.data import Dataset
    from model.evaluate import Scores


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--data", choices=["cifar10"], default="cifar10", help="dataset [%(default)s]")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py [%(default)s]")
    parser.add_argument("--url", help="ask this running service, one PNG a request, instead of loading --weights")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once, with --url [%(default)s]")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="exit 1 below this share [%(default)s]")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also draw confusion matrix and the like into DIR")
    parser.add_argument("--record", action="store_true", help="write the scores into the checkpoint's metadata")
    add_settings(parser, only={"weights", "api_key"})


def run(arguments: argparse.Namespace) -> int:
    """Print the scores; exit 1 below --min-accuracy."""
    from model.checkpoint import CheckpointError
    from model.data import DataError, load_cifar10
    from model.extras import MissingExtra
    from model.report import require_matplotlib, write_report

    if arguments.url and arguments.record:
        raise SystemExit("resnet: error: --record needs a checkpoint, not --url")
    try:
        if arguments.report:  # what is wrong with it had better be known before the evaluation's minutes
            require_matplotlib()
            arguments.report.mkdir(parents=True, exist_ok=True)
        dataset = load_cifar10(arguments.root, train=False)
        if arguments.limit:
            import torch

            dataset = dataset.select(torch.arange(min(arguments.limit, len(dataset))), f"test[:{arguments.limit}]")
        evaluate = _ask_service if arguments.url else _load_and_score
        result, probabilities = evaluate(arguments, dataset)
    except (DataError, CheckpointError, MissingExtra, OSError) as error:
        print(f"resnet: error: {error}", file=sys.stderr)
        return 1
    _print(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.report:
        write_report(arguments.report, None, dataset, probabilities)
        print(f"report in {arguments.report}")
    if result["top1"] < arguments.min_accuracy:
        print(f"top-1 {result['top1']:.4f} is below {arguments.min_accuracy}", file=sys.stderr)
        return 1
    return 0


def score_checkpoint(source: Checkpoint, dataset: Dataset, device: torch.device) -> tuple[Scores, torch.Tensor]:
    """Score a checkpoint in float32 on `device`; return its scores and the float32 probabilities (N, classes)."""
    import torch

    from model.evaluate import compute_logits, score

    metadata = source.metadata
    logits = compute_logits(source.network().to(device), dataset.images, metadata.mean, metadata.std)
    probabilities = torch.softmax(logits / metadata.temperature, dim=1)
    return score(probabilities, dataset), probabilities


def _load_and_score(arguments: argparse.Namespace, dataset: Dataset) -> tuple[dict[str, Any], torch.Tensor]:
    """Score --weights on the CPU, and record the scores in the file if asked to."""
    import torch

    from model import checkpoint

    path = read_settings(arguments).weights
    source = checkpoint.load(path)
    metadata = source.metadata
    scores, probabilities = score_checkpoint(source, dataset, torch.device("cpu"))
    if arguments.record:
        others = tuple(one for one in metadata.measured if one["split"] != scores.split)
        metadata = metadata.model_copy(update={"measured": (*others, scores.to_dict())})
        checkpoint.save(path, metadata, source.tensors, source.self_test_images, source.self_test_probabilities)
        source = checkpoint.load(path)
    return as_result(metadata.name, source.version, "checkpoint", scores), probabilities


def _ask_service(arguments: argparse.Namespace, dataset: Dataset) -> tuple[dict[str, Any], torch.Tensor]:
    """Score what a running service answers."""
    from app.client import classify_dataset
    from model.evaluate import score

    key = read_settings(arguments).api_key
    work = classify_dataset(arguments.url, dataset, arguments.concurrency, key.get_secret_value() if key else None)
    model, probabilities = asyncio.run(work)
    return as_result(model["name"], model["version"], "service", score(probabilities, dataset)), probabilities


def as_result(name: str, version: str, source: str, scores: Scores) -> dict[str, Any]:
    """Return what --json writes: which model was measured, how, and its scores."""
    return {"model": name, "version": version, "source": source, **scores.to_dict()}


def _print(result: dict[str, Any]) -> None:
    print(f"{result['model']} version {result['version']} ({result['source']}) on {result['split']}")
    print(f"images {result['images']}")
    print(f"top-1  {result['top1']:.4f}")
    print(f"nll    {result['nll']:.4f}")
    print(f"ece    {result['ece']:.4f} (15 bins)")
    for name, share in result["per_class"].items():
        print(f"  {name:<12} {'no images' if share is None else f'{share:.4f}'}")
