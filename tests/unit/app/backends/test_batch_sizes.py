"""Batch sizes by measurement, with an engine and a clock that only pretend."""

import pytest

from app.backends.batch_sizes import MIN_LARGEST_BATCH, RUNS, choose_batch_sizes, ladder
from app.engine_errors import EngineOutOfMemory


class Machine:
    """Computes in `seconds(images)`, by its own clock."""

    def __init__(self, seconds, min_speedup=1.03):
        self.seconds = seconds
        self.min_speedup = min_speedup
        self.now = 0.0
        self.batches = []

    def run(self, images):
        self.batches.append(len(images))
        self.now += self.seconds(len(images))

    def choose(self, largest=64):
        return choose_batch_sizes(
            self.run, 8, largest, steps=2, clocks=(lambda: self.now,), min_speedup=self.min_speedup
        )


@pytest.fixture
def plenty_of_time(monkeypatch):
    monkeypatch.setattr("app.backends.batch_sizes.BUDGET_S", 5.0)


@pytest.mark.usefixtures("plenty_of_time")
@pytest.mark.parametrize(
    ("seconds", "largest", "best"),
    [
        (lambda images: 0.01 + 0.001 * images, 64, 64),  # larger is always better: up to the largest allowed
        (lambda images: 0.01 + 0.001 * images, 16, 16),
        (lambda images: 0.01 * max(images, 32), 64, 32),  # a device with 32 places
        (lambda images: 0.01 * max(images, 32) if images < 64 else 0.1 * images, 64, 32),  # a larger one is slower
        (lambda images: 0.01 * images, 64, MIN_LARGEST_BATCH),  # nothing is gained
        (lambda images: 0.01 * images, 4, 4),
    ],
)
def test_the_smallest_batch_that_is_as_fast_as_any(seconds, largest, best):
    sizes = Machine(seconds).choose(largest)
    assert sizes == ladder(best, 2)


@pytest.mark.usefixtures("plenty_of_time")
@pytest.mark.parametrize(("factor", "largest"), [(1.05, 64), (1.1, 32)])
def test_how_much_quicker_a_larger_batch_has_to_be(factor, largest):
    machine = Machine(lambda images: 0.1 + 0.01 * images if images < 64 else 0.778, min_speedup=factor)  # by 8 %
    assert machine.choose() == ladder(largest, 2)


@pytest.mark.parametrize(("ms", "largest"), [(1.0, 32), (3.0, 32), (4.0, 25), (5.0, 20), (10.0, 16)])
def test_batches_that_nobody_notices_need_not_gain_anything(ms, largest):
    """An image takes so long in whatever batch; a tenth of a second may pass."""
    machine = Machine(lambda images: 0.001 * ms * images)
    assert machine.choose(largest=1024) == ladder(largest, 2)


def test_it_stays_within_its_budget():
    machine = Machine(lambda images: 0.006 * images**0.9)
    machine.choose(largest=1024)
    assert machine.now <= 1.0
    assert machine.batches[-1] == 32


def test_first_runs_are_charged_like_the_others():
    machine = Machine(lambda _images: 0.12)
    machine.choose()
    assert machine.now <= 1.0
    assert machine.batches == [1, 1, 2, 2, 4, 4]


def test_a_slow_network_is_run_at_least_once():
    machine = Machine(lambda images: 3.0 * images)
    assert machine.choose() == ladder(1, 2)
    assert machine.batches == [1, 1]


def test_no_batch_is_made_long_for_nothing():
    machine = Machine(lambda images: 0.04 * images)
    assert machine.choose() == ladder(12, 2)  # half a second


def test_a_size_that_gained_nothing_is_the_last_one():
    machine = Machine(lambda images: 0.001 * images)
    machine.choose()
    assert max(machine.batches) == 32


def test_what_a_first_run_sets_up_is_not_the_measurements():
    machine = Machine(lambda images: 0.0001 * max(images, 256))
    usual = machine.run

    def run(images):
        if len(images) not in machine.batches:
            machine.now += 0.5
        usual(images)

    machine.run = run
    assert machine.choose(largest=1024) == ladder(256, 2)


def test_of_a_few_runs_the_quickest_counts():
    def seconds(images):
        disturbed = machine.batches.count(images) < 1 + RUNS  # all runs of a size but the last one
        return 0.009 if disturbed and images > MIN_LARGEST_BATCH else 0.001

    machine = Machine(seconds)
    assert machine.choose(largest=64) == ladder(64, 2)


@pytest.mark.usefixtures("plenty_of_time")
def test_a_size_that_another_program_disturbed_is_measured_again():
    def seconds(images):
        first = machine.batches.count(images) <= 2 and images == 32
        return 0.5 if first else 0.02 + 0.0001 * images

    machine = Machine(seconds)
    assert machine.choose(largest=64) == ladder(64, 2)


@pytest.mark.usefixtures("plenty_of_time")
def test_a_machine_that_becomes_slower_for_all_sizes_does_not_make_the_larger_ones_look_bad():
    def seconds(images):
        pace = 1.0 if max(machine.batches) <= 16 else 1.5
        return pace * (0.003 + 0.0005 * images)  # each doubling gains 10 % and more

    machine = Machine(seconds)
    assert machine.choose(largest=64) == ladder(64, 2)


def test_where_there_is_time_what_is_never_chosen_is_not_measured():
    machine = Machine(lambda images: 0.01 * images**0.8)  # a processor that needs all of the second
    assert machine.choose() == ladder(32, 2)
    assert sorted({*machine.batches}) == [1, MIN_LARGEST_BATCH, 32]


def test_a_single_image_that_takes_long_says_little_of_many():
    machine = Machine(lambda images: 0.03 + 0.001 * images)
    machine.choose()
    assert sorted({*machine.batches}) == [1, 2, 4, MIN_LARGEST_BATCH, 32]


@pytest.mark.parametrize(("room", "largest"), [(1, 1), (12, 8), (16, 16), (32, 32), (63, 32)])
def test_a_size_that_does_not_fit_ends_the_measurement(room, largest):
    def seconds(images):
        if images > room:
            raise EngineOutOfMemory
        return 0.001

    assert Machine(seconds).choose(largest=1024) == ladder(largest, 2)


def test_if_not_even_one_image_fits_it_says_so():
    def seconds(_images):
        raise EngineOutOfMemory

    with pytest.raises(EngineOutOfMemory):
        Machine(seconds).choose()


def test_the_choice_is_logged(caplog):
    with caplog.at_level("INFO"):
        Machine(lambda images: 0.01 if images == 1 else 0.001 * max(images, 32)).choose(64)
    assert (
        "batches hold up to 32 images; by measurement the best is 32: 1: 100, 16: 500, 32: 1000, 64: 1000 images/s"
        in caplog.messages
    )


@pytest.mark.parametrize("largest", [1, 2, 3, 5, 32, 100])
@pytest.mark.parametrize(("steps", "most"), [(2, 1.5), (4, 1.25)])
def test_a_ladder_reaches_its_end_and_pads_little(largest, steps, most):
    sizes = ladder(largest, steps)
    assert list(sizes) == sorted({*sizes})
    assert sizes[0] == 1
    assert sizes[-1] == largest
    for images in range(1, largest + 1):
        assert next(size for size in sizes if size >= images) <= most * images


def test_ladders_are_what_the_documents_say():
    assert ladder(24, 2) == (1, 2, 3, 4, 6, 8, 12, 16, 24)
    assert ladder(24, 4) == (*range(1, 9), 10, 12, 14, 16, 20, 24)


def test_the_steps_are_those_that_are_asked_for():
    machine = Machine(lambda images: 0.001 * max(images, 32))
    assert choose_batch_sizes(machine.run, 8, 64, steps=4, clocks=(lambda: machine.now,), min_speedup=1.03) == ladder(
        32, 4
    )


@pytest.mark.usefixtures("plenty_of_time")
def test_beside_other_programs_the_processors_own_time_counts():
    """On the wall every larger batch meets another program's burst; the processor needs less and less for an image."""
    now = {"wall": 0.0, "processor": 0.0}

    def run(images):
        now["processor"] += 0.02 + 0.002 * len(images)
        now["wall"] += 0.01 * len(images)

    def choose(*clocks):
        return choose_batch_sizes(
            run, 8, 64, steps=2, clocks=[lambda clock=clock: now[clock] for clock in clocks], min_speedup=1.03
        )

    assert choose("wall") == ladder(MIN_LARGEST_BATCH, 2)
    assert choose("wall", "processor") == ladder(64, 2)


def test_a_start_on_a_busy_machine_does_not_make_batches_small_for_good():
    """An image takes 10 ms of the processor, which others mostly have: there is no time for a second size."""
    now = {"wall": 0.0, "processor": 0.0}

    def run(images):
        now["wall"] += 0.3 * len(images)
        now["processor"] += 0.01 * len(images)

    clocks = (lambda: now["wall"], lambda: now["processor"])
    assert choose_batch_sizes(run, 8, 64, steps=2, clocks=clocks, min_speedup=1.03) == ladder(MIN_LARGEST_BATCH, 2)


def test_threads_that_have_nothing_to_do_cost_no_processor_time_and_count_all_the_same():
    now = {"wall": 0.0, "processor": 0.0}

    def run(images):
        now["processor"] += 0.001 * len(images)
        now["wall"] += 0.001 + 0.0001 * len(images)

    clocks = (lambda: now["wall"], lambda: now["processor"])
    assert choose_batch_sizes(run, 8, 64, steps=2, clocks=clocks, min_speedup=1.03) == ladder(64, 2)
