"""Large pictures wait for one another, in their order; those that nobody wants any more do not."""

import asyncio
import threading
import time
from functools import partial

import pytest
from PIL import Image

from app.errors import ClientGone, DeadlinePassed
from app.imaging import TINY_PIXELS, Decoder
from app.pixel_budget import PixelBudget, RequestPixels
from tests.conftest import encode, noise
from tests.decoders import in_threads, run
from tests.pictures import LIMIT

WAIT_S = 30


class Picture:
    """A thread that takes pixels of a budget and gives them back when it is told to; `asked` once it is in line."""

    def __init__(self, budget, pixels):
        self.asked, self.held, self.go_on = (threading.Event() for _ in range(3))
        self.ended, self.error = False, None
        self._budget, self._pixels = budget, pixels
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.asked.wait(WAIT_S)
        with budget._changed:  # it has them by now, or waits
            pass

    def _has_ended(self):
        self.asked.set()
        return self.ended

    def _run(self):
        try:
            with self._budget.held(self._pixels, self._has_ended):
                self.held.set()
                self.go_on.wait()
        except DeadlinePassed as error:
            self.error = error

    def end(self):
        self.go_on.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


def test_what_does_not_fit_waits_and_what_came_later_waits_behind_it():
    budget = PixelBudget(100)
    first, large, small = (Picture(budget, pixels) for pixels in (60, 60, 10))
    assert first.held.wait(WAIT_S)
    assert budget._free == 40
    first.end()
    assert large.held.wait(WAIT_S)
    assert small.held.wait(WAIT_S)  # beside it, which nobody has to tell it
    assert budget._free == 30
    for one in (large, small):
        one.end()
    assert budget._free == 100


def test_a_picture_that_nobody_wants_any_more_leaves_the_line_at_once_and_lets_the_next_one_go_on():
    budget = PixelBudget(100)
    first, left, small = (Picture(budget, pixels) for pixels in (60, 60, 10))
    left.ended = True
    budget.look_again()
    left.end()
    assert isinstance(left.error, DeadlinePassed)
    assert small.held.wait(WAIT_S)
    for one in (first, small):
        one.end()
    assert budget._free == 100


def test_whether_a_picture_is_wanted_is_asked_when_it_comes_to_its_turn():
    budget = PixelBudget(100)
    first, late = Picture(budget, 60), Picture(budget, 60)
    late.ended = True
    first.end()
    late.end()
    assert isinstance(late.error, DeadlinePassed)
    assert not late.held.is_set()
    assert budget._free == 100


def test_a_picture_of_more_than_there_are_takes_all():
    budget = PixelBudget(100)
    one = Picture(budget, 101)
    assert one.held.wait(WAIT_S)
    assert budget._free == 0
    one.end()
    assert budget._free == 100


def test_what_fails_gives_its_pixels_back():
    budget = PixelBudget(100)
    with pytest.raises(MemoryError), budget.held(60, lambda: False):
        raise MemoryError
    assert budget._free == 100


def test_a_deadline_that_the_event_loop_is_late_to_tell_of_is_an_end():
    late = RequestPixels(1000, PixelBudget(100), time.monotonic() - 1, free_pixels=10)
    with pytest.raises(DeadlinePassed), late.held(11):
        pytest.fail("decoded")
    with late.held(10):  # takes no part
        pass
    decoder = Decoder(32, LIMIT, threads=1)
    with pytest.raises(DeadlinePassed):  # of the request, and no result of the picture
        decoder._decode_one(late, encode(noise(8, 8), "JPEG"))
    decoder.close()


LARGE = encode(Image.new("RGB", (200, 100)))
assert TINY_PIXELS < 200 * 100


@pytest.fixture
def held(monkeypatch):
    """A decoder with room for one large picture at a time, in three threads.

    What it decodes waits for `go_on`; `asked` is set when a picture gets into line for room.
    """

    class Held:
        def __init__(self):
            self.decoder = Decoder(32, 200 * 100, threads=3)
            self.begun, self.asked, self.go_on = (threading.Event() for _ in range(3))
            self.decoded = 0

        def submit(self, seconds=60.0):
            return self.decoder.decode_in_threads([LARGE], time.monotonic() + seconds)

        def finish(self, image, _size):
            if image.width == 200:
                self.decoded += 1
                self.begun.set()
                assert self.go_on.wait(WAIT_S)
            return image.size

        async def hold_one_up(self):
            """Return two pieces of work, of which the second waits for the first."""
            first = self.submit()
            assert await asyncio.to_thread(self.begun.wait, WAIT_S)
            self.asked.clear()
            second = self.submit()
            assert await asyncio.to_thread(self.asked.wait, WAIT_S)
            return first, second

    def has_ended(pixels, has_ended=RequestPixels._has_ended):
        held.asked.set()
        return has_ended(pixels)

    monkeypatch.setattr("app.imaging.PIXELS_AT_ONCE", 0)
    held = Held()
    monkeypatch.setattr("app.imaging._finish", held.finish)
    monkeypatch.setattr(RequestPixels, "_has_ended", has_ended)
    yield held
    held.go_on.set()
    held.decoder.close()


@pytest.mark.anyio
async def test_large_pictures_of_several_requests_are_decoded_one_after_the_other_and_small_ones_beside_them(held):
    works = await held.hold_one_up()
    assert await in_threads(held.decoder, [encode(noise(), "JPEG")]) == [(32, 32)]
    assert held.decoded == 1
    held.go_on.set()
    assert [await work.future for work in works] == [[(200, 100)]] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("end", [ClientGone, DeadlinePassed, asyncio.CancelledError])
async def test_a_picture_whose_request_ends_while_it_waits_is_not_decoded_and_keeps_no_thread(held, end):
    first, second = await held.hold_one_up()
    if end is ClientGone:
        second.abandon()
    elif end is DeadlinePassed:
        second.fail(DeadlinePassed())
    else:
        second.future.cancel()
    with pytest.raises(end):
        await second.future
    together = threading.Barrier(2)
    await asyncio.gather(*(run(held.decoder, partial(together.wait, WAIT_S)) for _ in range(2)))
    held.go_on.set()
    assert await first.future == await held.submit().future == [(200, 100)]
    assert held.decoded == 2
    assert held.decoder._pool._backlog.load()[:2] == (0, 0)


@pytest.mark.anyio
async def test_threads_with_pictures_that_wait_end_when_the_decoder_closes(held):
    before = set(threading.enumerate())
    first, second = await held.hold_one_up()
    third = held.submit()
    threads = [one for one in set(threading.enumerate()) - before if one.name.startswith("decode_")]
    held.decoder.close()
    outcome = await asyncio.gather(*(work.future for work in (first, second, third)), return_exceptions=True)
    assert [type(error) for error in outcome] == [asyncio.CancelledError] * 3
    held.go_on.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, WAIT_S)
    assert (len(threads), [thread.is_alive() for thread in threads]) == (3, [False] * 3)
    assert held.decoded == 1
