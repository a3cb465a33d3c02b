"""Clients that a drain waits for, and for how long: slow bodies, failures on the way, late handshakes."""

import signal
import socket
import ssl

import pytest

from tests.conftest import ROOT
from tests.faulty_service import ask, bad, hang
from tests.two_processes import wait_for_queue

pytestmark = pytest.mark.e2e

HALF = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nx"


def half_a_body(service):
    """A client that has sent the header of a request and one byte of its small body."""
    client = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    client.sendall(HALF)
    return client


def answer_to(client):
    return client.makefile("rb").read()


@pytest.mark.parametrize("http_processes", [1, 2])
def test_a_small_body_that_has_not_come_by_the_end_of_a_drain_is_refused_and_counted(start_faulty, http_processes):
    service = start_faulty(http_processes=http_processes, drain_timeout_s=1, body_timeout_s=3600)
    with half_a_body(service) as client:
        service.process.send_signal(signal.SIGTERM)
        assert answer_to(client).startswith(b"HTTP/1.1 503 ")
    assert service.process.wait(timeout=60) == 0
    assert ": 1 not-ready\n" in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize("http_processes", [1, 2])
def test_a_failure_in_a_drain_shortens_it(start_faulty, pool, tmp_path, http_processes):
    service = start_faulty(http_processes=http_processes, batch_sizes="1", drain_timeout_s=3600, body_timeout_s=3600)
    with half_a_body(service) as client:
        first = hang(service, pool, tmp_path)
        breaks = pool.submit(ask, service, bad("broken"))
        wait_for_queue(service, 1)
        service.process.send_signal(signal.SIGTERM)
        service.wait_logged("Waiting for connections to close")  # that long the drain may take, so far
        (tmp_path / "release").touch()
        assert first.result() == (200, "")
        assert breaks.result() == (503, "engine-failed")
        assert answer_to(client).startswith(b"HTTP/1.1 503 ")
    assert service.process.wait(timeout=60) == 1
    assert service.log.count("the engine or its batcher died") == 1
    assert "does not end" not in service.log


def test_who_says_nothing_after_a_handshake_that_ended_in_a_drain_is_not_waited_for(start_faulty):
    tls = ROOT / "tests" / "tls"
    files = {"tls_cert": tls / "localhost.crt", "tls_key": tls / "localhost.key"}
    service = start_faulty(**files, drain_timeout_s=3600, body_timeout_s=3600, header_timeout_s=3600)
    context = ssl.create_default_context(cafile=files["tls_cert"])
    address = "127.0.0.1", service.port
    with (
        socket.create_connection(address, timeout=60) as one,
        context.wrap_socket(one, server_hostname="localhost") as kept,
        socket.create_connection(address, timeout=60) as late,
    ):
        kept.sendall(HALF)
        service.process.send_signal(signal.SIGTERM)
        service.wait_logged("Waiting for connections to close")  # which all of them have been told by now
        with context.wrap_socket(late, server_hostname="localhost") as silent:
            assert silent.recv(1) == b""
        kept.close()
        assert service.process.wait(timeout=60) == 0
    assert "Traceback" not in service.log
