"""Where `resnet healthcheck` and `resnet reload` look for the service of the settings."""

import argparse
import socketserver
import threading

import pytest

from app.cli import build_parser
from app.commands import healthcheck
from app.commands.healthcheck import add, base_url


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        ([], "http://127.0.0.1:8000"),
        (["--host", "0.0.0.0"], "http://127.0.0.1:8000"),
        (["--host", "::", "--port", "81"], "http://[::1]:81"),
        (["--host", "fe80::1"], "http://[fe80::1]:8000"),
        (["--host", "10.0.0.7", "--admin-port", "9000"], "http://10.0.0.7:9000"),
        (["--host", "10.0.0.7", "--admin-port", "9000", "--admin-host", "0.0.0.0"], "http://127.0.0.1:9000"),
        (["--host", "::", "--tls-cert", "c", "--tls-key", "k"], "https://[::1]:8000"),
        (["--host", "::", "--url", "http://other:1"], "http://other:1"),
    ],
)
def test_it_is_looked_for_where_it_listens(flags, url, monkeypatch):
    monkeypatch.delenv("RESNET_HOST", raising=False)
    monkeypatch.setattr(healthcheck, "has_ipv6_loopback", lambda: True)
    parser = argparse.ArgumentParser()
    add(parser)
    assert base_url(parser.parse_args(flags)) == url


def test_where_ipv6_is_switched_off_it_is_reached_by_ipv4(monkeypatch):
    """ "::" can be listened at all the same, and takes connections of IPv4."""

    def bind(_socket, address):
        raise OSError(99, f"Cannot assign requested address {address}")

    monkeypatch.setattr("app.commands.healthcheck.socket.socket.bind", bind)
    parser = argparse.ArgumentParser()
    add(parser)
    assert base_url(parser.parse_args(["--host", "::"])) == "http://127.0.0.1:8000"


@pytest.mark.parametrize("url", ["http://localhost:abc", "http://[::1", "http://a b", f"http://{'a' * 64}.de"])
@pytest.mark.parametrize("command", ["healthcheck", "reload"])
def test_what_is_no_address_is_one_line_and_exit_1(command, url, capsys):
    assert_one_line(command, url, capsys)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"]
)
@pytest.mark.parametrize("command", ["healthcheck", "reload"])
def test_what_does_not_speak_http_is_one_line_and_exit_1(command, answer, capsys):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert_one_line(command, f"http://127.0.0.1:{server.server_address[1]}", capsys)


def assert_one_line(command, url, capsys):
    """What says that nothing answers is the command's only line, and it exits with 1."""
    parsed = build_parser().parse_args([command, *(["--pid", "1"] if command == "reload" else []), "--url", url])
    try:
        assert parsed.run(parsed) == 1
        (line,) = capsys.readouterr().out.splitlines()
    except SystemExit as refusal:
        line = str(refusal).removeprefix("resnet: error: ")
    assert line.startswith(f"no answer from {url}: ")
    assert "\n" not in line
