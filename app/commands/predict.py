"""`resnet predict FILE...`: classify images without a server, with the very engine and decoder of the service."""

from __future__ import annotations

import argparse
import json
from math import isfinite
from pathlib import Path
from typing import Any

from app.commands.argument_types import whole
from app.commands.endings import CommandError
from app.commands.settings_flags import add_settings, read_settings
from model.pictures.files import MAX_OWN_PIXELS, PictureError, read_picture


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="image files")
    parser.add_argument("--top-k", type=whole(1), default=3, help="classes to print for each image [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--max-pixels",
        default=argparse.SUPPRESS,
        metavar="PIXELS",
        help=f"most pixels in one image, as in training [RESNET_MAX_PIXELS, default {MAX_OWN_PIXELS}]",
    )
    add_settings(
        parser,
        only={"weights", "weights_sha256", "device", "precision", "runtime", "threads"},
        described={"weights": "checkpoint to classify with (safetensors)"},
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the likeliest classes of each file; exit 1 if one could not be read."""
    settings = read_settings(arguments)
    from app.batching.batches import DECIMALS
    from app.engine import SelfTestFailed, load_engine
    from app.engine_errors import EngineUnavailable
    from app.errors import ServiceError, TooManyPixels
    from app.imaging import decode
    from app.routes.answers import ranking
    from model.metadata import CheckpointError

    try:
        engine = load_engine(settings.model_copy(update={"batch_sizes": (1,)}))
    except (CheckpointError, EngineUnavailable, SelfTestFailed) as error:
        raise CommandError(error) from None
    max_pixels = settings.max_pixels if "max_pixels" in settings.model_fields_set else MAX_OWN_PIXELS
    classes, size = engine.card["classes"], engine.card["input_size"]
    failed = False
    for file in arguments.files:
        line: dict[str, Any] = {"file": str(file)}
        try:
            image = decode(read_picture(file), size, max_pixels)
            probabilities = engine.run(image[None])[0].astype(float).round(DECIMALS)
            ranked = ranking(probabilities, arguments.top_k)
            if all(map(isfinite, probabilities.tolist())):
                line["probabilities"] = [
                    {"label": classes[index], "probability": probability} for index, probability in ranked
                ]
            else:
                line["error"] = "the network has no finite answer"
        except PictureError as error:
            line["error"] = str(error)
        except MemoryError:
            line["error"] = "out of memory"
        except TooManyPixels as error:
            line["error"] = f"{error.detail} --max-pixels raises it."
        except ServiceError as error:
            line["error"] = str(error.__cause__ or error.detail)  # the text that training has for such a file
        failed |= "error" in line
        print(json.dumps(line) if arguments.json else _plain(line))
    return int(failed)


def _plain(line: dict[str, Any]) -> str:
    words = line.get("error") or ", ".join(
        f"{entry['label']} {entry['probability']:.1%}" for entry in line["probabilities"]
    )
    return f"{line['file']}: {words}"
