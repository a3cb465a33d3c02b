"""Requests at a constant rate, whether answers come or not: `python -m tests.overload PORT RATE SECONDS PICTURE [ids]`.

With `ids` each has an id of its own.

In a process of its own, so that its work delays nobody else's clock. It prints "sent" when it has sent the last one,
and a JSON object when it has the answers.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.load import post
from benchmarks.sender import ScheduledSender, even_arrivals


def report(outcomes, sending_s, cores):
    """Return what became of all requests; `good` is when each answered one was due and when its answer came.

    `cores` is how many processor cores sending them took.
    """
    good = outcomes.status == 200
    statuses = Counter(str(status) for status in outcomes.status.tolist() if status)
    return {
        "sending_s": sending_s,
        "cores": cores,
        "sent": len(outcomes.due),
        "sent_late": int(outcomes.late.sum()),
        "statuses": dict(statuses),
        "unanswered": int((outcomes.status == 0).sum()),
        "429_without_retry_after": outcomes.without_retry_after,
        "good": list(zip(outcomes.due[good].tolist(), outcomes.ended[good].tolist(), strict=True)),
    }


def main():
    port, rate, seconds, picture, *ids = sys.argv[1:]
    body, headers = Path(picture).read_bytes(), {"content-type": "image/png"}
    requests = [post("/predict", body, headers)]
    if ids:  # as proxies and tracers send them: no header is that of the request before it
        requests = [post("/predict", body, headers | {"x-request-id": f"{number:032x}"}) for number in range(10_000)]
    sender = ScheduledSender(int(port), requests, even_arrivals(float(rate), float(seconds)))
    used_s = time.process_time()
    sending_s = sender.send()
    cores = (time.process_time() - used_s) / sending_s
    print("sent", flush=True)  # noqa: T201 - whoever started it waits for this
    print(json.dumps(report(sender.finish(), sending_s, cores)))  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()
