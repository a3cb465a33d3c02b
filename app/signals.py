"""The signals that end the service or reload it: the first one drains, where uvicorn would close its port first."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.early_signals import EarlyHangup
from app.lifecycle import Lifecycle

log = logging.getLogger(__name__)

# How often a service that was started in a terminal looks whether it has outlived it. Whoever is to end with a terminal
# hears of it at once; one who is there two looks later has been let go (`disown`, a shell that does not send SIGHUP).
LOOK_AGAIN_S = 5.0

# A drain begins this long after its signal, and signals that come before it has begun are the first one once more:
# timeout(1) signals its child and then the group that the child is in, within a millisecond. Whoever sends a second one
# because of what can be seen of the drain, in the log or at /readyz, sends it later than this by itself.
SAME_SIGNAL_S = 0.05


class Signals:
    """SIGTERM or SIGINT: unready, wait if it was ready, `stop`. A second one, once that has begun: `at_once`, exit now.

    SIGHUP: `reload`; but where it says that the terminal has gone, unready, wait, `stop`, however often it comes.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        drain_delay_s: float,
        stop: Callable[[], None],
        reload: Callable[[], None],
        at_once: Callable[[], None] = lambda: None,
    ) -> None:
        self._lifecycle = lifecycle
        self._drain_delay_s = drain_delay_s
        self._stop = stop
        self._reload = reload
        self._at_once = at_once
        self._draining: asyncio.Task[None] | None = None
        self._drain_begun = False
        self._in_terminal = os.isatty(0)
        self._seen_gone = False
        self._look: asyncio.TimerHandle | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Install the handlers for the time of serving, and obey a SIGHUP that an EarlyHangup has heard."""
        loop = asyncio.get_running_loop()
        early = signal.getsignal(signal.SIGHUP)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        if isinstance(early, EarlyHangup) and early.came:
            self._on_hangup()
        self._look_for_terminal()
        try:
            yield
        finally:
            if self._look is not None:
                self._look.cancel()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by default it would end the process

    def _on_signal(self, number: signal.Signals) -> None:
        if self._drain_begun:
            log.warning("second signal: stopping at once")
            self._at_once()
            logging.shutdown()
            os._exit(128 + number)
        self._drain_soon(number)

    def _drain_soon(self, number: signal.Signals) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(number), name="drain")

    def _on_hangup(self) -> None:
        if not self._in_terminal or os.isatty(0):
            self._reload()
        else:  # perhaps once more: bash tells its jobs, and the kernel does as bash ends
            self._drain_soon(signal.SIGHUP)

    def _look_for_terminal(self) -> None:
        """Look from time to time; SIGHUP reloads where the terminal has gone and the service was not told to."""
        if self._in_terminal:
            gone = not os.isatty(0)
            self._in_terminal = not (gone and self._seen_gone)
            self._seen_gone = gone
            self._look = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_for_terminal)

    async def _drain(self, number: signal.Signals) -> None:
        await asyncio.sleep(SAME_SIGNAL_S)
        self._drain_begun = True
        log.info("%s: draining", number.name)
        self._lifecycle.drain()
        if self._lifecycle.was_ready:  # else nobody has been told to send anything here
            await asyncio.sleep(self._drain_delay_s)
        self._stop()
