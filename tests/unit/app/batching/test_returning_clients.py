"""Who comes back at once after an answer is waited for; who comes at any time is not. The clock is the test's own."""

import random

import pytest

from app.batching.returning_clients import MIN_BATCH_S, PATIENCE, SLACK_S, ReturningClients

BATCH_S = 0.02


def closed_loop(returns, batches, clients=8, now=0.0, takes_s=0.002, batch_s=BATCH_S):
    """All clients are answered at a batch's end, and are back within `takes_s`; return the end of the last batch."""
    for _ in range(batches):
        now += batch_s
        returns.batch_ended(clients, batch_s, now)
        for number in range(clients):
            returns.came(1, now + takes_s * (number + 1) / clients)
    return now


def test_clients_that_come_back_at_once_are_expected_after_some_batches():
    returns = ReturningClients()
    assert not returns.expected
    assert returns.awaited()[0] == 0
    now = closed_loop(returns, 20) + BATCH_S
    assert returns.expected
    returns.batch_ended(5, BATCH_S, now)
    images, until = returns.awaited()
    assert images == 5
    assert until - now == pytest.approx(PATIENCE * 0.002 + SLACK_S, rel=0.05)


def test_a_wait_is_never_longer_than_half_a_batch():
    returns = ReturningClients()
    now = closed_loop(returns, 20, takes_s=0.009) + BATCH_S
    assert returns.expected
    returns.batch_ended(8, BATCH_S, now)
    assert returns.awaited()[1] == now + BATCH_S / 2


def test_who_needs_longer_than_half_a_batch_is_not_expected():
    returns = ReturningClients()
    closed_loop(returns, 50, takes_s=0.03)
    assert not returns.expected


@pytest.mark.parametrize("load", [0.1, 0.5, 0.95, 1.0])
def test_requests_at_random_times_are_not_waited_for(load):
    returns, chance = ReturningClients(), random.Random(0)
    waiting, now, expected = 0, 0.0, 0
    arrival = chance.expovariate(load * 32 / BATCH_S)
    for _ in range(2000):  # a queue that is emptied in batches of up to 32
        while not waiting:
            now, waiting = arrival, 1
            returns.came(1, now)
            arrival += chance.expovariate(load * 32 / BATCH_S)
        count, now = min(32, waiting), now + BATCH_S
        waiting -= count
        while arrival < now:
            returns.came(1, arrival)
            waiting += 1
            arrival += chance.expovariate(load * 32 / BATCH_S)
        returns.batch_ended(count, BATCH_S, now)
        expected += returns.expected
    assert expected < 40  # of 2000: by chance


def test_clients_that_stay_away_are_given_up_after_a_few_batches():
    returns = ReturningClients()
    now = closed_loop(returns, 50)
    for number in range(1, 4):
        returns.batch_ended(8, BATCH_S, now + number * BATCH_S)
    assert not returns.expected


def test_quick_batches_wait_for_nobody():
    returns = ReturningClients()
    closed_loop(returns, 50, batch_s=MIN_BATCH_S / 2, takes_s=0.0001)
    assert not returns.expected


def test_a_large_request_makes_up_for_nobody_who_stays_away():
    returns = ReturningClients()
    for number in range(3):
        returns.batch_ended(1, BATCH_S, number * BATCH_S)
        returns.came(32, number * BATCH_S)
    assert not returns.expected


def patience_after(returns, end):
    """End a batch, and return how long those who were answered are awaited."""
    returns.batch_ended(8, BATCH_S, end)
    return returns.awaited()[1] - end


def test_neither_who_comes_after_them_nor_a_batch_without_them_changes_the_wait_for_them():
    returns, now = ReturningClients(), 0.0
    for _ in range(20):
        now = closed_loop(returns, 1, now=now)
        returns.came(1, now + BATCH_S / 2 - 0.001)
    for number in (1, 2):
        assert patience_after(returns, now + number * BATCH_S) == pytest.approx(PATIENCE * 0.002 + SLACK_S, rel=0.05)


def test_of_quick_batches_too_those_count_who_are_back_within_the_tick_of_a_clock():
    returns = ReturningClients()
    closed_loop(returns, 50, batch_s=MIN_BATCH_S, takes_s=0.9 * MIN_BATCH_S)
    assert returns.expected
