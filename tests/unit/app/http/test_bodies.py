import asyncio
import base64
import json

import pytest

from app.errors import (
    BadBase64,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    MalformedRequest,
    QueueFull,
    TooManyImages,
    UnsupportedMediaType,
)
from app.http.bodies import (
    MAX_CONTENT_TYPE,
    MAX_PARAMETERS,
    SMALL_BODY_BYTES,
    announced_bytes,
    read_body,
    refuse_codings,
    refuse_unread,
    split_images,
)
from app.http.byte_budget import ByteBudget
from app.http.parameters import BodyDeadline

JSON = "application/json"
FAR, SOON = BodyDeadline(5, BodyTooSlow()), BodyDeadline(0.01, BodyTooSlow())


def receiver(*chunks, ending=None):
    """An ASGI receive that gives these chunks of a body, then `ending`: more never comes, or the client leaves."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if ending is None:
        messages[-1]["more_body"] = False
    elif ending == "leave":
        messages.append({"type": "http.disconnect"})
    messages.reverse()

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    return receive


def no_limit(_count):
    pass


@pytest.mark.anyio
async def test_a_body_is_read_whole():
    body = await read_body(receiver(b"ab", b"", b"cd"), no_limit, max_bytes=4, deadline=FAR)
    assert body == b"abcd"


@pytest.mark.parametrize("length", [None, "junk", "4", "0" * 5000 + "4"])  # more digits than int() takes
def test_a_length_may_have_zeros_in_front(length):
    refuse_unread(JSON, [], announced_bytes(length), 4)


@pytest.mark.parametrize("length", ["5", "0" * 5000 + "5", "9" * 5000])
def test_too_many_bytes_are_refused_if_announced(length):
    with pytest.raises(BodyTooLarge):
        refuse_unread("text/plain", ["gzip"], announced_bytes(length), 4)


@pytest.mark.parametrize(("kind", "coding"), [("text/plain", "identity"), ("", "identity"), (JSON, "gzip")])
def test_what_no_body_can_make_readable_is_refused_by_its_header(kind, coding):
    with pytest.raises(UnsupportedMediaType):
        refuse_unread(kind, [coding], 4, 4)


@pytest.mark.anyio
async def test_too_many_bytes_are_refused_if_not_announced():
    with pytest.raises(BodyTooLarge):
        await read_body(receiver(b"ab", b"cde"), no_limit, max_bytes=4, deadline=FAR)


@pytest.mark.anyio
async def test_a_body_that_stops_coming_is_too_slow():
    with pytest.raises(BodyTooSlow):
        await read_body(receiver(b"ab", ending="never"), no_limit, max_bytes=4, deadline=SOON)


@pytest.mark.anyio
async def test_a_client_that_leaves_is_gone():
    with pytest.raises(ClientGone):
        await read_body(receiver(b"ab", ending="leave"), no_limit, max_bytes=4, deadline=FAR)


@pytest.mark.anyio
async def test_a_message_may_leave_out_what_is_not_there():
    messages = iter([{"type": "http.request"}])

    async def receive():
        return next(messages)

    assert await read_body(receive, no_limit, max_bytes=4, deadline=FAR) == b""


IMAGE_TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream"]


@pytest.mark.parametrize("kind", [*IMAGE_TYPES, "Image/PNG", " image/png ; q=1"])
def test_an_image_type_is_one_file(kind):
    assert split_images(kind, b"data", 1, 32) == [b"data"]


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "image/tiff", "application/jsonl", "application/x-www-form-urlencoded", "junk"]
)
def test_other_types_are_not_supported(kind):
    with pytest.raises(UnsupportedMediaType):
        split_images(kind, b"data", 1, 32)


def test_only_identity_is_a_coding_that_can_be_read():
    refuse_codings([])
    refuse_codings(["identity", "Identity"])
    for codings in (["gzip"], ["identity", "br"], ["identity, gzip"], [""]):
        with pytest.raises(UnsupportedMediaType):
            refuse_codings(codings)


@pytest.mark.parametrize("bad", ["%%%", "YQ", "[oops", "{oops", "," * 600, '"[{,', "\\", '\\"' * 300 + "["])
def test_json_holds_base64_and_a_bad_entry_is_an_error_in_its_place(bad):
    text = base64.b64encode(b"image").decode()
    body = json.dumps({"images": [text, bad, f"data:image/png;base64,{text}", bad], "[{,": 1}).encode()
    first, second, third, fourth = split_images(JSON + "; charset=utf-8", body, 4, 32)
    assert first == third == b"image"
    assert isinstance(second, BadBase64)
    assert isinstance(fourth, BadBase64)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"images": []}',
        b'{"images": "x"}',
        b'{"images": [1]}',
        b'{"images": ["", null]}',
        b'{"images": ["""""""[[[[,,,,"]}',
        b'{"images": [' + b'""' * 10_000 + b"]}",
        b'{"images": [NaN]}',
        b'{"images": ["YQ=="], "more": NaN}',
        b'{"images": ["YQ==", 1]}',
    ],
)
def test_json_that_is_not_what_it_should_be(body):
    with pytest.raises(MalformedRequest):
        split_images(JSON, body, 4, 32)


@pytest.mark.parametrize("text", ["YQ=", "\xe4", "image/png;base64,YQ==", "data:a,b,YQ=="])
def test_what_is_no_base64_is_an_error_in_its_place(text):
    (entry,) = split_images(JSON, json.dumps({"images": [text]}).encode(), 4, 32)
    assert isinstance(entry, BadBase64)


def test_json_has_room_for_a_few_other_members_and_for_the_commas_of_data_urls():
    body = json.dumps({"images": ["data:,YQ=="] * 4} | dict.fromkeys("abcdefghijklmnopq")).encode()
    assert split_images(JSON, body, 4, 32) == [b"a"] * 4
    with pytest.raises(MalformedRequest):
        split_images(JSON, body.replace(b"}", b', "r": null}'), 4, 32)


def test_json_with_too_many_images():
    with pytest.raises(TooManyImages):
        split_images(JSON, json.dumps({"images": [""] * 5}).encode(), 4, 32)


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [""], %s}' % b",".join(b'"m%d": 0' % number for number in range(30)),
        b'{"images": "x", "more": [%s0]}' % (b"0," * 30),
        b'{"more": ["images: [", %s0]}' % (b"0," * 30),
        b'{"more": "images\\": [", "others": [%s0]}' % (b"0," * 30),
        b"[%s0]" % (b"0," * 30),
        b"," * 30,
    ],
)
def test_json_that_is_long_beside_its_images_does_not_hold_too_many(body):
    with pytest.raises(MalformedRequest):
        split_images(JSON, body, 4, 32)


def test_an_empty_image_body_is_malformed():
    with pytest.raises(MalformedRequest):
        split_images("image/png", b"", 1, 32)


LARGE = SMALL_BODY_BYTES + 1


@pytest.mark.anyio
async def test_all_large_bodies_together_have_a_budget_that_comes_back():
    budget = ByteBudget(LARGE + 10)
    with budget.hold() as held:
        body = await read_body(receiver(bytes(LARGE), b"more"), held.take, max_bytes=1 << 20, deadline=FAR)
        assert len(body) == LARGE + 4
        with pytest.raises(QueueFull), budget.hold() as other:
            await read_body(receiver(b"four", bytes(LARGE)), other.take, max_bytes=1 << 20, deadline=FAR)
        assert budget.held_bytes == LARGE + 4
    assert budget.held_bytes == 0


@pytest.mark.anyio
async def test_small_bodies_are_read_while_large_ones_hold_the_whole_budget():
    budget = ByteBudget(0)
    with budget.hold() as held:
        pieces = receiver(b"x", bytes(SMALL_BODY_BYTES - 1))
        body = await read_body(pieces, held.take, max_bytes=1 << 20, deadline=FAR)
    assert len(body) == SMALL_BODY_BYTES


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("", "names no boundary"),
        ("; boundary=", "names no boundary"),
        ("; boundary*=utf-8''b", "names no boundary"),
        ("; boundary=\u20ac", "cannot be read"),
        ("; boundary*=a; boundary*0=b", "cannot be read"),
        ("; boundary*=utf-8''" + "%41" * 20_000, "too long or"),
        ('; boundary="' + ";" * 500 + '"', "too many parameters"),
        ("; a=b" * MAX_PARAMETERS + "; boundary=b", "too many parameters"),
    ],
)
def test_hostile_boundaries_are_malformed(parameters, reason):
    with pytest.raises(MalformedRequest) as refused:
        split_images("multipart/form-data" + parameters, b"--b\r\n", 3, 32)
    assert reason in refused.value.detail


def test_a_boundary_is_read_behind_as_many_parameters_and_characters_as_there_may_be():
    more = "; a=b" * (MAX_PARAMETERS - 1)
    kind = f"multipart/form-data{more}; boundary=b"
    for one in (kind, "multipart/form-data; boundary=b; c=" + "x" * (MAX_CONTENT_TYPE - 35), f"{kind}-7"):
        boundary = one.rpartition("boundary=")[2].partition(";")[0]
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--{boundary}--'
        assert split_images(one, body.encode(), 1, 32) == [b"x"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b"[]," * 10_000 + b"[]]}",
        b'{"images": [[]]}',
        b'{"images": [{}]}',
        b'{"images": ["\\\\", []]}',
        b'{"images": ["\\\\\\"", []]}',
    ],
)
def test_json_with_nesting_is_refused_before_it_is_parsed(body, monkeypatch):
    monkeypatch.setattr("app.http.bodies.from_json", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(MalformedRequest):
        split_images(JSON, body, 4, 32)


@pytest.mark.parametrize("item", [b"1", b'""', b'"\\""', b'"a,b"'])
def test_json_with_far_too_many_items_is_refused_before_it_is_parsed(item, monkeypatch):
    monkeypatch.setattr("app.http.bodies.from_json", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(TooManyImages):
        split_images(JSON, b'{"images": [' + (item + b",") * 10_000 + b"1]}", 4, 32)
