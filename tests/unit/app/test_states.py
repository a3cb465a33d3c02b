"""Which state follows which, whatever is asked for in between."""

from app.lifecycle import Lifecycle, State


def test_who_was_told_to_end_while_starting_never_turns_ready():
    lifecycle = Lifecycle()
    lifecycle.drain()
    lifecycle.mark_ready()
    assert lifecycle.state is State.DRAINING


def test_a_failure_is_final():
    lifecycle = Lifecycle()
    lifecycle.mark_ready()
    lifecycle.fail("the device is lost", "the engine failed")
    for later in (
        lifecycle.drain,
        lifecycle.mark_ready,
        lifecycle.stop,
        lambda: lifecycle.follow(State.READY, None, 0.0),
    ):
        later()
        assert (lifecycle.state, lifecycle.reason, lifecycle.exit_code) == (State.FAILED, "the engine failed", 1)
