import math
import ssl
import subprocess
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from app.http.tls import Certificate
from app.settings import SettingsError
from tests.conftest import ROOT

TLS = ROOT / "tests" / "tls"
CERT, KEY = TLS / "localhost.crt", TLS / "localhost.key"


def handshake(context):
    """Shake hands in memory, without a server's name; return the certificate that the client got, DER."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


def test_new_handshakes_get_the_newest_certificate_and_a_bad_one_changes_nothing(tmp_path, caplog):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(CERT.read_bytes())
    key.write_bytes(KEY.read_bytes())
    certificate = Certificate(chain, key)
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(chain, key)
    certificate.listen_with(listening)
    old, new = (ssl.PEM_cert_to_DER_cert((TLS / name).read_text()) for name in ("localhost.crt", "renewed.crt"))
    assert handshake(listening) == old
    chain.write_bytes((TLS / "renewed.crt").read_bytes())  # and not its key yet
    assert not certificate.reload()
    assert "the certificate stays as it was: tls_cert" in caplog.text
    assert handshake(listening) == old
    key.write_bytes((TLS / "renewed.key").read_bytes())
    assert certificate.reload()
    assert handshake(listening) == new
    key.unlink()
    assert not certificate.reload()
    assert handshake(listening) == new


@pytest.mark.parametrize(
    ("today", "told"),
    [
        (datetime(2126, 10, 1, tzinfo=UTC), ""),
        (datetime(2126, 10, 23, tzinfo=UTC), "ends on 2126-10-29 06:59:23+00:00"),
        (datetime(2126, 10, 30, tzinfo=UTC), "ended on 2126-10-29 06:59:23+00:00"),
    ],
)
def test_a_certificate_that_is_about_to_end_or_has_ended_is_warned_of(monkeypatch, caplog, today, told):
    monkeypatch.setattr("app.http.tls.time.time", today.timestamp)
    Certificate(CERT, KEY).warn_of_expiry()
    assert caplog.messages == ([f"the certificate {CERT} {told}"] if told else [])


def test_a_renewed_certificate_has_an_end_of_its_own(tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for path, source in ((chain, CERT), (key, KEY)):
        path.write_bytes(source.read_bytes())
    certificate = Certificate(chain, key)
    before = certificate.expires_at
    chain.write_bytes((TLS / "renewed.crt").read_bytes())
    assert not certificate.reload()
    assert certificate.expires_at == before
    key.write_bytes((TLS / "renewed.key").read_bytes())
    assert certificate.reload()
    assert certificate.expires_at != before


def test_an_end_that_cannot_be_told_is_no_reason_not_to_serve(monkeypatch, caplog):
    def unknown(_pem):
        raise ValueError("tag 0x1")

    monkeypatch.setattr("app.http.tls.expiry_of", unknown)
    certificate = Certificate(CERT, KEY)
    assert math.isnan(certificate.expires_at)
    certificate.warn_of_expiry()
    assert caplog.messages == [f"when the certificate {CERT} ends cannot be told: tag 0x1"]


def test_a_certificate_and_its_key_pass():
    assert Certificate(CERT, KEY)


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
        Certificate(tmp_path / certificate, tmp_path / key)
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
        Certificate(CERT if "-nodes" in options else cert, key)
