"""When a certificate ends, read from its file."""

import base64
import ssl
from datetime import UTC, datetime

import pytest

from app.http.certificate_expiry import expiry_of
from tests.conftest import ROOT

CERT = (ROOT / "tests" / "tls" / "localhost.crt").read_bytes()
RENEWED = (ROOT / "tests" / "tls" / "renewed.crt").read_bytes()


def element(tag, contents):
    length = bytes([len(contents)])
    if len(contents) > 127:
        length = bytes([0x81, len(contents)])
    return bytes([tag]) + length + contents


def pem(end, *, version=True):
    """A certificate as far as its validity."""
    fields = element(0xA0, element(0x02, b"\2")) if version else b""
    fields += element(0x02, b"\1") + element(0x30, b"algorithm") + element(0x30, b"issuer" * 20)
    fields += element(0x30, element(0x17, b"260101000000Z") + end) + element(0x30, b"subject")
    der = element(0x30, element(0x30, fields))
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def unix(*when):
    return datetime(*when, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (element(0x17, b"261231235959Z"), unix(2026, 12, 31, 23, 59, 59)),
        (element(0x17, b"491231235959Z"), unix(2049, 12, 31, 23, 59, 59)),
        (element(0x17, b"500101000000Z"), unix(1950, 1, 1)),
        (element(0x18, b"21260101000000Z"), unix(2126, 1, 1)),
        (element(0x18, b"99991231235959Z"), unix(9999, 12, 31, 23, 59, 59)),  # RFC 5280: no end
    ],
)
@pytest.mark.parametrize("version", [True, False])
def test_the_end_is_read_in_both_forms_of_a_time(end, expected, version):
    assert expiry_of(pem(end, version=version)) == expected


@pytest.mark.parametrize("certificate", [CERT, RENEWED])
def test_it_is_what_openssl_reads(certificate, tmp_path):
    """Which tells it only of certificates that may vouch for others, as these two may."""
    (tmp_path / "chain").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tmp_path / "chain")
    (known,) = context.get_ca_certs()
    assert expiry_of(certificate) == ssl.cert_time_to_seconds(known["notAfter"])


def test_of_a_chain_the_first_one_counts_whatever_stands_around_it():
    last = pem(element(0x17, b"261231235959Z"))
    assert expiry_of(b"Bag Attributes\n" + CERT + last) == expiry_of(CERT)
    assert expiry_of(CERT.replace(b"CERTIFICATE", b"X509 CERTIFICATE")) == expiry_of(CERT)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
        pem(element(0x02, b"1")),
        pem(element(0x17, b"x")),
    ],
)
def test_what_cannot_be_read_is_a_value_error(bad):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        expiry_of(bad)


def test_so_is_a_certificate_that_is_cut_off_anywhere_before_its_end():
    der = ssl.PEM_cert_to_DER_cert(CERT.decode())
    for length in range(len(der)):
        cut = b"-----BEGIN CERTIFICATE-----" + base64.b64encode(der[:length]) + b"-----END CERTIFICATE-----"
        with pytest.raises(ValueError):  # noqa: PT011
            expiry_of(cut)
