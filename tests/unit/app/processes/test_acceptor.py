"""Which process gets a connection, in this process: what the kernel and silent processes make of it held still."""

import asyncio
import errno
import os
import socket

import pytest

from app.processes.acceptor import MARK, Acceptor, Channel
from app.processes.shared_state import SharedState

pytestmark = pytest.mark.anyio


class House:
    """An acceptor with `count` HTTP processes, of which here only the channels' ends are."""

    def __init__(self, count=2):
        self.port = socket.create_server(("127.0.0.1", 0))
        self.address = self.port.getsockname()
        pairs = [socket.socketpair(type=socket.SOCK_SEQPACKET) for _ in range(count)]
        self.ends = [end for _, end in pairs]
        self.shared = SharedState.create(count)
        self.channels = [Channel(ours, self.shared, index) for index, (ours, _) in enumerate(pairs)]
        self.acceptor = Acceptor(self.port, self.channels)
        self.clients = []

    def connect(self, count=1):
        self.clients += [socket.create_connection(self.address) for _ in range(count)]

    def arrived(self, index):
        """The connections that have come to a process, closed; None at the end if there will be no more."""
        found = []
        self.ends[index].setblocking(False)
        while True:
            try:
                mark, files, _, _ = socket.recv_fds(self.ends[index], 1, 1)
            except BlockingIOError:
                return found
            if not mark:
                return [*found, None]
            assert mark == MARK
            (file,) = files
            os.close(file)
            found.append("connection")

    def leave(self):
        for one in (*self.clients, *self.channels, *self.ends):
            one.close()
        os.close(self.shared.file)

    def counts(self):
        """How many connections have come to each process since the last look."""
        return [len(self.arrived(index)) if end.fileno() >= 0 else 0 for index, end in enumerate(self.ends)]

    async def dealt(self, count):
        """How many of the next `count` connections come to each process."""
        came = [0] * len(self.ends)
        while sum(came) < count:
            await asyncio.sleep(0)
            came = [before + now for before, now in zip(came, self.counts(), strict=True)]
        return came


@pytest.fixture
async def house():
    house = House()
    house.acceptor.open()
    yield house
    await house.acceptor.close()
    house.leave()


async def test_a_crowd_is_dealt_out_evenly(house):
    house.connect(20)
    assert await house.dealt(20) == [10, 10]


async def test_the_process_with_the_fewest_gets_the_next_ones(house):
    house.shared.count_connections(0, connections=6, arrived=0)
    house.connect(4)
    assert await house.dealt(4) == [0, 4]
    house.connect(4)
    assert await house.dealt(4) == [1, 3]  # now they have seven each


async def test_where_all_have_equally_few_they_get_connections_in_turn(house):
    """Each ends before the next one comes: without a turn the first process would get all of them."""
    came = [0, 0]
    for _ in range(6):
        house.connect()
        came = [before + now for before, now in zip(came, await house.dealt(1), strict=True)]
        for index in (0, 1):
            house.shared.count_connections(index, connections=0, arrived=came[index])
    assert came == [3, 3]


async def test_a_silent_process_gets_none_unless_all_are(house, monkeypatch):
    silent = {0}
    monkeypatch.setattr(house.shared, "silent_s", lambda index: 5.0 if index in silent else 0.0)
    house.connect(4)
    assert await house.dealt(4) == [0, 4]
    silent.add(1)
    house.connect(4)
    assert await house.dealt(4) == [4, 0]


async def test_a_process_whose_decoding_threads_hang_gets_none_unless_all_do(house):
    house.shared.beat(0, decoder_stalled_s=5.0)
    house.connect(4)
    assert await house.dealt(4) == [0, 4]
    house.shared.beat(1, decoder_stalled_s=5.0)
    house.connect(4)
    assert await house.dealt(4) == [4, 0]


async def test_a_process_that_has_ended_gets_none(house):
    house.ends[0].close()
    house.connect(3)
    assert await house.dealt(3) == [0, 3]


async def test_closing_hands_on_what_the_kernel_has_accepted():
    house = House()
    house.acceptor.open()
    house.connect(6)  # the event loop has had no turn
    await house.acceptor.close()
    assert house.counts() == [3, 3]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(house.address)
    house.leave()


async def test_closing_hands_on_who_was_half_in_as_nobody_was_let_in_any_more(monkeypatch):
    house = House()
    house.acceptor.open()

    def drop(_listener):
        """What comes now stands for a handshake that had begun."""
        asyncio.get_running_loop().call_soon(house.connect)
        return True

    monkeypatch.setattr("app.http.ports.drop_new_connections", drop)
    await house.acceptor.close()
    assert sum(house.counts()) == 1
    house.leave()


async def test_the_end_of_a_channel_comes_after_its_connections():
    house = House()
    house.connect(2)
    await house.acceptor.close()
    for one in house.channels:
        one.close()
    assert [house.arrived(index) for index in (0, 1)] == [["connection", None]] * 2
    house.leave()


async def test_at_the_end_processes_that_take_none_are_waited_for(monkeypatch):
    monkeypatch.setattr("app.processes.acceptor.REST_S", 0)
    send_fds, refusals = socket.send_fds, [BlockingIOError()] * 20  # of two processes, for ten pauses

    def send(*arguments):
        if refusals:
            raise refusals.pop()
        return send_fds(*arguments)

    house = House()
    house.connect(6)
    with monkeypatch.context() as patch:
        patch.setattr("app.processes.acceptor.socket.send_fds", send)
        await house.acceptor.close()
    assert house.counts() == [3, 3]
    house.leave()


async def test_at_the_end_one_error_of_accepting_loses_nobody_else(monkeypatch):
    monkeypatch.setattr("app.processes.acceptor.REST_S", 0)
    errors = [OSError(errno.EMFILE, "no file is left"), ConnectionAbortedError()]

    class Port(socket.socket):
        def accept(self):
            if errors:
                raise errors.pop()
            return super().accept()

    house = House()
    monkeypatch.setattr(house.acceptor, "_listener", Port(fileno=os.dup(house.port.fileno())))
    house.connect(6)
    await house.acceptor.close()
    assert house.counts() == [3, 3]
    house.port.close()
    house.leave()


async def test_processes_that_never_take_any_do_not_keep_the_port_open(monkeypatch):
    monkeypatch.setattr("app.processes.acceptor.REST_S", 0)

    def full(*_):
        raise BlockingIOError

    house = House()
    house.connect(1)
    with monkeypatch.context() as patch:
        patch.setattr("app.processes.acceptor.socket.send_fds", full)
        await house.acceptor.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(house.address)
    house.leave()


async def test_where_nobody_takes_any_clients_wait_and_none_is_lost(house, monkeypatch):
    monkeypatch.setattr("app.http.accept_loop.REST_S", 0)
    send_fds, full, refused = socket.send_fds, True, []

    def send(*arguments):
        if full:
            refused.append(arguments)
            raise BlockingIOError
        return send_fds(*arguments)

    monkeypatch.setattr("app.processes.acceptor.socket.send_fds", send)
    house.connect(6)
    while not refused:
        await asyncio.sleep(0)
    assert house.counts() == [0, 0]
    full = False
    assert sum(await house.dealt(6)) == 6
