"""The clients in examples/ work against the real process, a second try and errors included."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from app.errors import UndecodableImage
from tests.conftest import ROOT

FILES = [f"examples/{name}.png" for name in ("cat", "ship")]
SHOWN = ["examples/cat.png: cat 99.8%", "examples/ship.png: ship 99.3%"]


NODE = shutil.which("node")
COMMANDS = [
    pytest.param([sys.executable, "examples/client.py"], id="python"),
    pytest.param(
        [NODE, "examples/client.mjs"], id="node", marks=pytest.mark.skipif(not NODE, reason="no Node.js here")
    ),
]


def run(command, url, files):
    environment = os.environ | {"RESNET_URL": url}
    words = [*command, *files]
    return subprocess.run(words, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def run_against(command, response):
    """Run a client with one file against a server that gives one response; return what it did and what it sent."""
    received = []
    with socket.create_server(("127.0.0.1", 0)) as port:

        def answer():
            connection, _ = port.accept()
            with connection:
                received.append(connection.recv(1 << 16))
                connection.sendall(response)

        thread = threading.Thread(target=answer)
        thread.start()
        done = run(command, f"http://127.0.0.1:{port.getsockname()[1]}", FILES[:1])
        thread.join()
    return done, received[0]


@pytest.mark.e2e
@pytest.mark.parametrize("command", COMMANDS)
def test_a_client_prints_a_line_for_each_file(service, command):
    done = run(command, service.url, FILES)
    assert (done.returncode, done.stdout.splitlines()) == (0, SHOWN), done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("command", COMMANDS)
def test_a_client_says_what_the_service_says_of_a_file_that_is_no_image(service, command):
    done = run(command, service.url, ["Makefile"])
    assert done.returncode != 0
    assert UndecodableImage.text in done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("command", COMMANDS)
def test_a_client_goes_on_after_a_file_that_fails(service, command):
    bad = ["Makefile", "examples/not-there.png"]
    done = run(command, service.url, [FILES[0], *bad, FILES[1]])
    assert (done.returncode, done.stdout.splitlines()) == (1, SHOWN)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == bad


@pytest.mark.e2e
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("variable", ["RESNET_API_KEY", "RESNET_KEY"])
def test_a_client_sends_the_key_that_its_environment_has(monkeypatch, command, variable):
    monkeypatch.delenv("RESNET_API_KEY", raising=False)
    monkeypatch.setenv(variable, "secret")
    done, request = run_against(command, b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
    assert done.returncode == 1
    assert b"\r\nauthorization: bearer secret\r\n" in request.lower()


def test_the_python_client_comes_back_when_it_was_told_to(monkeypatch):
    spec = importlib.util.spec_from_file_location("client", ROOT / "examples" / "client.py")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    waited, answers = [], [(429, "2"), (503, "Wed, 21 Oct 2015 07:28:00 GMT"), (200, None)]

    def answer(_request):
        status, after = answers.pop(0)
        headers = {"retry-after": after} if after else {}
        return httpx.Response(status, headers=headers, json={"predictions": [{"label": "cat"}]})

    monkeypatch.setattr(client.time, "sleep", waited.append)
    monkeypatch.setattr(client.random, "uniform", lambda _low, high: high)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as http:
        assert client.classify(http, b"image") == {"label": "cat"}
        assert waited == [3.0, 1.5]
        answers[:] = [(429, "1")] * 3
        with pytest.raises(httpx.HTTPStatusError, match="429"):
            client.classify(http, b"image")
        assert answers == []


PROXYS_PAGE = b"<html>Bad Gateway</html>"


@pytest.mark.e2e
@pytest.mark.parametrize("command", COMMANDS)
def test_a_proxys_page_or_no_answer_at_all_is_an_error_of_one_line(command, own_port):
    done, _ = run_against(command, b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 24\r\n\r\n" + PROXYS_PAGE)
    assert done.returncode == 1
    assert "502 Bad Gateway" in done.stderr
    done = run(command, f"http://127.0.0.1:{own_port}", FILES)
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == FILES
