import email.message
import random
import sys
import tracemalloc

import httpx
import pytest

from app.errors import MalformedRequest, TooManyImages
from app.http.bodies import SMALL_BODY_BYTES
from app.http.multipart import (
    MAX_BOUNDARY_BYTES,
    MAX_OTHER_FIELDS,
    MAX_PART_HEADER_BYTES,
    MAX_PART_HEADERS,
    split_multipart,
)


def multipart(*parts):
    """The boundary and the body as httpx writes them."""
    request = httpx.Request("POST", "http://test", files=parts)
    return request.headers["content-type"].partition("boundary=")[2], request.read()


def form(*headers, content=b"x"):
    return b"".join(b"--b\r\n" + header + b"\r\n\r\n" + content + b"\r\n" for header in headers) + b"--b--\r\n"


def named(disposition):
    return b"Content-Disposition: " + disposition


FILE = named(b'form-data; name="file"; filename="x"')


def test_fields_named_file_are_the_files_in_order():
    boundary, body = multipart(
        ("file", ("a.png", b"\r\none\r\n--x")), ("other", b"ignored"), ("file", b"two"), ("file", b"")
    )
    assert split_multipart(boundary, body, 3) == [b"\r\none\r\n--x", b"two", b""]


@pytest.mark.parametrize("before", [b"\r\n", b"This is a multi-part message.\r\n", b"--almost\r\n\r\n"])
def test_what_stands_before_the_first_part_or_behind_the_last_means_nothing(before):
    boundary, body = multipart(("file", b"one"))
    for behind in (b"", b"\r\nmore\r\n--" + boundary.encode() + b"\r\n"):
        assert split_multipart(boundary, before + body + behind, 3) == [b"one"]


def test_blanks_behind_a_boundary_mean_nothing():
    body = form(FILE, FILE).replace(b"--b\r\n", b"--b \t \r\n")
    assert split_multipart("b", body, 3) == [b"x", b"x"]


def test_what_is_not_multipart():
    boundary, body = multipart(("file", b"one"))
    for broken in (b"", b"junk", body[:-30], body[:40]):
        with pytest.raises(MalformedRequest):
            split_multipart(boundary, broken, 3)
    for other in ("", boundary + "x", "b" * (MAX_BOUNDARY_BYTES + 1), "\u0665"):
        with pytest.raises(MalformedRequest):
            split_multipart(other, body, 3)


def test_boundaries_and_names_may_have_letters_of_latin_1():
    body = form(named(b'form-data; name="\xe4"'), FILE).replace(b"--b", b"--\xe4")
    assert split_multipart("\xe4", body, 3) == [b"x"]


def test_a_part_without_a_name_is_no_file_whatever_stands_before_it():
    assert split_multipart("b", form(FILE, b"Content-Type: image/png", content=b"one"), 3) == [b"one"]


def test_the_header_of_a_part_may_be_as_long_as_it_says_and_no_longer():
    filler = b"\r\na:" + b"x" * (MAX_PART_HEADER_BYTES - len(FILE) - len(b"\r\n" + b"\r\na:" + b"\r\n\r\n"))
    assert split_multipart("b", form(FILE + filler), 3) == [b"x"]
    with pytest.raises(MalformedRequest):
        split_multipart("b", form(FILE + filler + b"x"), 3)


BROKEN = {
    "not valid": form(FILE).replace(b"--b\r\n", b"--bb\r\n"),
    "cut off": form(FILE, FILE)[:-9],
    "header that cannot be read": form(FILE + b"\r\nno colon"),
    "header that cannot be rea": form(b" folded: x\r\n" + FILE),
    "not valid multipart": b"--b\r\n--b\r\n" + form(FILE),
    "has too large a header": b"--b\r\n" + FILE + b"x" * MAX_PART_HEADER_BYTES + b"\r\n\r\n--b--\r\n",
    "Disposition header cannot be read": form(named(b'form-data; name="fi"le"')),
    "two Content-Disposition": form(FILE + b"\r\n" + FILE),
    "too many header lines": form(FILE + b"\r\na:" * MAX_PART_HEADERS),
    "too large a header": form(FILE + b"\r\na:" + b"x" * MAX_PART_HEADER_BYTES),
    "one without an end": b"--b\r\n" + FILE + b"\r\n--b--\r\n",
    "no field named": form(named(b'form-data; name="picture"'), b"", named(b"form-data; name*=utf-8''file")),
    "too many fields": form(*[b""] * (MAX_OTHER_FIELDS + 1)),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_is_wrong_is_told(reason):
    with pytest.raises(MalformedRequest) as refused:
        split_multipart("b", BROKEN[reason], 3)
    assert reason in refused.value.detail


@pytest.mark.parametrize("before", [b"", b"\r\n"])
def test_as_many_parts_as_there_may_be_are_split_and_no_more(before):
    headers = [FILE + b"\r\na:" * (MAX_PART_HEADERS - 1)] * 256 + [b""] * MAX_OTHER_FIELDS
    assert split_multipart("b", before + form(*headers), 256) == [b"x"] * 256
    with pytest.raises(TooManyImages):
        split_multipart("b", before + form(*headers, FILE), 256)
    with pytest.raises(TooManyImages):
        split_multipart("b", before + form(*[FILE] * 1000), 256)


@pytest.mark.parametrize(
    "disposition",
    [
        b"form-data; name=file",
        b'form-data; name="file"',
        b'FORM-DATA ; Name = "file" ;',
        b'form-data; filename="a.png"; name="file"',
        b'form-data; filename="a;name=b;.png"; name=file',
        b"form-data; name=file; filename=a.png; filename*=UTF-8''%C3%A4.png",
        b'form-data; filename*=UTF-8\'\'%C3%A4.png; filename="a\\".png"; name="file"',
        b"form-data; name=file; filename=my picture.png",
        b'form-data; name="file"; filename="a\\"',
        b'form-data; filename="a\\"; name="file"',
        b'form-data; name="file"; filename="\xc3\xa4.png"',
        b"form-data;" + b" a=b;" * 1000 + b" name=file",
    ],
)
def test_a_file_is_told_by_its_name_however_that_is_written(disposition):
    assert split_multipart("b", form(named(disposition)), 1) == [b"x"]


def test_a_name_may_end_in_a_backslash():
    for name in (b"other\\", b"file\\", b"\\"):
        assert split_multipart("b", form(named(b'form-data; name="%s"' % name), FILE), 1) == [b"x"]


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="file";\r\n\tfilename="long"',
        b'form-data;\r\n name="file"',
        b'form-data\r\n ; name=\r\n\t "file" \r\n ;\r\n  filename="x"',
        b'form-data; name="file"; foo',
        b'form-data; foo; name="file"; filename="x"; bar ;',
        b"foo; bar; name=file",
    ],
)
def test_a_header_may_be_folded_and_parameters_may_lack_a_value(disposition):
    assert split_multipart("b", form(named(disposition), b"A: b\r\n\tc"), 1) == [b"x"]


@pytest.mark.parametrize("disposition", [b"form-data; name; name=file", b'form-data; name ; filename="x"; name=file'])
def test_a_name_without_a_value_is_one_and_no_file(disposition):
    assert split_multipart("b", form(named(disposition), FILE, content=b"y"), 2) == [b"y"]


def test_another_fields_file_may_have_any_name():
    for name in (b'a"b.png"', b'"', b'x"; name="file"', b"\\"):
        other = named(b'form-data; name="other"; filename="%s"' % name)
        assert split_multipart("b", form(other, FILE), 1) == [b"x"]


def test_a_part_may_end_with_its_headers():
    """RFC 2046: the empty line is there only where a body follows."""
    for header in (b"A: b\r\n", FILE + b"\r\n", b""):
        for more in (form(FILE), form(FILE).replace(b"\r\n--b--", b"\r\n--b\r\n" + header + b"\r\n--b--")):
            found = split_multipart("b", b"--b\r\n" + header + b"\r\n" + more, 3)
            is_file, times = header.startswith(FILE), 1 + (more != form(FILE))
            assert sorted(found) == [b""] * times * is_file + [b"x"]


def test_a_form_that_is_split_is_copied_once():
    body = form(*[FILE] * 4, content=bytes(4 << 20))
    tracemalloc.start()
    try:
        files = split_multipart("b", body, 4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert files == [bytes(4 << 20)] * 4
    assert peak < 1.1 * len(body)


def read_by_email(disposition):
    message = email.message.Message()
    message["content-disposition"] = disposition
    return message.get_param("name", header="content-disposition")


def test_a_name_is_what_the_email_package_reads():
    draw = random.Random(1)
    pieces = [*";;=* x", "name", 'name="file"', "name=file", "; name=", '"', "; name=other", '; a="b"', "; file", "\\"]
    told = {True: 0, False: 0}
    for _ in range(20_000):
        disposition = draw.choice(["form-data", 'form-data; name="file"; filename="']) + "".join(
            draw.choices(pieces, k=draw.randrange(9))
        )
        try:
            is_file = split_multipart("b", form(named(disposition.encode())), 1) == [b"x"]
        except MalformedRequest as refused:
            if "no field named" not in refused.detail:
                continue
            is_file = False
        try:
            name = read_by_email(disposition)
        except Exception:  # it raises many kinds
            continue
        assert is_file == (name == "file"), disposition
        told[is_file] += 1
    assert min(told.values()) > 1000


def filled(header, content=b"x"):
    """As many parts of a header as a small body and the most images allow."""
    return form(*[header] * min(256, (SMALL_BODY_BYTES - 20) // (len(header) + len(content) + 11)), content=content)


HOSTILE = {
    "semicolons": filled(named(b"a" + b";" * 31 + b"name=file")),
    "parameters in pieces": filled(named(b"a" + b"".join(b";b*%d*=%%%%4" % i for i in range(31)) + b";name=file")),
    "blanks": filled(FILE + b"\r\na:" + b" " * 140),
    "lines": filled(FILE + b"\r\na:" * (MAX_PART_HEADERS - 1)),
    "blanks behind a boundary": form(FILE, FILE).replace(b"\r\n--b\r\n", b"\r\n--b" + b" " * 60_000 + b"\r\n"),
    "what is almost a boundary": form(FILE, content=b"\r\n--c" * 12_000),
    "what begins like a boundary": form(FILE, content=b"\r\n--bc" * 10_000),
    "folds": filled(FILE + b"\r\na:" + b"\r\n " * 2500),
    "parts that are folds": filled(FILE + b"\r\na:" + b"\r\n\t" * 40),
    "parameters without a value": filled(named(b"a" + b";a" * 4000 + b"; name=file")),
    "short parameters without a value": filled(named(b"a" + b";a" * 60 + b"; name=file")),
    "headers without bodies": filled(FILE + b"\r\na:" * (MAX_PART_HEADERS - 1)).replace(b"\r\n\r\nx\r\n", b"\r\n\r\n"),
    "escapes": filled(named(b'a; b="' + b"\\a" * 4000 + b'"; name=file')),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_no_small_body_takes_more_steps_than_its_parts_and_lines_need(body):
    """Beside them only searching and matching, which take a small body microseconds."""
    assert len(body) <= SMALL_BODY_BYTES
    steps = 0

    def step(_frame, _event, _argument):
        nonlocal steps
        steps += 1
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        split_multipart("b", body, 256)
    except MalformedRequest:
        pass
    finally:
        sys.settrace(before)
    assert steps < 256 * (40 + 4 * MAX_PART_HEADERS)
