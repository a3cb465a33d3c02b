"""Whether a folder's pictures fit into memory, found out by their number before one is decoded."""

from __future__ import annotations

from model.data import DataError
from model.hardware.available_memory import available_memory, bytes_in_words
from model.transforms import MIN_SIDE

MEMORY_SHARE = 0.8  # of what is available; the network, its batches and the held-out part need some, too

# What a picture takes besides its pixels, in bytes: its thumbnail, 192 float32, and three more of that size while they
# are compared; its path, its digest, and the object that holds both. Of 32 x 32 pixels it is more than they are.
BESIDES_PIXELS = 4 << 10


def check_memory(count: int, size: int, *, size_is_free: bool) -> None:
    """Raise DataError if so many pictures of `size` x `size` pixels are more than fits.

    `size_is_free` says whether they could be brought to another size, as those of a network that is there cannot.
    """
    needed, available = count * (3 * size**2 + BESIDES_PIXELS), available_memory()
    if available is None or needed <= MEMORY_SHARE * available:
        return
    fitting = int((max(0.0, MEMORY_SHARE * available / count - BESIDES_PIXELS) / 3) ** 0.5)
    smaller = f"--image-size {fitting} or " if size_is_free and fitting >= MIN_SIDE else ""
    raise DataError(
        f"{count} pictures of {size}x{size} take {bytes_in_words(needed)} of memory, and of the "
        f"{bytes_in_words(available)} that are available to this process {MEMORY_SHARE:.0%} may be taken: "
        f"take {smaller}fewer pictures"
    )
