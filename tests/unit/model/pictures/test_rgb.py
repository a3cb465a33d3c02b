"""Large pictures are laid over white in bands: the same pixels as at once, of every mode."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from model.pictures import rgb
from model.pictures.rgb import to_rgb

WIDTH, HEIGHT = 50, 37


def drawn(mode: str) -> Image.Image:
    """Random pixels, of a palette with random colours where the mode has one."""
    rng = np.random.default_rng(len(mode))
    image = Image.new(mode, (WIDTH, HEIGHT))
    image.frombytes(rng.bytes(len(image.tobytes())))
    if mode in {"P", "PA"}:
        image.putpalette(rng.bytes(768))
    return image


def with_key(mode: str, key: object) -> Callable[[], Image.Image]:
    def make() -> Image.Image:
        image = drawn(mode)
        image.info["transparency"] = image.getpixel((3, 30)) if key == "a pixel" else key
        return image

    return make


def grey(sixteen_bits: bool, key: int | None = None) -> Callable[[], Image.Image]:
    def make() -> Image.Image:
        low, high, kind = (0, 1 << 16, np.uint16) if sixteen_bits else (-1000, 70_000, np.int32)
        image = Image.fromarray(np.random.default_rng(0).integers(low, high, (HEIGHT, WIDTH)).astype(kind))
        if key is not None:
            image.putpixel((3, 30), key)
            image.info["transparency"] = key
        return image

    return make


MODES: dict[str, Callable[[], Image.Image]] = {
    **{mode: lambda mode=mode: drawn(mode) for mode in ("RGBA", "LA", "PA", "RGBa", "RGB", "L", "1", "P", "CMYK")},
    "P with a transparent colour": with_key("P", 7),
    "P of many opacities": with_key("P", bytes(range(0, 256, 2))),
    "RGB with a transparent colour": with_key("RGB", "a pixel"),
    "L with a transparent colour": with_key("L", "a pixel"),
    "1 with a transparent colour": with_key("1", 255),
    "16 bits": grey(sixteen_bits=True),
    "16 bits with a transparent grey": grey(sixteen_bits=True, key=1234),
    "I": grey(sixteen_bits=False),
    "I with a transparent grey": grey(sixteen_bits=False, key=1234),
}


def at_once(image: Image.Image) -> Image.Image:
    """What is meant, in as many copies as it takes."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        shown = (levels.clip(0, 65535) >> 8).astype(np.uint8)
        shown[levels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(shown).convert("RGB")
    if "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@pytest.mark.parametrize("pixels", [1 << 20, WIDTH * 5 + 7, WIDTH, 20], ids=["at once", "rows", "a row", "part of one"])
@pytest.mark.parametrize("make", MODES.values(), ids=MODES)
def test_bands_have_the_pixels_that_the_whole_picture_has(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Image.Image], pixels: int
) -> None:
    monkeypatch.setattr("model.pictures.rgb.BAND_PIXELS", pixels)
    expected = np.asarray(at_once(make()))
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(np.asarray(to_rgb(make())), expected)


def test_only_pictures_larger_than_a_band_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("model.pictures.rgb._flatten", lambda part: seen.append(part.size) or part.convert("RGB"))
    for rows in (32, 33):
        to_rgb(Image.new("RGBA", (4096, rows)))
    assert rgb.BAND_PIXELS == 4096 * 32
    assert seen == [(4096, 32), (4096, 32), (4096, 1)]


def test_what_is_converted_is_let_go_and_what_is_rgb_stays() -> None:
    other, same = drawn("RGBA"), drawn("RGB")
    to_rgb(other)
    with pytest.raises(ValueError, match="closed"):
        other.getpixel((0, 0))
    assert to_rgb(same) is same
    same.getpixel((0, 0))
