"""Load on a real process that drains, and what must become of it."""

import asyncio
import signal
from contextlib import asynccontextmanager

import httpx

PNG = {"content-type": "image/png"}

# Long enough for every client's next request, whose answer says that the connection ends: one that a busy machine lets
# send for the first time in the moment of the end would meet a closing connection, as anywhere.
DRAIN_DELAY_S = 2


class Load:
    """So many clients, each sending its next request when it has its answer, until the port is closed."""

    def __init__(self, service, picture, clients=32):
        self.service, self.picture, self.count = service, picture, clients
        self.answered, self.refused, self.lost = [], [], []

    async def _client(self, http):
        while not self.refused:
            try:
                answer = await http.post("/predict", content=self.picture, headers=PNG)
                self.answered.append(answer.status_code)
            except httpx.ConnectError:  # never accepted: the port is closed
                self.refused.append(1)
            except httpx.TransportError as error:
                self.lost.append(repr(error))
                return

    @asynccontextmanager
    async def running(self):
        """Load the service; at the end, wait until every client has met the closed port."""
        limits = httpx.Limits(max_connections=self.count)
        async with httpx.AsyncClient(base_url=self.service.url, limits=limits, timeout=60) as http:
            clients = [asyncio.create_task(self._client(http)) for _ in range(self.count)]
            while len(self.answered) < 100:
                await asyncio.sleep(0.01)
            yield self
            await asyncio.wait_for(asyncio.gather(*clients), 60)


def drain_under_load(service, picture):
    """SIGTERM while 32 clients send: unready before the port closes, every accepted request answered, exit code 0.

    The service's drain_delay_s is to be DRAIN_DELAY_S.
    """
    load = Load(service, picture)

    async def scenario():
        async with load.running(), httpx.AsyncClient(base_url=service.url, timeout=30) as http:
            service.process.send_signal(signal.SIGTERM)
            while (await http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
            assert not load.refused, "the port closed before the service turned unready"

    asyncio.run(scenario())
    assert service.process.wait(timeout=60) == 0
    assert load.lost == []
    assert set(load.answered) == {200}
    assert "Traceback" not in service.log
