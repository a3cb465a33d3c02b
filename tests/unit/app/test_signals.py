"""What ends the service, and what SIGHUP means: where a terminal has gone that it was started in, the end as well."""

import asyncio
import os
import signal

import pytest

from app import signals
from app.early_signals import EarlyHangup
from app.lifecycle import Lifecycle, State
from app.signals import Signals

pytestmark = pytest.mark.anyio


class Terminal:
    """Standard input's; `there` until it is closed."""

    there = True


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """No test waits for a drain to begin, but for those that hold it back."""
    monkeypatch.setattr(signals, "SAME_SIGNAL_S", 0)


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("app.signals.os.isatty", lambda _: terminal.there)
    return terminal


class Heard:
    """A service's signals, and what they have led to."""

    def __init__(self, drain_delay_s=0):
        self.lifecycle = Lifecycle()
        self.reloads = 0
        self.stopped = asyncio.Event()
        self.signals = Signals(self.lifecycle, drain_delay_s=drain_delay_s, stop=self.stopped.set, reload=self._reload)

    def _reload(self):
        self.reloads += 1


@pytest.fixture
async def heard(terminal, monkeypatch):
    def exit_at_once(code):
        raise SystemExit(code)

    monkeypatch.setattr("app.signals.os._exit", exit_at_once)
    monkeypatch.setattr("app.signals.logging.shutdown", lambda: None)
    before = signal.getsignal(signal.SIGHUP)
    heard = Heard()
    try:
        with heard.signals.handled():
            yield heard
    finally:
        signal.signal(signal.SIGHUP, before)


async def hear(number):
    os.kill(os.getpid(), number)
    for _ in range(5):
        await asyncio.sleep(0)


async def turns():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_sighup_reloads_while_the_terminal_is_there(heard):
    await hear(signal.SIGHUP)
    assert (heard.reloads, heard.lifecycle.state) == (1, State.STARTING)


async def test_a_closed_terminal_drains_however_often_it_is_said(heard, terminal, caplog):
    caplog.set_level("INFO")
    terminal.there = False
    await hear(signal.SIGHUP)
    await hear(signal.SIGHUP)
    await heard.stopped.wait()
    await hear(signal.SIGHUP)
    assert [record.message for record in caplog.records] == ["SIGHUP: draining"]
    assert heard.lifecycle.state is State.DRAINING
    assert heard.reloads == 0


async def test_a_closed_terminal_does_not_hasten_a_drain(heard, terminal, caplog):
    caplog.set_level("INFO")
    await hear(signal.SIGTERM)
    terminal.there = False
    await hear(signal.SIGHUP)
    await heard.stopped.wait()
    assert [record.message for record in caplog.records] == ["SIGTERM: draining"]


@pytest.mark.parametrize("first", ["SIGHUP", "SIGINT"])
async def test_a_second_signal_that_asks_for_the_end_ends_it_at_once(heard, terminal, first):
    terminal.there = False
    await hear(signal.Signals[first])
    with pytest.raises(SystemExit) as ended:
        heard.signals._on_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


async def test_a_signal_that_comes_twice_before_the_drain_has_begun_is_one_signal(heard, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(signals, "SAME_SIGNAL_S", 3600)
    for _ in range(2):  # as timeout(1) sends it: to its child, and to the group that the child is in
        await hear(signal.SIGTERM)
    assert caplog.messages == []
    assert heard.lifecycle.state is State.STARTING  # nobody can have seen the first one
    heard.signals._draining.cancel()


async def test_a_second_signal_counts_from_when_the_drain_can_be_seen(heard, caplog):
    caplog.set_level("INFO")
    os.kill(os.getpid(), signal.SIGTERM)
    while heard.lifecycle.state is not State.DRAINING:
        assert caplog.messages == []
        await asyncio.sleep(0)
    with pytest.raises(SystemExit):
        heard.signals._on_signal(signal.SIGTERM)
    assert caplog.messages == ["SIGTERM: draining", "second signal: stopping at once"]


@pytest.mark.parametrize("ready", [False, True])
async def test_who_was_never_ready_waits_for_nobody_before_the_end(ready):
    before = signal.getsignal(signal.SIGHUP)
    heard = Heard(drain_delay_s=3600)
    try:
        with heard.signals.handled():
            if ready:
                heard.lifecycle.mark_ready()
            await hear(signal.SIGTERM)
            await turns()
            assert heard.stopped.is_set() is not ready
            heard.signals._draining.cancel()
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_who_has_outlived_its_terminal_reloads(terminal, heard):
    terminal.there = False
    for _ in range(2):
        heard.signals._look_for_terminal()
    await hear(signal.SIGHUP)
    assert (heard.reloads, heard.lifecycle.state) == (1, State.STARTING)


async def test_a_look_between_the_terminals_end_and_its_signal_changes_nothing(terminal, heard):
    terminal.there = False
    heard.signals._look_for_terminal()
    await hear(signal.SIGHUP)
    assert (heard.reloads, heard.lifecycle.state) == (0, State.DRAINING)


async def test_looks_go_on_by_themselves(terminal, monkeypatch):
    monkeypatch.setattr(signals, "LOOK_AGAIN_S", 0)
    before = signal.getsignal(signal.SIGHUP)
    heard = Heard()
    try:
        with heard.signals.handled():
            terminal.there = False
            await turns()
            await hear(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard.reloads == 1


@pytest.fixture
def early(terminal):
    before = signal.signal(signal.SIGHUP, EarlyHangup())
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_a_reload_that_was_asked_for_before_the_handlers_stood_follows_once(early, terminal, times):
    for _ in range(times):
        await hear(signal.SIGHUP)
    heard = Heard()
    with heard.signals.handled():
        assert heard.reloads == min(times, 1)


async def test_a_terminal_that_closes_before_the_handlers_stand_ends_it(early, terminal, monkeypatch):
    codes = []
    monkeypatch.setattr("app.early_signals.os._exit", codes.append)
    terminal.there = False
    await hear(signal.SIGHUP)
    assert codes == [0]
