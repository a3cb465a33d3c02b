"""Mosec: its HTTP server in Rust, batching in front of one worker process that decodes and classifies."""

import sys

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from benchmarks.peers.engine import MAX_BATCH, Classifier, decode, port


class Classify(Worker):
    """One stage. A second one for decoding costs more in pickling between the two than two cores can win back."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> object:
        """Decode one picture."""
        return decode(data)

    def serialize(self, data: bytes) -> bytes:
        """The answer is JSON already."""
        return data

    def forward(self, data: list[NDArray[np.uint8]]) -> list[bytes]:
        """Classify a batch."""
        return self.classifier.answers(data)


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(port()), "--timeout", "30000", "--log-level", "warning"]
    server = Server()
    server.append_worker(Classify, num=1, max_batch_size=MAX_BATCH, max_wait_time=1, route="/predict")
    server.run()
