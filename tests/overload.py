"""Requests at a constant rate, whether answers come or not: `python -m tests.overload PORT RATE SECONDS PICTURE`.

In a process of its own, so that its work delays nobody else's clock. It prints "ready", waits for a line (or the end)
of its standard input, sends, prints "sent" after the last request, takes the answers that are left, and waits for
another line before it writes its report, a JSON object: that is work which is not to fall into what is measured next.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.load import post
from benchmarks.sender import MAX_CONNECTIONS, ScheduledSender, even_arrivals

ROOT = Path(__file__).resolve().parent.parent
OPENING_S = 3.0  # far less than the service's keep_alive_s, with the minute of an overload
FIRST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def start_sender(port, rate, seconds, picture, *flags):
    """Return this module's process once it is ready to send. It waits for lines, or for the end, of its input."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tests.overload", str(port), str(rate), str(seconds), str(picture), *flags],
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 30,
    )
    try:
        assert await process.stdout.readline() == b"ready\n"
    except BaseException:
        process.kill()
        raise
    return process


def report(outcomes):
    """Return what became of all requests; `good` is when each answered one was due and when its answer came."""
    good = outcomes.status == 200
    statuses = Counter(str(status) for status in outcomes.status.tolist() if status)
    return {
        "sent": len(outcomes.due),
        "sent_late": int(outcomes.late.sum()),
        "statuses": dict(statuses),
        "unanswered": int((outcomes.status == 0).sum()),
        "429_without_retry_after": outcomes.without_retry_after,
        "good": list(zip(outcomes.due[good].tolist(), outcomes.ended[good].tolist(), strict=True)),
    }


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float, help="requests a second")
    parser.add_argument("seconds", type=float)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--ids", action="store_true", help="give each request an id of its own")
    parser.add_argument(
        "--connect-first",
        action="store_true",
        help=f"open {MAX_CONNECTIONS:,} connections in {OPENING_S:.0f} s before the first request, not as needed",
    )
    return parser.parse_args()


def main():
    arguments = parse()
    body, headers = arguments.picture.read_bytes(), {"content-type": "image/png"}
    requests = [post("/predict", body, headers)]
    if arguments.ids:  # as proxies and tracers send them: no header is that of the request before it
        requests = [post("/predict", body, headers | {"x-request-id": f"{number:032x}"}) for number in range(10_000)]
    sender = ScheduledSender(arguments.port, requests, even_arrivals(arguments.rate, arguments.seconds))
    opened_before = sender.open_idle(MAX_CONNECTIONS, OPENING_S, FIRST) if arguments.connect_first else 0
    gc.collect()
    gc.freeze()  # what is there already takes milliseconds to look through, in which nothing is sent
    print("ready", flush=True)  # noqa: T201 - whoever started it waits for this
    sys.stdin.readline()
    used_s = time.process_time()
    sending_s = sender.send()
    ended, cores = time.perf_counter(), (time.process_time() - used_s) / sending_s
    print("sent", flush=True)  # noqa: T201 - the same
    sender.wait()
    sys.stdin.readline()
    about_sending = {
        "sending_s": sending_s,
        "ended": ended,  # a time.perf_counter(), which all processes share
        "cores": cores,  # that sending took
        "connections_before": opened_before,
        "connections_opened": sender.opened,
    }
    print(json.dumps(about_sending | report(sender.outcomes())))  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()
