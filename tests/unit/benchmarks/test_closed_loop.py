import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import closed_loop
from benchmarks.closed_loop import PICTURES

WRK = closed_loop.shutil.which("wrk")


class Answers(BaseHTTPRequestHandler):
    """Answers 200 to a picture, and notes which it was."""

    protocol_version = "HTTP/1.1"
    got: set[bytes]

    def do_POST(self):
        assert self.headers["content-type"] == "image/png"
        self.got.add(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Answers.got = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/predict"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "wrk", [None, pytest.param([WRK], marks=pytest.mark.skipif(WRK is None, reason="there is no wrk"))]
)
def test_every_picture_is_sent_in_turn_and_counted(server, wrk):
    result = closed_loop.run(wrk, server, clients=2, seconds=1)
    assert set(result) == {"requests", "requests_per_s", "p50_ms", "p99_ms", "errors"}
    assert result["requests"] > len(PICTURES)
    assert result["errors"] == 0
    assert Answers.got == {path.read_bytes() for path in PICTURES}


def test_the_record_says_what_the_load_came_from():
    assert closed_loop.name(None) == "benchmarks/load.py"
    assert closed_loop.name(["env", "X=1", "wrk"]) == "wrk"
