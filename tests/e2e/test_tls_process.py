"""HTTPS in the real process, and the files that settings name, when they are bad."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys

import httpx
import pytest
import torch

from app.client import classify_dataset
from app.http.certificate_expiry import expiry_of
from app.http.connection_setup import MAX_HANDSHAKES
from model.data import Dataset
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e

TLS = ROOT / "tests" / "tls"
CERT, KEY = TLS / "localhost.crt", TLS / "localhost.key"
PNG = {"content-type": "image/png"}


@pytest.mark.parametrize("http_processes", [1, 2])
def test_https_is_spoken_and_nothing_else(start, examples, monkeypatch, http_processes):
    service = start(tls_cert=CERT, tls_key=KEY, header_timeout_s=1, http_processes=http_processes)
    context = ssl.create_default_context(cafile=CERT)
    with httpx.Client(base_url=service.url, verify=context, timeout=60) as http:
        answer = http.post("/predict", content=examples["cat"], headers=PNG)
        assert answer.json()["predictions"][0]["label"] == "cat"
        classes = tuple(http.get("/model").json()["classes"])
    with pytest.raises(httpx.TransportError):
        httpx.get(service.url.replace("https", "http"))
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as silent:
        assert silent.recv(100) == b""  # no handshake in the header's time

    healthcheck = [sys.executable, "-m", "app.cli", "healthcheck"]
    own = [*healthcheck, "--port", str(service.port), "--tls-cert", str(CERT), "--tls-key", str(KEY)]
    assert subprocess.run(own, cwd=ROOT, check=False).returncode == 0
    named = [*healthcheck, "--url", service.url]
    assert subprocess.run(named, cwd=ROOT, check=False).returncode == 1  # nobody has vouched for the certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(CERT))
    assert subprocess.run(named, cwd=ROOT, check=False).returncode == 0

    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    dataset = Dataset("black", "test", images, torch.zeros(4, dtype=torch.int64), classes)
    model, probabilities = asyncio.run(classify_dataset(service.url, dataset, 2))
    assert model["name"] == "resnet18-cifar10"
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(4), atol=1e-4)
    assert service.stop() == 0
    assert "Traceback" not in service.log


@pytest.mark.parametrize("http_processes", [1, 2])
def test_clients_that_begin_no_handshake_keep_nobody_out(start, examples, http_processes):
    """More of them than there are places for handshakes, and than files if each had one for as long as it likes."""
    service = start(
        tls_cert=CERT, tls_key=KEY, header_timeout_s=3600, http_processes=http_processes, max_connections=100
    )
    context = ssl.create_default_context(cafile=CERT)
    files = service.open_files
    with contextlib.ExitStack() as crowd:
        silent = [
            crowd.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=60))
            for _ in range(MAX_HANDSHAKES * http_processes + 100)
        ]
        with httpx.Client(base_url=service.url, verify=context, timeout=60) as http:
            answer = http.post("/predict", content=examples["cat"], headers=PNG)
        assert answer.json()["predictions"][0]["label"] == "cat"
        assert service.open_files <= files + MAX_HANDSHAKES + 10
        assert silent[0].recv(1) == b""  # the first ones have made room
    assert service.stop() == 0
    assert "Traceback" not in service.log


@pytest.mark.parametrize("http_processes", [1, 2])
def test_a_renewed_certificate_is_taken_over_and_a_bad_one_is_not(start, tmp_path, http_processes):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    shutil.copy(CERT, chain)
    shutil.copy(KEY, key)
    service = start(tls_cert=chain, tls_key=key, http_processes=http_processes)

    def offered():
        return ssl.get_server_certificate(("127.0.0.1", service.port), timeout=60)

    def hang_up(expected):
        lines = service.log.count(expected)
        os.kill(service.process.pid, signal.SIGHUP)
        service.wait_logged(expected, lines + http_processes)

    old, new = CERT.read_text(), (TLS / "renewed.crt").read_text()
    with httpx.Client(base_url=service.url, verify=ssl.create_default_context(cafile=CERT), timeout=60) as http:
        assert http.get("/readyz").status_code == 200
        assert offered() == old
        shutil.copy(TLS / "renewed.crt", chain)
        hang_up("the certificate stays as it was")
        assert offered() == old
        shutil.copy(TLS / "renewed.key", key)
        hang_up("read the certificate")
        assert offered() == new
        assert http.get("/readyz").status_code == 200  # on the connection from before
    assert service.metric("resnet_tls_certificate_expiry_timestamp_seconds") == expiry_of(new.encode())
    key.write_text("no key")
    hang_up("the certificate stays as it was")
    assert offered() == new
    assert service.stop() == 0
    assert "Traceback" not in service.log
    assert "BEGIN" not in service.log


@pytest.mark.parametrize("http_processes", [1, 2])
def test_a_renewed_certificate_behind_a_link_is_taken_over_without_a_signal(start, tmp_path, http_processes):
    """As Kubernetes exchanges a Secret."""
    for version, name in (("old", "localhost"), ("new", "renewed")):
        (tmp_path / version).mkdir()
        shutil.copy(TLS / f"{name}.crt", tmp_path / version / "chain.pem")
        shutil.copy(TLS / f"{name}.key", tmp_path / version / "key.pem")
    (tmp_path / "current").symlink_to("old")
    chain, key = tmp_path / "current" / "chain.pem", tmp_path / "current" / "key.pem"
    service = start(tls_cert=chain, tls_key=key, http_processes=http_processes, watch_files_s=0.05)
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(tmp_path / "current")
    new = (TLS / "renewed.crt").read_text()
    while ssl.get_server_certificate(("127.0.0.1", service.port), timeout=60) != new:
        assert service.process.poll() is None, service.log
    assert service.stop() == 0
    assert "the certificate stays as it was" not in service.log


def test_a_file_that_cannot_be_used_is_one_line_and_exit_1(start):
    service = start(wait=False, api_keys_file=CERT)
    assert service.process.wait(timeout=120) == 1
    (error,) = [line for line in service.log.splitlines() if "resnet: error:" in line]
    assert "line 1: not name:sha256-hex" in error
    assert "Traceback" not in service.log
    assert "BEGIN CERTIFICATE" not in service.log
