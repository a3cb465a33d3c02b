"""What TorchServe's worker runs: a batch of requests in, a list of answers out."""

from typing import Any

from ts.context import Context

from benchmarks.peers.engine import Classifier, decode

classifier: Classifier | None = None


def handle(requests: list[dict[str, Any]] | None, context: Context) -> list[bytes] | None:
    """Decode and classify a batch. TorchServe calls it once without requests, to load."""
    global classifier  # noqa: PLW0603 (TorchServe's own form of a handler)
    if classifier is None:
        classifier = Classifier()
    if requests is None:
        return None
    answers = classifier.answers([decode(request["body"]) for request in requests])
    context.set_all_response_status()
    for index in range(len(answers)):
        context.set_response_content_type(index, "application/json")
    return answers
