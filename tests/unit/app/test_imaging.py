import asyncio
import gc
import io
import struct
import threading
import warnings
import weakref
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from app.errors import DeadlinePassed, ServiceError, TooManyPixels, UndecodableImage
from app.imaging import Decoder
from model.pictures import codec
from model.pictures.files import PictureError
from tests.bombs import PNG_END, chunk, picture_bombs, png, png_without_pixels
from tests.conftest import encode, noise
from tests.decoders import run
from tests.pictures import LIMIT, read


@pytest.mark.parametrize("image_format", ["PNG", "BMP"])
def test_lossless_formats_of_the_right_size_pass_untouched(image_format):
    image = noise()
    expected = np.asarray(image).transpose(2, 0, 1)
    result = read(encode(image, image_format))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_lossless_webp_passes_untouched():
    image = noise()
    np.testing.assert_array_equal(read(encode(image, "WEBP", lossless=True)), np.asarray(image).transpose(2, 0, 1))


def test_jpeg_is_what_pillow_decodes():
    data = encode(noise(), "JPEG")
    np.testing.assert_array_equal(read(data), np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_counts_by_its_first_frame(image_format):
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    result = read(encode(red, image_format, save_all=True, append_images=[blue] * 3, duration=100))
    np.testing.assert_allclose(result.mean(axis=(1, 2)), [255, 0, 0], atol=6)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_become_rgb(mode):
    image = noise().convert("L").convert(mode)
    np.testing.assert_array_equal(read(encode(image)), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_cmyk_jpeg_becomes_rgb():
    data = encode(Image.new("RGB", (32, 32), (255, 0, 0)).convert("CMYK"), "JPEG", quality=95)
    red, green, blue = read(data).mean(axis=(1, 2))
    assert red > 240
    assert max(green, blue) < 20


def test_sixteen_bit_grey_keeps_its_upper_eight_bits():
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    result = read(encode(Image.fromarray(values)))
    for channel in result:
        np.testing.assert_array_equal(channel, values >> 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_turns_white(mode):
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    result = read(encode(image.convert(mode)))
    assert (result[:, :, :16] == 0).all()
    assert (result[:, :, 16:] == 255).all()


def test_a_transparent_palette_entry_turns_white():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 0, 128, 0])
    assert (read(encode(image, transparency=1)) == 255).all()


def test_a_transparent_colour_key_turns_white():
    assert (read(encode(Image.new("RGB", (32, 32), (1, 2, 3)), transparency=(1, 2, 3))) == 255).all()


KEYS = {
    "2 bits of grey": (2, 0, (1,), (1,), (2,)),
    "4 bits of grey": (4, 0, (3,), (3,), (4,)),
    "8 bits of grey": (8, 0, (3,), (3,), (4,)),
    "16 bits of grey": (16, 0, (0x1234,), (0x1234,), (0x1235,)),
    "8 bits a colour": (8, 2, (1, 2, 3), (1, 2, 3), (1, 2, 4)),
    "16 bits a colour": (16, 2, (0x1234, 0x2345, 0x3456), (0x1234, 0x2345, 0x3456), (0x3434, 0x4545, 0x5656)),
}


@pytest.mark.parametrize(("bits", "colours", "key", "clear", "opaque"), KEYS.values(), ids=KEYS)
def test_a_colour_key_of_any_depth_turns_its_own_pixels_white(bits, colours, key, clear, opaque):
    def packed(pixel):
        return int("".join(f"{value:0{bits}b}" for value in pixel * (8 // bits or 1)), 2).to_bytes(
            max(1, len(pixel) * bits // 8), "big"
        )

    width = 32 if bits >= 8 else 32 // (8 // bits)  # in pieces of a byte or more
    row = b"\0" + packed(clear) * (width // 2) + packed(opaque) * (width // 2)
    keys = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = png(32, 32, keys, bits=bits, colours=colours, pixels=row * 32)
    white = (read(data) == 255).all(axis=0)
    assert white[:, :16].all()
    assert not white[:, 16:].any()


# Of each of the seven passes of an interlaced PNG: where it begins, and its steps.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def interlaced(image):
    pixels = np.asarray(image)
    rows = [b"\0" + row.tobytes() for x, y, right, down in PASSES for row in pixels[y::down, x::right]]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"".join(rows))) + PNG_END


TEXTS = {"tEXt": b"%s\0some", "zTXt": b"%s\0\0" + zlib.compress(b"some"), "iTXt": b"%s\0\0\0\0\0some"}


@pytest.mark.parametrize("keyword", [b"transparency", b"interlace", b"bbox", b"default_image", b"loop"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_means_nothing_whatever_its_keyword(kind, keyword):
    text = chunk(kind.encode(), TEXTS[kind] % keyword)
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((0, 99, 0, 255), (0, 0, 16, 32))
    clear_green = Image.new("P", (32, 32), 1)
    clear_green.putpalette([0, 0, 0, 0, 128, 0])
    for data in (encode(noise()), encode(picture), encode(clear_green, transparency=1), interlaced(noise())):
        for at in (33, data.index(b"IDAT") - 4, len(data) - 12):  # behind the header, before the pixels, before the end
            np.testing.assert_array_equal(read(data[:at] + text + data[at:]), read(data))


def test_an_interlaced_png_is_the_same_picture():
    np.testing.assert_array_equal(read(interlaced(noise())), read(encode(noise())))


def test_far_too_much_exif_turns_nothing_and_is_not_looked_at(monkeypatch):
    picture = noise()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0xEEEE] = bytes(codec.MAX_EXIF_BYTES)
    monkeypatch.setattr(Image.Image, "getexif", lambda _: pytest.fail("looked at"))
    np.testing.assert_array_equal(read(encode(picture, exif=exif)), read(encode(picture)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation):
    turned = Image.new("RGB", (32, 32), "black")
    turned.paste("white", (0, 0, 16, 8))  # off centre both ways, so that each of the eight looks different
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, tagged = read(encode(turned)), read(encode(turned, exif=exif))
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, :, ::-1],
        3: lambda a: a[:, ::-1, ::-1],
        4: lambda a: a[:, ::-1, :],
        5: lambda a: a.transpose(0, 2, 1),
        6: lambda a: np.rot90(a, -1, axes=(1, 2)),
        7: lambda a: a.transpose(0, 2, 1)[:, ::-1, ::-1],
        8: lambda a: np.rot90(a, 1, axes=(1, 2)),
    }[orientation]
    np.testing.assert_array_equal(tagged, undo(plain))


def test_a_larger_picture_is_resized_by_its_shorter_side_and_cropped_to_the_centre():
    image = Image.new("RGB", (400, 200), "black")
    image.paste("white", (100, 0, 300, 200))
    assert (read(encode(image))[:, :, 1:-1] == 255).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 3000), (33, 31)])
def test_odd_shapes_work(width, height):
    assert read(encode(noise(width, height))).shape == (3, 32, 32)


def webp_header(width, height):
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0"
    body += struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        png_without_pixels(20_000, 20_000),
        png_without_pixels(2**31 - 1, 2**31 - 1),
        png_without_pixels(4097, 4096),
        webp_header(16_384, 16_384),
        b"GIF89a"
        + struct.pack("<HH", 65_535, 65_535)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 65_535, 65_535)
        + b"\0\2\0;",
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["png", "png-huge", "png-by-one-row", "webp", "gif", "bmp"],
)
def test_too_many_pixels_are_refused_from_the_header(data):
    with pytest.raises(TooManyPixels):
        read(data)


def test_bytes_that_are_no_intact_image_are_refused():
    jpeg, png = encode(noise(64, 64), "JPEG"), encode(noise(64, 64))
    tiff = encode(noise(), "TIFF")
    for data in (b"", b"hello", b"\x89PNG\r\n\x1a\n", jpeg[: len(jpeg) // 2], jpeg[:20], png[: len(png) // 2], tiff):
        with pytest.raises(UndecodableImage) as refused:
            read(data)
        assert "0x" not in refused.value.detail


def test_damaged_exif_does_not_spoil_the_picture():
    data = encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read(data).shape == (3, 32, 32)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(monkeypatch):
    data = encode(noise(64, 64), "JPEG", progressive=True)
    assert read(data).shape == (3, 32, 32)
    scan = data.index(b"\xff\xda")
    monkeypatch.setattr("app.imaging._finish", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UndecodableImage):
        read(data[:scan] + data[scan:-2] * 20 + data[-2:])


SCAN, EXIF, END = b"\xff\xda", b"\xff\xe1\0\x08Exif\0\0", b"\xff\xd9"


@pytest.mark.parametrize(
    ("before", "behind"),
    [(b"", SCAN * 100), (b"", EXIF * 100), (b"\xff\xe2" + struct.pack(">H", 2 + 200) + SCAN * 100, b"")],
    ids=["a film", "further pictures", "a profile"],
)
def test_what_is_no_part_of_a_jpegs_own_picture_is_not_counted(before, behind):
    data = encode(noise(), "JPEG")
    np.testing.assert_array_equal(read(data[:2] + before + data[2:] + behind), read(data))


def test_a_jpeg_of_many_progressive_pictures_is_the_first_of_them():
    data = encode(noise(64, 64), "JPEG", progressive=True)
    np.testing.assert_array_equal(read(data * 10), read(data))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (EXIF * 5, "EXIF"),
        (END + EXIF * 5, "EXIF"),
        (b"\xff\xf0\xff\xfd\xff\xc8\xff\xd8\xff\xd9\xff\xff" + EXIF * 5, "EXIF"),
        (b"\xff\xe2\0\2" * 1000 + SCAN * 40, "too many parts"),
    ],
    ids=["plainly", "behind an end", "behind markers without length", "behind too many segments"],
)
def test_too_many_segments_are_found_wherever_pillow_finds_them(monkeypatch, head, reason):
    monkeypatch.setattr("model.pictures.codec.MAX_READS", 500)
    data = encode(noise(), "JPEG")
    with pytest.raises(PictureError, match=reason):
        codec.open_picture(data[:2] + head + data[2:], LIMIT)


def test_bombs_and_floods_are_refused_and_slivers_and_animations_are_not():
    for name, (data, _kind, status, code) in picture_bombs().items():
        try:
            outcome = (200, None) if read(data).shape == (3, 32, 32) else None
        except ServiceError as error:
            outcome = (error.status, error.code)
        assert outcome == (status, code), name


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_large_ordinary_picture_is_far_from_the_limit_of_reads(image_format, monkeypatch):
    monkeypatch.setattr("model.pictures.codec.MAX_READS", codec.MAX_READS // 20)
    assert read(encode(noise(800, 800), image_format)).shape == (3, 32, 32)


@pytest.mark.parametrize(("size", "reads"), [(1_000, 20), (100_000, 97)])
def test_a_large_file_may_be_read_more_often(monkeypatch, size, reads):
    given = []
    monkeypatch.setattr("model.pictures.codec.MAX_READS", 20)
    monkeypatch.setattr("model.pictures.codec.Image.open", lambda reader, **_: given.append(reader) or 1 / 0)
    with pytest.raises(PictureError):
        codec.open_picture(bytes(size), LIMIT)
    for _ in range(reads):
        given[0].read(1)
    with pytest.raises(PictureError, match="of too many parts"):
        given[0].read(1)


def test_more_pixels_than_pillow_allows_by_itself_may_be_allowed():
    """It would warn of these, and refuse twice as many."""
    width, height = 20_000, 10_000
    assert codec.open_picture(png_without_pixels(width, height), width * height).size == (width, height)


def test_what_pillow_warns_of_reaches_neither_log_nor_memory():
    with warnings.catch_warnings(record=True) as seen:
        Decoder(32, LIMIT, threads=1).close()
        for size in range(1000, 1010):  # a text of its own each
            tag = struct.pack("<HHHII", 1, 0x010E, 2, size, 8)
            assert read(encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + tag)).shape == (3, 32, 32)
        assert seen == []
        assert not any("1005" in str(key) for key in getattr(TiffImagePlugin, "__warningregistry__", ()))


@pytest.mark.anyio
async def test_what_waited_for_a_thread_until_its_deadline_keeps_no_body():
    """The pool's queue holds it until a thread comes to it."""
    decoder, go_on = Decoder(32, 1 << 20, threads=1), threading.Event()
    busy = asyncio.ensure_future(run(decoder, go_on.wait))
    await asyncio.sleep(0)  # it takes the thread

    class Body:
        pass

    body = Body()
    left = weakref.ref(body)
    outcome = (await asyncio.gather(run(decoder, partial(print, body), 0.01), return_exceptions=True))[0]
    assert isinstance(outcome, DeadlinePassed)
    del body, outcome
    gc.collect()
    assert left() is None
    go_on.set()
    assert await busy
    decoder.close()
