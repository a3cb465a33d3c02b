"""Python's collector of what is garbage in circles, kept from hiding that something is."""

import gc
from contextlib import contextmanager


@contextmanager
def no_collection():
    """Collect all garbage there is, and none that comes within."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
