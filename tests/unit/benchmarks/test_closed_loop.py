import shutil

import pytest

from benchmarks import closed_loop
from tests.http_server import http_server

WRK = shutil.which("wrk")


@pytest.mark.parametrize(
    "wrk", [None, pytest.param([WRK], marks=pytest.mark.skipif(WRK is None, reason="there is no wrk"))]
)
def test_every_picture_is_sent_in_turn_and_counted(wrk):
    got = set()

    def answer(body, headers):
        got.add((headers["content-type"], body))
        return 200, b""

    with http_server(answer) as url:
        result = closed_loop.run(wrk, url, clients=2, seconds=1)
    assert set(result) == {"requests", "requests_per_s", "p50_ms", "p99_ms", "errors"}
    assert result["requests"] > len(closed_loop.PICTURES)
    assert result["errors"] == 0
    assert got == {("image/png", path.read_bytes()) for path in closed_loop.PICTURES}


def test_the_record_says_what_the_load_came_from():
    assert closed_loop.name(None) == "benchmarks/load.py"
    assert closed_loop.name(["env", "X=1", "wrk"]) == "wrk"
