"""`resnet evaluate`: accuracy and calibration of a checkpoint, or of a running service, on a labelled dataset."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.data_flags import add_data
from app.commands.settings_flags import add_settings, read_settings

if TYPE_CHECKING:
    from model.data import Dataset
    from model.evaluate import Scores


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_data(parser)
    parser.add_argument("--url", help="ask this running service, one PNG a request, instead of loading --weights")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once, with --url [%(default)s]")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="exit 1 below this share [%(default)s]")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--record", action="store_true", help="write the scores into the checkpoint's metadata")
    add_settings(parser, only={"weights", "api_key"})


def run(arguments: argparse.Namespace) -> int:
    """Print the scores; exit 1 below --min-accuracy."""
    from model.checkpoint import CheckpointError
    from model.data import DataError

    if arguments.url and arguments.record:
        raise SystemExit("resnet: error: --record needs a checkpoint, not --url")
    try:
        dataset = _load_test_set(arguments)
        if arguments.limit:
            import torch

            dataset = dataset.select(torch.arange(min(arguments.limit, len(dataset))), f"test[:{arguments.limit}]")
        result = _ask_service(arguments, dataset) if arguments.url else _load_and_score(arguments, dataset)
    except (DataError, CheckpointError, ConnectionError) as error:
        print(f"resnet: error: {error}", file=sys.stderr)
        return 1
    _print(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if result["top1"] < arguments.min_accuracy:
        print(f"top-1 {result['top1']:.4f} is below {arguments.min_accuracy}", file=sys.stderr)
        return 1
    return 0


def _load_test_set(arguments: argparse.Namespace) -> Dataset:
    """Load the test split in the size and with the classes of what is evaluated. Raises DataError if they differ."""
    from app.client import fetch_card
    from model import checkpoint
    from model.datasets import check_classes, load_dataset

    settings = read_settings(arguments)
    if arguments.url:
        card = fetch_card(arguments.url, settings.api_key.get_secret_value() if settings.api_key else None)
        size, classes, whose = card["input_size"], tuple(card["classes"]), arguments.url
    else:
        metadata = checkpoint.load(settings.weights).metadata
        size, classes, whose = metadata.input_size, metadata.classes, str(settings.weights)
    dataset = load_dataset(
        arguments.data, arguments.root, train=False, image_size=size, on_bad_image=arguments.on_bad_image
    )
    check_classes(dataset, classes, whose)
    return dataset


def _load_and_score(arguments: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """Score a checkpoint in float32 on this machine."""
    import torch

    from model import checkpoint
    from model.evaluate import compute_logits, score

    path = read_settings(arguments).weights
    source = checkpoint.load(path)
    metadata = source.metadata
    logits = compute_logits(source.network(), dataset.images, metadata.mean, metadata.std)
    scores = score(torch.softmax(logits / metadata.temperature, dim=1), dataset)
    if arguments.record:
        others = tuple(one for one in metadata.measured if one["split"] != scores.split)
        metadata = metadata.model_copy(update={"measured": (*others, scores.to_dict())})
        checkpoint.save(path, metadata, source.tensors, source.self_test_images, source.self_test_probabilities)
        source = checkpoint.load(path)
    return _result(metadata.name, source.version, "checkpoint", scores)


def _ask_service(arguments: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """Score what a running service answers."""
    from app.client import classify_dataset
    from model.evaluate import score

    key = read_settings(arguments).api_key
    work = classify_dataset(arguments.url, dataset, arguments.concurrency, key.get_secret_value() if key else None)
    model, probabilities = asyncio.run(work)
    return _result(model["name"], model["version"], "service", score(probabilities, dataset))


def _result(name: str, version: str, source: str, scores: Scores) -> dict[str, Any]:
    return {"model": name, "version": version, "source": source, **scores.to_dict()}


def _print(result: dict[str, Any]) -> None:
    print(f"{result['model']} version {result['version']} ({result['source']}) on {result['split']}")
    print(f"images {result['images']}")
    print(f"top-1  {result['top1']:.4f}")
    print(f"nll    {result['nll']:.4f}")
    print(f"ece    {result['ece']:.4f} (15 bins)")
    for name, share in result["per_class"].items():
        print(f"  {name:<12} {'no images' if share is None else f'{share:.4f}'}")
