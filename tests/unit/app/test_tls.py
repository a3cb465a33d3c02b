import asyncio
import subprocess

import pytest

from app.settings import SettingsError
from app.tls import check_certificate, limited_handshakes
from tests.conftest import ROOT

CERT, KEY = ROOT / "tests" / "tls" / "localhost.crt", ROOT / "tests" / "tls" / "localhost.key"


def test_a_certificate_and_its_key_pass():
    check_certificate(CERT, KEY)


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("missing", KEY, "tls_cert .*: No such file"),
        (CERT, "missing", "tls_key .*: No such file"),
        (KEY, KEY, "PEM"),
        (CERT, CERT, "PEM"),
        (CERT, "empty", "PEM"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, certificate, key, reason):
    (tmp_path / "empty").touch()
    with pytest.raises(SettingsError, match=reason) as caught:
        check_certificate(tmp_path / certificate, tmp_path / key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [["-newkey", "rsa:2048", "-nodes"], ["-newkey", "rsa:2048", "-passout", "pass:x"]])
def test_another_key_and_one_with_a_password_are_refused(tmp_path, options):
    key, cert = tmp_path / "key", tmp_path / "cert"
    command = ["openssl", "req", "-x509", "-subj", "/CN=x", "-keyout", str(key), "-out", str(cert), *options]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not here")
    with pytest.raises(SettingsError):
        check_certificate(CERT if "-nodes" in options else cert, key)


def test_only_ports_with_tls_that_are_opened_meanwhile_get_the_handshakes_time():
    class Loop:
        def create_server(self, *_args, **options):
            return options

    loop = Loop()
    with limited_handshakes(loop, 3.0):
        assert loop.create_server(ssl=object())["ssl_handshake_timeout"] == 3.0
        assert "ssl_handshake_timeout" not in loop.create_server(ssl=None)
    assert "ssl_handshake_timeout" not in loop.create_server(ssl=object())


def test_the_event_loop_lets_it_be_limited():
    async def opened():
        with limited_handshakes(asyncio.get_running_loop(), 3.0):
            server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
            server.close()

    from uvicorn import Config

    with asyncio.Runner(loop_factory=Config(None, log_config=None).get_loop_factory()) as runner:
        runner.run(opened())
