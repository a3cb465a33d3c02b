"""Asking a decoder as the routes do."""

import time


async def decode_all(decoder, entries, seconds=60.0):
    """What is in each entry, decoded on the spot or in threads."""
    decoded = decoder.decode_here(entries)
    return await in_threads(decoder, entries, seconds) if decoded is None else decoded


async def in_threads(decoder, entries, seconds=60.0):
    return await decoder.decode_in_threads(entries, time.monotonic() + seconds).future


async def run(decoder, function, seconds=60.0):
    """The result of a function that a thread calls."""
    work = decoder.run(function, time.monotonic() + seconds)
    del function  # the stack of what is raised would keep it
    (result,) = await work.future
    return result
