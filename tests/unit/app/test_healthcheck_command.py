"""Where `resnet healthcheck` and `resnet reload` look for the service of the settings."""

import argparse

import pytest

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
