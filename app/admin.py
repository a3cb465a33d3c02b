"""The second port, for probes and metrics alone: it closes after the first one."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from app.service import Service

log = logging.getLogger(__name__)


class AdminServer(uvicorn.Server):
    """A server beside the first one, in the same event loop and without signal handling or a lifespan of its own."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket) -> None:
        super().__init__(config)
        self.service = service
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the first server."""
        yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the caller does."""
        task = asyncio.get_running_loop().create_task(self.serve([self._listener]), name="admin-port")
        task.add_done_callback(self._ended)
        try:
            yield
        finally:
            self.should_exit = True
            await asyncio.wait({task})

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None or not self.should_exit:
            log.error("the port for probes and metrics has closed", exc_info=error)
            self.service.lifecycle.fail("the port for probes and metrics closed by itself", "probes do not answer")
