"""`resnet bench engine`: the service's engine beside every other way to compute the same, on this machine."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from app.commands import bench_measurement, bench_report
from app.commands.argument_types import whole
from app.commands.data_flags import check_writable, named_path
from app.commands.endings import CommandError
from app.commands.settings_flags import add_settings, read_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.commands.bench_contenders import Run
    from model.checkpoint import Checkpoint

SETTINGS = ("weights", "weights_sha256", "device", "precision", "runtime", "threads")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected batch sizes such as 1,8,32, not {text!r}")
    return sizes


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", choices=["engine"], help="what to measure")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="batch sizes [1,2,4,...,512]")
    parser.add_argument(
        "--rounds", type=whole(1), default=5, help="rounds, interleaved; medians are shown [%(default)s]"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these contenders, besides the engine")
    parser.add_argument("--json", type=named_path, metavar="FILE", help="also write every round there")
    add_settings(parser, only=SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; exit 1 if the engine cannot be loaded."""
    settings = read_settings(arguments)
    import numpy as np
    import torch

    from app.backends.backend import device_kind
    from app.backends.choice import open_backend
    from app.commands.bench_contenders import contenders, engine_is, explained
    from app.engine_errors import EngineUnavailable
    from model import checkpoint
    from model.cost import count_macs
    from model.hardware.machine import describe
    from model.metadata import CheckpointError

    threads = settings.engine_threads
    settings = settings.model_copy(update={"threads": threads})
    torch.set_num_threads(threads)
    try:
        check_writable(arguments.json)
        source = checkpoint.load(settings.weights, settings.weights_sha256)
        with explained():
            backend = open_backend(source, settings)
    except (CheckpointError, EngineUnavailable, OSError) as error:
        raise CommandError(error) from None
    size = source.metadata.input_size
    images = np.random.default_rng(0).integers(0, 256, (max(arguments.sizes), 3, size, size), dtype=np.uint8)
    makers = contenders(source, settings, backend.device, backend)
    runs, left_out = _set_up(makers, arguments.only, source, images, arguments.sizes)
    rounds_s, products = bench_measurement.measure(runs, images, arguments.sizes, arguments.rounds, backend.device)
    side = bench_measurement.PRODUCT_SIDE[device_kind(backend.device)]
    operations = 2 * count_macs(source.network(), size)
    result = {
        "command": _command(arguments),
        "device": backend.device,
        "threads": threads,
        "precision": settings.precision,
        "engine_is": engine_is(backend),
        "ceiling": bench_report.ceiling_of(products, side, operations),
        "left_out": left_out,
        "contenders": {name: bench_report.summarise(by_size, rounds_s["engine"]) for name, by_size in rounds_s.items()},
    }
    bench_report.show(result)
    if arguments.json:
        kept = bench_report.kept_times(rounds_s)
        text = json.dumps({"machine": describe(backend.device), **result, "rounds_s": kept}, indent=1)
        arguments.json.write_text(text + "\n")
    return 0


def _set_up(
    makers: dict[str, Callable[[], Run]],
    only: Collection[str],
    source: Checkpoint,
    images: NDArray[np.uint8],
    sizes: tuple[int, ...],
) -> tuple[dict[str, Run], dict[str, str]]:
    """Set up and warm up the engine and the contenders named in `only`, or all of them if it names none.

    Returns those that can be measured, and why each of the others is left out.
    Raises CommandError if the engine cannot.
    """
    import numpy as np

    from app.commands.bench_contenders import explained
    from app.engine_errors import EngineUnavailable

    wanted = source.self_test_probabilities
    runs: dict[str, Run] = {}
    engine_s: dict[int, float] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        if name != "engine" and only and name not in only:
            continue
        print(f"setting up {name} ...", flush=True)
        try:
            with explained():
                made = make()
                off = float(np.abs(made(source.self_test_images) - wanted).max())
                bench_measurement.warm_up(made, images, sizes, engine_s)
        except EngineUnavailable as error:
            if name == "engine":
                raise CommandError(error) from None
            left_out[name] = str(error)
            continue
        print(f"  probabilities within {off:.4f} of those measured in training")
        runs[name] = made
    return runs, left_out


def _command(arguments: argparse.Namespace) -> str:
    """Return the command line of these arguments, without the settings that the environment or a default gave."""
    given = vars(arguments)
    words = ["resnet", "bench", arguments.what]
    for name in SETTINGS:
        words += ["--" + name.replace("_", "-"), str(given[name])] if name in given else []
    words += ["--sizes", ",".join(map(str, arguments.sizes)), "--rounds", str(arguments.rounds)]
    words += ["--json", str(arguments.json)] if arguments.json else []
    words += ["--only", *arguments.only] if arguments.only else []
    return shlex.join(words)
