"""LitServe, batching in one worker, with the settings of its guides to batching and to high throughput."""

# No `from __future__ import annotations` here: LitServe looks at the annotations themselves.
from typing import Annotated

import numpy as np
from fastapi import Depends, Request, Response
from litserve import LitAPI, LitServer
from numpy.typing import NDArray

from benchmarks.peers.engine import MAX_BATCH, Classifier, decode, port


async def raw_body(request: Request) -> bytes:
    """Return the body as it is; by itself LitServe takes JSON and forms only."""
    return await request.body()


class API(LitAPI):
    """Decodes and classifies in the worker process."""

    def setup(self, device: str) -> None:
        """Load the engine in the worker."""
        self.classifier = Classifier()

    def decode_request(self, request: Annotated[bytes, Depends(raw_body)]) -> NDArray[np.uint8]:
        """Decode one picture."""
        return decode(request)

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Leave the pictures a list; `answers` stacks them."""
        return inputs

    def predict(self, pictures: list[NDArray[np.uint8]]) -> list[bytes]:
        """Classify a batch."""
        return self.classifier.answers(pictures)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """One answer a picture."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Answer with bytes that are JSON already; LitServe's own encoding would parse and write them again."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    api = API(max_batch_size=MAX_BATCH, batch_timeout=0.001)
    server = LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=port(),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
