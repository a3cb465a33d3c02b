"""What looks after a service with an engine: whether it hangs, its memory, its files, its certificate's end."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.engine_service import EngineService
    from app.http.tls import Certificate

WATCH_S = 0.5
MIN_LOOKS = 2

IDLE_S = 1.0

# A file that has changed may be half written, or one of two that belong together.
SETTLE_S = 1.0

# How often it is looked at when the certificate ends, beside each time that it is read: a renewal that was missed shows
# in no file.
EXPIRY_LOOK_S = 86_400.0


async def end_what_hangs(service: EngineService) -> None:
    """End the service once something has hung for `stall_exit_s`: not every supervisor probes.

    What goes beyond `stall_timeout_s` is counted in looks: after the whole process was stopped for an hour (docker
    pause, Ctrl-Z), everything seems to have hung for that long, and goes on.
    """
    settings = service.settings
    looks = max(MIN_LOOKS, math.ceil((settings.stall_exit_s - settings.stall_timeout_s) / WATCH_S))
    seen = 0
    while seen < looks:
        await asyncio.sleep(WATCH_S)
        hanging = service.stalled()
        seen = seen + 1 if hanging else 0
    service.dump_stacks()  # the only trace of what hung
    service.lifecycle.fail(f"{hanging}, for {max(settings.stall_exit_s, settings.stall_timeout_s):g} s", str(hanging))
    if service.predictor is not None:
        await service.predictor.close()  # what waits for the engine gets 503 at once


async def read_changed_files(service: EngineService) -> None:
    """Read keys and certificate again when their files have changed: a key that was revoked is not to wait."""
    interval_s = service.settings.watch_files_s
    while True:
        await asyncio.sleep(interval_s)
        if service.file_watch.changed():
            await asyncio.sleep(min(SETTLE_S, interval_s))
            service.read_files_again()


async def give_back_when_idle(service: EngineService) -> None:
    """Return freed memory to the system, in the loader's thread, once nothing has been computed for IDLE_S.

    What batches and pictures of many sizes leave is no more than some megabytes, but of each reload a little longer. It
    takes a millisecond or two, and the next request is not slower by it.
    """
    seen = 0.0
    while True:
        await asyncio.sleep(IDLE_S)
        progress = service.last_progress()
        if progress > seen and time.monotonic() - progress >= IDLE_S:
            seen = progress
            await service.give_back_memory()


async def warn_of_expiry(certificate: Certificate) -> None:
    """Warn of a certificate that is about to end, at the start and every day: no file changes then."""
    while True:
        certificate.warn_of_expiry()
        await asyncio.sleep(EXPIRY_LOOK_S)
