"""Limits of what a picture file may hold, at their edges; and what turns and shades its pixels."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from model.pictures.codec import MAX_EXIF_BYTES, PictureTooLarge, open_picture, picture_pixels
from model.pictures.files import PictureError
from tests.bombs import DISPOSED_OF, animated_webp, bmp, chunk, gif, jpeg, png, profile, texts
from tests.conftest import encode, noise
from tests.pictures import LIMIT, read

SCAN, EXIF, BARE = b"\xff\xda\0\2", b"\xff\xe1\0\x08Exif\0\0", b"\xff\xda"


def jpeg_of(scans: int, exifs: int, behind: bytes) -> bytes:
    data = jpeg()
    first = data.index(BARE)
    return data[:2] + EXIF * exifs + data[2:first] + SCAN * (scans - 1) + data[first:] + behind


# What still passes, and what is refused.
EDGES: dict[str, tuple[Callable[[int], bytes], int, str]] = {
    "run lengths": (lambda rows: bmp(1024, rows, run_lengths=True), 1024, "run-length"),
    "PNG profiles": (lambda count: png(32, 32, profile() * count), 4, "colour profiles"),
    "PNG texts": (lambda count: png(32, 32, *texts(count)), 8, "damaged"),
    "JPEG scans": (lambda count: jpeg_of(count, 0, b""), 32, "scans"),
    "JPEG scans before a film": (lambda count: jpeg_of(count, 0, SCAN * 40), 32, "scans"),
    "JPEG scans behind a marker without length": (
        lambda count: jpeg()[:-2] + b"\xff\1\xff\xff" + SCAN * (count - 1),
        32,
        "scans",
    ),
    "JPEG EXIF segments": (lambda count: jpeg_of(1, count, b""), 4, "EXIF"),
    "JPEG EXIF segments before further pictures": (lambda count: jpeg_of(1, count, EXIF * 5), 4, "EXIF"),
}


@pytest.mark.parametrize(("build", "most", "reason"), EDGES.values(), ids=EDGES)
def test_so_much_is_allowed_and_one_more_is_not(build: Callable[[int], bytes], most: int, reason: str) -> None:
    open_picture(build(most), LIMIT)
    with pytest.raises(PictureError, match=reason):
        open_picture(build(most + 1), LIMIT)


@pytest.mark.parametrize("data", [png(60, 40), jpeg(60, 40), animated_webp(1, 60, 40)], ids=["png", "jpeg", "webp"])
def test_a_picture_may_have_all_the_pixels_that_are_allowed(data: bytes) -> None:
    assert open_picture(data, 60 * 40).size == (60, 40)
    with pytest.raises(PictureTooLarge):
        open_picture(data, 60 * 40 - 1)


def test_the_canvas_of_a_webp_is_measured_before_pillow_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.pictures.codec.Image.open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(PictureTooLarge):
        open_picture(animated_webp(1, 61, 40), 60 * 40)


def test_what_disposes_of_a_gifs_first_frame_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.core.fill", lambda *_: pytest.fail("made"))
    data = gif(before=DISPOSED_OF, side=60)
    assert open_picture(data, 60 * 60).size == (60, 60)
    with pytest.raises(PictureTooLarge):
        open_picture(data, 60 * 60 - 1)


def test_what_looks_like_profiles_in_other_formats_is_not_counted() -> None:
    assert open_picture(encode(noise(), "BMP") + b"iCCP" * 5, LIMIT).size == (32, 32)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis"])
def test_what_phones_save_is_called_by_its_name(brand: bytes) -> None:
    with pytest.raises(PictureError, match="HEIC or AVIF"):
        open_picture(b"\0\0\0\x18ftyp" + brand, LIMIT)
    with pytest.raises(PictureError, match="not an intact"):
        open_picture(b"\0\0\0\x18free" + brand, LIMIT)


def test_what_looks_like_exif_in_other_segments_of_a_jpeg_is_not_counted() -> None:
    data = jpeg()
    assert open_picture(data[:2] + EXIF.replace(b"\xe1", b"\xe2") * 5 + data[2:], LIMIT).size == (32, 32)


def test_an_empty_file_is_called_so() -> None:
    with pytest.raises(PictureError, match="empty"):
        open_picture(b"", LIMIT)


def turning(size: int = 0, orientation: int = 6) -> bytes:
    """EXIF data that turns a picture by a quarter, of so many bytes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().ljust(size, b"\0")


def with_text(key: str, value: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value)
    return encode(noise(), pnginfo=info)


EXIF_KEY, DIGITS = "Raw profile type exif", "\n\n\n" + turning().hex()
XMP = '<rdf:Description tiff:Orientation="6"/>'
TURNED = {
    "EXIF": encode(noise(), exif=turning(MAX_EXIF_BYTES)),
    "EXIF as text": with_text(EXIF_KEY, DIGITS.ljust(MAX_EXIF_BYTES)),
    "XMP": with_text("XML:com.adobe.xmp", XMP),
    "XMP of a WebP": encode(noise(), "WEBP", lossless=True, xmp=XMP.encode()),
}
NOT_TURNED = {
    "too much EXIF": encode(noise(), exif=turning(MAX_EXIF_BYTES + 1)),
    "too much EXIF as text": with_text(EXIF_KEY, DIGITS.ljust(MAX_EXIF_BYTES + 1)),
    "damaged EXIF as text": with_text(EXIF_KEY, "\n\n\nno digits"),
    "EXIF of no orientation": encode(noise(), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    "an orientation that there is not": encode(noise(), exif=turning(orientation=9)),
}


@pytest.mark.parametrize("data", TURNED.values(), ids=TURNED)
def test_what_says_that_a_picture_lies_on_its_side_is_obeyed(data: bytes) -> None:
    np.testing.assert_array_equal(read(data), np.rot90(read(encode(noise())), -1, axes=(1, 2)))


@pytest.mark.parametrize("data", NOT_TURNED.values(), ids=NOT_TURNED)
def test_what_says_nothing_turns_nothing(data: bytes) -> None:
    np.testing.assert_array_equal(read(data), read(encode(noise())))


def test_a_jpegs_full_segment_of_exif_is_obeyed() -> None:
    plain, turned = (encode(noise(), "JPEG", exif=exif) for exif in (b"", turning(0xFFFF - 2)))
    np.testing.assert_array_equal(read(turned), np.rot90(read(plain), -1, axes=(1, 2)))


def test_grey_beyond_sixteen_bits_is_black_or_white() -> None:
    """As mode "I" holds it, in 32 bits with a sign: so earlier versions of Pillow open such PNGs."""
    grey = np.repeat(np.array([-1, 0x1234, 0xFFFF, 0x10000], np.int32), 8)
    (row,) = np.unique(picture_pixels(Image.fromarray(np.tile(grey, (32, 1))), 32).reshape(-1, 32), axis=0)
    assert row[::8].tolist() == [0, 0x12, 255, 255]


@pytest.mark.parametrize(("bits", "shade"), [(2, 85), (4, 17)])
def test_a_colour_key_beyond_its_depth_turns_nothing_white(bits: int, shade: int) -> None:
    pixels = b"\0" + bytes([int(f"{1:0{bits}b}" * (8 // bits), 2)]) * (32 * bits // 8)
    data = png(32, 32, chunk(b"tRNS", struct.pack(">H", 0x101)), bits=bits, colours=0, pixels=pixels * 32)
    assert (read(data) == shade).all()
