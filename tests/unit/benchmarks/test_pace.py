"""What share of the engine's rate a service has, where the machine's pace changes."""

import threading

import numpy as np

from benchmarks.pace import best_size, engine_rate, engine_rates, shares_of_engine_rate


class Engine:
    batch_sizes = tuple(range(1, 33))
    overlaps = False

    def run(self, images):
        return np.zeros((len(images), 10))


class Overlapping(Engine):
    overlaps = True

    def __init__(self):
        self.beside, self.begun, self.next_one = [], 0, threading.Semaphore(0)

    def run(self, images, nearly_done):
        self.begun += 1
        number = self.begun
        self.next_one.release()
        nearly_done()
        if number == 1:  # not before another one has begun
            self.beside.append([self.next_one.acquire(timeout=10) for _ in range(2)])
        return super().run(images)


def test_each_run_is_compared_with_the_engine_before_and_after_it():
    pace = [100.0, 80.0, 50.0, 90.0]
    runs = [("npy", 81.0), ("json", 65.0), ("npy", 35.0)]
    assert shares_of_engine_rate(runs, pace) == {"npy": [0.9, 0.5], "json": [1.0]}


def test_an_engine_that_takes_any_size_is_measured_with_a_few():
    assert [*engine_rates(Engine(), np.zeros((32, 3, 8, 8), np.uint8), each_s=0.001)] == [16, 20, 24, 28, 32]


def test_of_an_engine_that_overlaps_batches_the_rate_is_that_of_overlapping_ones():
    engine = Overlapping()
    assert engine_rate(engine, np.zeros((32, 3, 8, 8), np.uint8), 2.0) > 0
    assert engine.beside == [[True, True]]


def test_the_best_size_is_that_of_the_best_median_not_of_the_luckiest_round():
    assert best_size([{16: 90, 32: 100}, {16: 190, 32: 101}, {16: 91, 32: 99}]) == 32
