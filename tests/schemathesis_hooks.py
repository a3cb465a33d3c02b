"""Loaded by schemathesis: a check of our own, what its checks cannot know of this service, and a count of the answers.

Each failure that is dropped here is one that the OpenAPI document has no words to prevent; the check goes on for all
other cases. SCHEMATHESIS_SEEN names the file that the statuses and the slowest answer are written to at the end.
"""

import atexit
import json
import os
from collections import Counter
from pathlib import Path

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, ServerError
from schemathesis.openapi.checks import RejectedPositiveData

from tests.mutations import internal_text

statuses = Counter()
slowest_s = 0.0


def problem_code(response):
    if response.headers.get("content-type") != ["application/problem+json"]:
        return None
    return json.loads(response.content)["type"].rpartition(":")[2]


@schemathesis.check
def no_internal_text(_context, response, case):
    if case.operation.path != "/metrics":  # Prometheus' text is about the process and has addresses of nothing
        found = internal_text(response.content)
        assert found is None, f"the answer holds {found!r}"


@schemathesis.hook
def after_call(_context, case, response):
    global slowest_s  # noqa: PLW0603
    statuses[response.status_code] += 1
    slowest_s = max(slowest_s, response.elapsed)


@schemathesis.hook
def filter_failure(_context, failure, case, response):
    """Return False for what is no failure."""
    code = problem_code(response)
    if isinstance(failure, RejectedPositiveData):
        # A schema says "bytes"; which bytes are a picture it cannot say. The number of classes is the checkpoint's.
        too_many_classes = code == "bad-parameter" and int((case.query or {}).get("top_k") or 0) > 10
        return code != "undecodable-image" and not too_many_classes
    if isinstance(failure, ServerError):
        # A case asked for this deadline itself.
        return not (code == "deadline-passed" and "x-timeout-ms" in response.request.headers)
    if isinstance(failure, AcceptedNegativeData) and response.status_code == 200:
        # Of several images a bad one gets its error in its place, and the answer is 200.
        return b'"error"' not in response.content
    return True


@atexit.register
def write_what_was_seen():
    if "SCHEMATHESIS_SEEN" in os.environ:
        seen = {"statuses": dict(sorted(statuses.items())), "slowest_s": round(slowest_s, 3)}
        Path(os.environ["SCHEMATHESIS_SEEN"]).write_text(json.dumps(seen))
