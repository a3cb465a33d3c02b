"""Ray Serve: one replica that batches, behind its HAProxy, optimised for throughput as its guide says."""

import os

os.environ |= {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else it writes a token into the home folder
}

import asyncio
import threading

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.engine import MAX_BATCH, Classifier, decode, port
from model.hardware.cores import available_cores


# A replica reserves one core by default, and Ray sets OMP_NUM_THREADS to what it reserves.
@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": available_cores()})
class Classify:
    """Decodes on the replica's event loop and classifies batches."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.001)
    async def classify(self, pictures: list[NDArray[np.uint8]]) -> list[bytes]:
        """Classify a batch; in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.classifier.answers, pictures)

    async def __call__(self, request: Request) -> Response:
        """Classify the picture in the body."""
        picture = decode(await request.body())
        return Response(await self.classify(picture), media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=available_cores(), include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": port()})
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.run(
        Classify.bind(),  # type: ignore[attr-defined]
        route_prefix="/predict",
        logging_config=quiet,
    )
    threading.Event().wait()
