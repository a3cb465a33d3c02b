"""Where `resnet healthcheck` and `resnet reload` look for the service of the settings."""

import argparse

import pytest

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
    parser = argparse.ArgumentParser()
    add(parser)
    assert base_url(parser.parse_args(flags)) == url
