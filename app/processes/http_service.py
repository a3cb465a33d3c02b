"""The service of an HTTP process: it is in the state in which the engine process is, and predicts by asking it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from app.errors import NotReady
from app.imaging import Decoder
from app.lifecycle import State
from app.outages import OutageLog
from app.predictor import Predictor, identity_of
from app.processes.frames import Kind, Payload, pack_with_id, unpack_with_id
from app.processes.key_counts import SharedInFlight
from app.processes.link import Link
from app.processes.process_metrics import metrics_snapshot
from app.processes.remote import RemoteBatcher
from app.processes.shared_state import BEAT_S, LATE_S, SharedState
from app.schemas import Reloads
from app.service import Service
from app.settings import Settings

# A scrape passes through the engine process, which waits half as long for the numbers of each HTTP process.
SCRAPE_TIMEOUT_S = 4.0


class HttpService(Service):
    """What answers requests without an engine; it reaches the engine process through the socket `link`.

    `on_close`, to be set, is called when the port has been closed, `on_beat` ten times a second.

    Raises SettingsError if the file of keys or the certificate cannot be used.
    """

    on_close: Callable[[], None]
    on_beat: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, settings: Settings, link: socket.socket, shared: SharedState, index: int) -> None:
        self._stalled: str | None = None
        self._unready: str | None = "the engine process has not been heard of"
        self._reloads = Reloads(running=False, finished=0, outcome=None, ended_at=None)
        super().__init__(settings)
        self.keys.count_in(SharedInFlight(shared.keys, index))
        self._link_socket = link
        self._shared = shared
        self._index = index
        self._batcher = batcher = RemoteBatcher(shared, index, settings, self._send)
        self._link = Link(
            {
                Kind.ANSWER: batcher.on_answer,
                Kind.REFUSAL: batcher.on_refusal,
                Kind.STATUS: self._on_status,
                Kind.CLOSE: lambda _payload: self.on_close(),
                Kind.READ_AGAIN: lambda _payload: self.read_files_again(),
                Kind.COLLECT: lambda _payload: self._send_snapshot(),
                Kind.METRICS: self._on_metrics,
            },
            self._on_lost,
        )
        self._scrapes: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._stopping = False
        whose = f"HTTP process {index}: "
        self._outages = OutageLog(self.lifecycle, self.telemetry, self._own_unready_reason, whose)

    def _send(self, packed: bytes) -> None:
        self._link.send_frame(packed)

    async def start(self) -> None:
        """Begin to listen to the engine process."""
        await self._link.open(self._link_socket)
        self.run_in_background(self._beat(), "beat")
        self._outages.start()

    def say_serving(self) -> None:
        """Tell the engine process that the port is open here."""
        self._link.send(Kind.SERVING)

    def count_connections(self, connections: int, arrived: int) -> None:
        """Let the engine process know how many connections there are here, and how many have ever come."""
        self._shared.count_connections(self._index, connections, arrived)

    async def stop(self) -> None:
        """Leave the last numbers with the engine process, and end."""
        self._stopping = True
        await self._end_background()
        if self._predictor is not None:
            await self._predictor.close()
        await self._outages.stop()  # last, to report the requests that were refused just now
        self._send_snapshot()
        await self._link.close()
        self.lifecycle.stop()

    async def _beat(self) -> None:
        while True:
            self.on_beat()
            self._shared.beat(self._index, self._predictor.decoder.stalled_s() if self._predictor else 0.0)
            await asyncio.sleep(BEAT_S)

    # -- what the engine process says

    def _on_status(self, payload: Payload) -> None:
        """Be in the state of the engine process."""
        status = json.loads(payload)
        self._unready, self._stalled = status["unready"], status["stalled"]
        self._reloads = Reloads.model_validate(status["reloads"])
        if status["card"] is not None and (self._predictor is None or self._predictor.card != status["card"]):
            self._update_card(status["card"])
        self.lifecycle.follow(State(status["state"]), status["reason"], status["started"])

    def _update_card(self, card: dict[str, Any]) -> None:
        if self._predictor is None:
            self._predictor = Predictor(card, self._batcher, Decoder.of(card, self.settings))
        self._predictor.card = card
        self._batcher.model = identity_of(card)
        self.telemetry.describe_model(card)

    def _on_lost(self) -> None:
        """The engine process has ended, which nothing here survives."""
        if not self._stopping:
            self._batcher.lose()
            for scrape in self._scrapes.values():
                scrape.cancel()
            self.lifecycle.fail("the engine process has ended", "the engine process has ended")
            self.lifecycle.on_failure()  # also if the engine had failed before: no CLOSE will come

    def read_files_again(self) -> None:
        """Read keys and certificate again, and report to the engine process what could not be used."""
        super().read_files_again()
        self._link.send(Kind.FILES_REFUSED, json.dumps(self.files_refused).encode())

    # -- what probes and metrics see

    @property
    def reloads(self) -> Reloads:
        """What has become of the reloads of the checkpoint, and of the files that every process reads."""
        return self._reloads

    def stalled(self) -> str | None:
        """Return what makes no progress, here or in the other processes, or None."""
        return super().stalled() or self._stalled

    def unready_reason(self) -> str | None:
        """Return why a prediction would fail now, or None."""
        return super().unready_reason() or self._unready

    def _own_unready_reason(self) -> str | None:
        """Return of this only what the engine process does not know, or cannot say: the rest is in its own lines."""
        limit_s = min(self.patience_s, self.settings.stall_timeout_s)
        if self._predictor is not None and self._predictor.decoder.stalled_s() > limit_s:
            return "the decoder makes no progress"
        return "the engine process makes no progress" if self._shared.engine_silent_s > max(limit_s, LATE_S) else None

    async def metrics(self) -> bytes:
        """Return the metrics of all processes. Raises NotReady if the engine process does not put them together."""
        self._number += 1
        number = self._number
        self._scrapes[number] = scrape = asyncio.get_running_loop().create_future()
        self._link.send_frame(pack_with_id(Kind.SCRAPE, number))
        try:
            await asyncio.wait({scrape}, timeout=SCRAPE_TIMEOUT_S)
            if scrape.done() and not scrape.cancelled():
                text: bytes = scrape.result()
                return text
            raise NotReady
        finally:
            del self._scrapes[number]

    def _on_metrics(self, payload: Payload) -> None:
        number, text = unpack_with_id(payload)
        if number in self._scrapes:
            self._scrapes[number].set_result(text)

    def _send_snapshot(self) -> None:
        self._link.send(Kind.SNAPSHOT, metrics_snapshot(self.telemetry.registry))
