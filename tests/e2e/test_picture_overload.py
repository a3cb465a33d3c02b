"""Ten times the large pictures that can be decoded: as many as can be are answered, in time, and all others refused."""

import asyncio
import json

import httpx
import pytest
from PIL import Image

from benchmarks.load import closed_loop, post, summarise
from tests.conftest import encode, noise
from tests.overload import start_sender

pytestmark = pytest.mark.e2e

CLIENTS = 16
TIMES = 10
PIXELS = 1920, 1080
# A photo's detail makes the file: one is a small body, which its connection reads, the other one is not. It is not much
# larger, either: this is about decoding, and ten times the bytes of detailed photos would be about sockets.
DETAILS = {"small-bodies": (4, 3), "large-bodies": (16, 9)}


@pytest.fixture(params=DETAILS)
def picture(request, tmp_path):
    file = tmp_path / "two-megapixels.jpg"
    file.write_bytes(encode(noise(*DETAILS[request.param]).resize(PIXELS, Image.Resampling.BICUBIC), "JPEG"))
    assert (file.stat().st_size > 64 << 10) == (request.param == "large-bodies")
    return file


async def scenario(service, picture, seconds, tiny):
    """Return the sustainable rate, what became of ten times it, and the answers to tiny pictures meanwhile."""
    request = post("/predict", picture.read_bytes(), {"content-type": "image/jpeg"})
    before = summarise(await closed_loop(service.port, [request], CLIENTS, 2.0))["requests_per_s"]
    sender = await start_sender(service.port, TIMES * before, seconds, picture)
    try:
        sender.stdin.close()  # it is to go ahead, and to report as soon as it can
        answers = []
        sent = asyncio.create_task(sender.stdout.readline())
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            while not sent.done():
                answer = await http.post("/predict", content=tiny, headers={"content-type": "image/png"})
                answers.append(answer.status_code)
        assert sent.result() == b"sent\n"
        return before, json.loads(await sender.stdout.read()), answers
    except BaseException:
        sender.kill()
        raise


@pytest.mark.parametrize("http_processes", [1, 2])
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.chaos)])
def test_ten_times_the_pictures_that_can_be_decoded(start, examples, picture, seconds, http_processes):
    service = start(http_processes=http_processes)  # with the default deadline: five times what may wait
    before, sent, tiny = asyncio.run(scenario(service, picture, seconds, examples["cat"]))
    took = [answered - begun for begun, answered in sent["good"]]
    goodput = sum(answered <= sent["sending_s"] for _, answered in sent["good"]) / sent["sending_s"]
    result = {
        "before": before,
        "goodput_per_s": goodput,
        "slowest_s": max(took),
        "tiny": len(tiny),
        **{name: value for name, value in sent.items() if name != "good"},
    }
    assert set(sent["statuses"]) == {"200", "429"}, result
    assert sent["429_without_retry_after"] == 0
    assert sent["unanswered"] == 0
    assert set(tiny) == {200}, result
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0
    assert "Traceback" not in service.log
    if seconds == 60:
        assert max(took) <= 11, result  # on the client's side, too
        assert goodput >= before / 2, result
