"""Classify image files with a running service: python examples/client.py FILE ... (needs httpx).

RESNET_URL is the service's address, http://127.0.0.1:8000 by default, RESNET_API_KEY a key if it asks for one (or
RESNET_KEY). A file that fails is an error of one line and no end of the others; the exit code is then 1.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import httpx

TRIES = 3
RETRIED = {429, 503}  # neither has changed anything; Retry-After says when to come back


def classify(client: httpx.Client, image: bytes) -> dict[str, object]:
    """Return the prediction for one image file. Raises httpx.HTTPStatusError for an error that stays."""
    headers = {"content-type": "application/octet-stream"}
    for number in range(TRIES):
        response = client.post("/predict", params={"top_k": 1}, content=image, headers=headers)
        if response.status_code not in RETRIED or number == TRIES - 1:
            break
        time.sleep(wait_s(response) * random.uniform(1, 1.5))  # noqa: S311 - else all come back at once
    response.raise_for_status()
    prediction: dict[str, object] = response.json()["predictions"][0]
    return prediction


def wait_s(response: httpx.Response) -> float:
    """Return for how many seconds to stay away; a proxy may have answered, with a date or without a word."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else 1.0


def reason(response: httpx.Response) -> str:
    """Return what an error response says; a proxy's is no JSON."""
    try:
        return str(response.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"


def main() -> int:
    """Print a line for each file, and return the exit code."""
    key = os.environ.get("RESNET_API_KEY") or os.environ.get("RESNET_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = os.environ.get("RESNET_URL", "http://127.0.0.1:8000")
    failed = False
    with httpx.Client(base_url=url, headers=headers, timeout=15) as client:  # the service's own deadline is 10 s
        for name in sys.argv[1:]:
            try:
                found = classify(client, Path(name).read_bytes())
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
            except httpx.HTTPStatusError as error:
                problem = reason(error.response)
            except httpx.RequestError as error:
                problem = f"no answer from {url}: {error}"
            else:
                print(f"{name}: {found['label']} {found['probability']:.1%}")
                continue
            print(f"{name}: {problem}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
