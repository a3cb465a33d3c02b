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


class Signals:
    """SIGTERM or SIGINT: unready, wait if it was ready, `stop`. A second one: `at_once`, exit now.

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
        if self._draining is not None:
            log.warning("second signal: stopping at once")
            self._at_once()
            logging.shutdown()
            os._exit(128 + number)
        self._begin_to_drain(number)

    def _begin_to_drain(self, number: signal.Signals) -> None:
        log.info("%s: draining", number.name)
        self._lifecycle.drain()
        self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")

    def _on_hangup(self) -> None:
        if not self._in_terminal or os.isatty(0):
            self._reload()
        elif self._draining is None:  # else it is said again: bash tells its jobs, and the kernel does as bash ends
            self._begin_to_drain(signal.SIGHUP)

    def _look_for_terminal(self) -> None:
        """Look from time to time; SIGHUP reloads where the terminal has gone and the service was not told to."""
        if self._in_terminal:
            gone = not os.isatty(0)
            self._in_terminal = not (gone and self._seen_gone)
            self._seen_gone = gone
            self._look = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_for_terminal)

    async def _drain(self) -> None:
        if self._lifecycle.was_ready:  # else nobody has been told to send anything here
            await asyncio.sleep(self._drain_delay_s)
        self._stop()
