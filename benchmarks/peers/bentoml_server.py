"""BentoML: adaptive batching in the service's own process, behind its production server.

BentoML's documented inputs of a batchable API are JSON and multipart forms; raw bytes get in and out through input and
output classes of our own, which also saves it the parsing.
"""

# No `from __future__ import annotations` here: BentoML looks at the annotations themselves.
import os
import sys
from pathlib import Path

import bentoml
from _bentoml_sdk.io_models import IORootModel
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.engine import MAX_BATCH, Classifier, decode, port


class Picture(IORootModel[list[bytes]]):
    """The body as it is: a batch of one, which BentoML joins with others."""

    __root_input__ = True

    @classmethod
    async def from_http_request(cls, request: Request, _serde: object) -> "Picture":
        """Read the body."""
        return cls([await request.body()])


class Answer(IORootModel[list[bytes]]):
    """A batch of one answer, which is JSON already."""

    @classmethod
    async def to_http_response(cls, answers: list[bytes], _serde: object) -> Response:
        """Send the bytes."""
        return Response(answers[0], media_type="application/json")


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Classify:
    """One worker process: the network takes all cores by itself."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(
        route="/predict",
        batchable=True,
        max_batch_size=MAX_BATCH,
        max_latency_ms=10_000,
        input_spec=Picture,
        output_spec=Answer,
    )
    def predict(self, bodies: list[bytes]) -> list[bytes]:
        """Decode and classify a batch, in the worker's thread."""
        return self.classifier.answers([decode(body) for body in bodies])


if __name__ == "__main__":
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "benchmarks.peers.bentoml_server:Classify"]
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", str(port())])
