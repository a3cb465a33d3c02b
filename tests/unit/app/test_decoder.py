"""Where and when pictures are decoded: on the spot or in threads, by a deadline, beside threads that die or hang."""

import asyncio
import gc
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from app.errors import BadBase64, DeadlinePassed, EngineFailed, TooManyPixels, TooManyPixelsTogether, UndecodableImage
from app.imaging import PIXELS_TOGETHER, TINY_BYTES, Decoder, decode
from app.threads import ThreadDied
from tests.bombs import chunk, png
from tests.conftest import encode, noise
from tests.decoders import decode_all, in_threads, run
from tests.garbage import no_collection
from tests.pictures import LIMIT, read


@pytest.mark.anyio
async def test_the_decoder_keeps_order_and_puts_errors_in_their_place():
    decoder = Decoder(32, LIMIT, threads=2)
    given = BadBase64()
    tiny, large = encode(noise()), encode(noise(300, 200, seed=1))
    try:
        results = await decode_all(decoder, [tiny, given, b"junk", large])
        alone = [await decode_all(decoder, [one]) for one in (tiny, given, b"junk", large)]
    finally:
        decoder.close()
    for one, (single,) in zip(results, alone, strict=True):
        assert type(one) is type(single)
    np.testing.assert_array_equal(results[0], read(tiny))
    assert results[1] is given
    assert isinstance(results[2], UndecodableImage)
    np.testing.assert_array_equal(results[3], read(large))


@pytest.mark.anyio
async def test_images_that_are_ready_pass_through_without_a_thread():
    decoder = Decoder(32, LIMIT, threads=1)
    ready = [read(encode(noise(seed=seed))) for seed in range(2)]
    try:
        mixed = await decode_all(decoder, [ready[0], encode(noise()), ready[1]])
        decoder.close()
        assert await decode_all(decoder, ready) == ready
    finally:
        decoder.close()
    assert (mixed[0] is ready[0], mixed[2] is ready[1]) == (True, True)
    np.testing.assert_array_equal(mixed[1], ready[0])


@pytest.mark.anyio
@pytest.mark.parametrize("side", [32, 300], ids=["on the spot", "in a thread"])
@pytest.mark.parametrize("where", ["Image.open", "evaluation_transform"])
async def test_a_picture_that_memory_is_missing_for_is_not_called_damaged(monkeypatch, caplog, where, side):
    def full(*_given, **_named):
        raise MemoryError

    monkeypatch.setattr(f"model.pictures.codec.{where}", full)
    decoder = Decoder(32, LIMIT, threads=1)
    try:
        (found,) = await decode_all(decoder, [encode(noise(side, side), "JPEG")])
    finally:
        decoder.close()
    assert isinstance(found, EngineFailed)
    assert found.retry_after_s >= 1
    assert caplog.messages == ["out of memory for a picture"]


UNPACKED = zlib.compress(bytes(1 << 20), 9)
RESOURCES = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 1200
RESOURCES = b"\xff\xed" + (len(RESOURCES) + 2).to_bytes(2, "big") + RESOURCES
TAGS = b"".join(struct.pack("<HHII", 0x8000 + number, 4, 1, 1) for number in range(600))
TAGS = b"II*\0\x08\0\0\0" + struct.pack("<H", 600) + TAGS + bytes(4)
PICTURES = b"\xff\xe2" + (len(TAGS) + 6).to_bytes(2, "big") + b"MPF\0" + TAGS
SLOW = {
    "texts": png(32, 32, *(chunk(b"zTXt", b"k%d\0\0" % i + UNPACKED) for i in range(8))),
    "profiles": png(32, 32, *[chunk(b"iCCP", b"a\0\0" + UNPACKED)] * 4),
    "chunks": png(32, 32, *[chunk(b"gAMA", b"\0\0\0\1")] * 1000),
    "segments": encode(noise(), "JPEG")[:2] + b"\xff\xe2\0\2" * 3000 + encode(noise(), "JPEG")[2:],
    "resources": encode(noise(), "JPEG")[:2] + RESOURCES + encode(noise(), "JPEG")[2:],
    "tags": encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "texts of all tongues": png(32, 32, *(chunk(b"iTXt", b"k%d\0\1\0\0\0" % i + UNPACKED) for i in range(8))),
    "tags of a PNG": png(32, 32, chunk(b"eXIf", TAGS)),
    "tags in a PNG's text": png(32, 32, chunk(b"tEXt", b"exif\0" + TAGS)),
    "tags in a PNG's digits": png(32, 32, chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + TAGS.hex().encode())),
    "tags of a WebP": encode(noise(), "WEBP", exif=TAGS),
    "tags of several pictures": encode(noise(), "JPEG")[:2] + PICTURES + encode(noise(), "JPEG")[2:],
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_tiny_file_that_may_take_long_is_decoded_in_a_thread(kind):
    decoder = Decoder(32, LIMIT, threads=1)
    try:
        assert len(SLOW[kind]) <= TINY_BYTES
        assert decoder.decode_here([SLOW[kind]]) is None
        assert asyncio.run(decode_all(decoder, [SLOW[kind]]))[0].shape == (3, 32, 32)
    finally:
        decoder.close()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_an_ordinary_tiny_file_is_decoded_on_the_spot(image_format):
    decoder = Decoder(32, LIMIT, threads=1)
    for size in ((32, 32), (60, 40)):
        ((pixels,),) = [decoder.decode_here([encode(noise(*size), image_format)])]
        assert pixels.shape == (3, 32, 32)
    decoder.close()


def test_tiny_is_what_has_so_many_bytes_and_pixels_and_no_more():
    def on_the_spot(data, size):
        decoder = Decoder(size, LIMIT, threads=1)
        decoder.close()
        return decoder.decode_here([data]) is not None

    full = encode(noise()).ljust(TINY_BYTES, b"\0")
    assert (on_the_spot(full, 32), on_the_spot(full + b"\0", 32)) == (True, False)
    square, larger = encode(Image.new("RGB", (128, 128))), encode(Image.new("RGB", (129, 129)))
    assert [on_the_spot(square, size) for size in (32, 128)] == [True, True]
    assert [on_the_spot(larger, size) for size in (32, 129)] == [False, False]  # 129 needs no transform, but time


def test_a_plain_png_of_the_services_size_is_held_to_the_limit_of_pixels(monkeypatch):
    data = encode(Image.new("RGB", (128, 128)))
    with pytest.raises(TooManyPixels):
        decode(data, 128, 128 * 128 - 1)
    decoder = Decoder(128, 128 * 128, threads=1)
    monkeypatch.setattr("app.imaging._open", lambda *_: pytest.fail("went the long way"))
    assert decode(data, 128, 128 * 128).shape == decoder.decode_here([data])[0].shape == (3, 128, 128)
    decoder.close()


def test_what_is_refused_on_the_spot_holds_no_stack():
    decoder = Decoder(32, 32 * 32 - 1, threads=1)
    (refused,) = decoder.decode_here([encode(noise())])
    assert isinstance(refused, TooManyPixels)
    assert (refused.__traceback__, refused.__cause__, refused.__context__) == (None, None, None)
    decoder.close()


@pytest.mark.anyio
async def test_a_closed_decoder_begins_nothing_that_waits_and_waits_for_nothing():
    decoder, taken, go_on, begun = Decoder(32, LIMIT, threads=1), threading.Event(), threading.Event(), []
    pieces = (lambda: taken.set() or go_on.wait(), lambda: begun.append(1))
    outcome = asyncio.gather(*(run(decoder, one) for one in pieces), return_exceptions=True)
    await asyncio.to_thread(taken.wait)
    decoder.close()
    assert [type(error) for error in await outcome] == [asyncio.CancelledError] * 2
    go_on.set()
    assert begun == []


@pytest.mark.anyio
async def test_decoding_ends_at_the_deadline():
    decoder = Decoder(32, LIMIT, threads=1)
    try:
        with pytest.raises(DeadlinePassed):
            await in_threads(decoder, [encode(noise())] * 3, 0.0)
    finally:
        decoder.close()


@pytest.mark.anyio
async def test_a_thread_that_dies_or_hangs_takes_its_own_request_only():
    decoder = Decoder(32, LIMIT, threads=2)
    go_on = threading.Event()
    try:
        with pytest.raises(ThreadDied):
            await run(decoder, lambda: sys.exit(3))
        assert decoder.stalled_s() == 0
        hanging = [asyncio.ensure_future(run(decoder, go_on.wait)) for _ in range(2)]
        with pytest.raises(DeadlinePassed):
            await run(decoder, go_on.wait, 0.05)
        assert decoder.stalled_s() > 0
        go_on.set()
        assert await asyncio.gather(*hanging) == [True, True]
        assert decoder.stalled_s() == 0
        assert len(await decode_all(decoder, [encode(noise())] * 3)) == 3
    finally:
        go_on.set()
        decoder.close()


@pytest.mark.anyio
async def test_damaged_pictures_are_let_go_without_a_garbage_collection():
    """Held in circles, a few kilobytes each from a few clients let the service take gigabytes."""
    tiny, large = encode(noise())[:-50], encode(noise(256, 256))[:-50]
    decoder = Decoder(32, LIMIT, threads=2)
    try:
        with no_collection():
            before = {
                id(one) for one in gc.get_objects() if issubclass(type(one), Image.Image)
            }  # Pillow's, or a test's
            for files in ([tiny], [large], [large] * 5):
                decoded = await decode_all(decoder, files)
                assert [type(one) for one in decoded] == [UndecodableImage] * len(files)
                held = [one for one in gc.get_objects() if issubclass(type(one), Image.Image) and id(one) not in before]
                assert held == []
    finally:
        decoder.close()


def test_a_small_file_of_a_large_picture_is_not_decoded_on_the_spot():
    data = encode(Image.new("RGB", (1000, 1000)))
    assert len(data) < TINY_BYTES
    decoder = Decoder(32, LIMIT, threads=1)
    assert decoder.decode_here([data]) is None
    decoder.close()


def test_each_of_many_pictures_is_progress(monkeypatch):
    decoder, stalled = Decoder(32, 1 << 24, threads=1), []

    def slow(*_):
        decoder._pool._begun[threading.get_ident()] -= 60  # as long as a minute takes
        stalled.append(decoder.stalled_s())

    monkeypatch.setattr("app.imaging.decode", slow)
    asyncio.run(in_threads(decoder, [b"x"] * 3, 100))
    assert [60 <= seconds < 100 for seconds in stalled] == [True] * 3
    decoder.close()


BLACK = encode(Image.new("1", (100, 100)))


@pytest.mark.anyio
async def test_pictures_of_a_request_have_a_limit_of_pixels_in_all(monkeypatch):
    decoded = []
    monkeypatch.setattr("app.imaging._finish", lambda image, _size: decoded.append(image))
    decoder = Decoder(32, 10_000, threads=1)
    try:
        assert len(await in_threads(decoder, [BLACK] * PIXELS_TOGETHER)) == PIXELS_TOGETHER
        decoded.clear()
        with pytest.raises(TooManyPixelsTogether) as refused:
            await in_threads(decoder, [BLACK] * 100)
        assert len(decoded) == PIXELS_TOGETHER  # a header more was read
    finally:
        decoder.close()
    assert (refused.value.status, refused.value.code) == (422, "too-many-pixels")
    assert "160000 pixels together" in refused.value.detail


@pytest.mark.anyio
async def test_bodies_are_taken_apart_ahead_of_all_decoding():
    decoder, go_on, order = Decoder(32, LIMIT, threads=1), threading.Event(), []
    first = decoder.run(go_on.wait, time.monotonic() + 60)
    picture = decoder.decode_in_threads([encode(noise(300, 300))], time.monotonic() + 60)
    split = decoder.run(lambda: None, time.monotonic() + 60)
    for name, work in (("picture", picture), ("split", split)):
        work.future.add_done_callback(lambda _, name=name: order.append(name))
    go_on.set()
    await asyncio.gather(first.future, picture.future, split.future)
    assert order == ["split", "picture"]
    decoder.close()
