"""What JPEG takes away from a picture, for whole batches on any device: the lossy steps of a baseline codec.

Colours to YCbCr, chroma at half the resolution, a cosine transform of 8 x 8 blocks, quantisation, and all the way back.
The entropy coding in between loses nothing, so it is left out. ITU-T T.81 (1992): the transform is A.3.3, the
quantisation tables are Annex K.1. The colours are those of JFIF, ITU-T T.871 (2011). The scaling of the tables to a
quality from 1 to 100, 4:2:0 subsampling by averages, and the triangle filter that brings chroma back up are libjpeg's
defaults, and so Pillow's.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 8
MCU = 2 * BLOCK  # with chroma at half the resolution, pictures are coded in units of 16 x 16 pixels

# Rows of the 8 x 8 tables K.1 (luminance) and K.2 (chrominance), lowest frequencies first.
# fmt: off
LUMINANCE = (
    16, 11, 10, 16,  24,  40,  51,  61,
    12, 12, 14, 19,  26,  58,  60,  55,
    14, 13, 16, 24,  40,  57,  69,  56,
    14, 17, 22, 29,  51,  87,  80,  62,
    18, 22, 37, 56,  68, 109, 103,  77,
    24, 35, 55, 64,  81, 104, 113,  92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103,  99,
)
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,
)
# fmt: on

Numbers = tuple[int | float, ...]

# Shares of red, green and blue in the luma of ITU-R BT.601.
LUMA_SHARES = (0.299, 0.587, 0.114)


@cache
def _constant(values: Numbers | tuple[Numbers, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor that is made once a device: to copy them there, the host waits for all before them."""
    return torch.tensor(values, device=device)


def luma(images: Tensor) -> Tensor:
    """Return the luma, float32 (N, 1, H, W) from 0 to 255 and not rounded, of uint8 (N, 3, H, W), RGB."""
    shares = _constant(LUMA_SHARES, images.device).view(1, 3, 1, 1)
    return (images.float() * shares).sum(dim=1, keepdim=True)


def quantisation_tables(quality: Tensor) -> Tensor:
    """Return float32 (N, 2, 64), luminance and chrominance row by row, for qualities int64 (N,) from 1 to 100."""
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    base = _constant((LUMINANCE, CHROMINANCE), quality.device)
    return ((base * scale[:, None, None] + 50) // 100).clamp(1, 255).float()


def recompress(images: Tensor, quality: Tensor) -> Tensor:
    """Return what a batch looks like after it was saved as JPEG: uint8 (N, 3, H, W), RGB, to the same.

    `quality`, int64 (N,) on the images' device, is libjpeg's, from 1 to 100, for each image. Sides that are not
    multiples of 16 are filled up with copies of the last row and column, as an encoder does.
    """
    height, width = images.shape[-2:]
    fill = (0, -width % MCU, 0, -height % MCU)
    y, cb, cr = (functional.pad(plane, fill, mode="replicate") for plane in _to_ycbcr(images))
    tables = quantisation_tables(quality)
    y = _quantise(y, tables[:, 0])[..., :height, :width]
    chroma = _quantise(_halve(torch.cat([cb, cr], dim=1)), tables[:, 1])
    # The decoder knows the picture's real size, so its filter does not reach into what was filled up.
    chroma = chroma[..., : math.ceil(height / 2), : math.ceil(width / 2)]
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round()
    return _to_rgb(y, chroma[..., :height, :width])


def _to_ycbcr(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return three planes, float32 (N, 1, H, W) of whole numbers; chroma is around 128."""
    y = luma(images)
    red, blue = images[:, :1].float(), images[:, 2:].float()
    return y.round(), ((blue - y) / 1.772 + 128).round(), ((red - y) / 1.402 + 128).round()


def _halve(planes: Tensor) -> Tensor:
    """Average float32 (N, C, H, W) over squares of 2 x 2; halves go down and up in turn, so that none is favoured."""
    sums = functional.avg_pool2d(planes, 2) * 4
    bias = _constant((1.0, 2.0), planes.device).repeat(sums.shape[-1] // 2)
    return ((sums + bias) / 4).floor()


def _to_rgb(y: Tensor, chroma: Tensor) -> Tensor:
    """Return uint8 (N, 3, H, W) of luma float32 (N, 1, H, W) and chroma (N, 2, H, W)."""
    cb, cr = chroma[:, :1] - 128, chroma[:, 1:] - 128
    green = y - (0.114 * 1.772 / 0.587) * cb - (0.299 * 1.402 / 0.587) * cr
    rgb = torch.cat([y + 1.402 * cr, green, y + 1.772 * cb], dim=1)
    return rgb.round().clamp(0, 255).to(torch.uint8)


def _quantise(planes: Tensor, tables: Tensor) -> Tensor:
    """Round the cosine coefficients of float32 (N, C, H, W) to multiples of `tables` (N, 64), and transform back."""
    count, channels, height, width = planes.shape
    blocks = planes.view(count, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    transform = _cosine_transform(planes.device)
    steps = tables.view(count, 1, 1, 1, BLOCK * BLOCK)
    coefficients = (blocks.flatten(4) - 128) @ transform.T
    blocks = (coefficients / steps).round() * steps @ transform + 128
    blocks = blocks.view(count, channels, height // BLOCK, width // BLOCK, BLOCK, BLOCK).transpose(3, 4)
    return blocks.reshape(count, channels, height, width).round().clamp(0, 255)


@cache
def _cosine_transform(device: torch.device) -> Tensor:
    """Return the orthonormal two-dimensional DCT-II of an 8 x 8 block, float32 (64 coefficients, 64 pixels)."""
    index = torch.arange(BLOCK, device=device, dtype=torch.float64)
    rows = torch.cos(math.pi / BLOCK * (index + 0.5) * index[:, None]) * math.sqrt(2 / BLOCK)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows).float()
