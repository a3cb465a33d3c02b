"""What decoding a large picture takes at its peak: Pillow's pixels, and what libwebp and libjpeg have besides."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SIZE = (4096, 2048)
BESIDES = 8 << 20  # a band of 16 bytes a pixel, and what is not pixels

MEASURE = """
import json, re, sys
from pathlib import Path
from app.memory import give_back_large_blocks
from model.pictures.codec import open_picture, picture_pixels

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

give_back_large_blocks()
peaks = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    image = open_picture(data, 1 << 24)
    picture_pixels(image, 32)
    peaks[path.name] = status("VmHWM") - before, status("VmRSS") - before
print(json.dumps(peaks))
"""


def draw() -> dict[str, tuple[bytes, int]]:
    """Return files by name, each with the most bytes that one of its pixels may take."""
    rng = np.random.default_rng(0)
    clear = Image.fromarray(rng.integers(0, 256, (32, 64, 4), np.uint8)).resize(SIZE, Image.Resampling.NEAREST)
    opaque, palette = clear.convert("RGB"), clear.convert("L").quantize(16)
    grey = Image.fromarray(np.asarray(clear)[..., 0].astype(np.uint16) << 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    png = {"compress_level": 1}
    return {
        "upright.jpg": (encode(opaque, "JPEG"), 4),
        "turned.jpg": (encode(opaque, "JPEG", exif=turned), 8),
        "progressive.jpg": (encode(opaque.convert("CMYK"), "JPEG", progressive=True), 12),
        "clear.png": (encode(clear, **png), 8),
        "turned and clear.png": (encode(clear, exif=turned, **png), 8),
        "grey and clear.png": (encode(clear.convert("LA"), **png), 8),
        "palette and clear.png": (encode(palette, transparency=bytes(range(16)), **png), 5),
        "grey of 16 bits.png": (encode(grey, **png), 6),
        "clear.gif": (encode(palette, "GIF", transparency=3), 5),
        "opaque.webp": (encode(opaque, "WEBP", method=0), 14),
        "clear and lossless.webp": (encode(clear, "WEBP", lossless=True, method=0, quality=0), 14),
    }


def test_a_large_picture_takes_eight_bytes_a_pixel_or_what_its_decoder_needs(tmp_path: Path) -> None:
    files = draw()
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    measured = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    pixels = SIZE[0] * SIZE[1]
    too_many = {
        name: f"{peak / pixels:.1f} bytes a pixel, {kept / pixels:.1f} kept"
        for name, (peak, kept) in json.loads(measured).items()
        if peak > files[name][1] * pixels + BESIDES or kept > BESIDES  # the caller still knows the picture
    }
    assert too_many == {}
