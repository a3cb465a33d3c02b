"""A connection with a cached header takes every request as one does that has it parsed."""

import asyncio
import gc
import random
import re
import weakref
from functools import partial
from itertools import pairwise

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.errors import BodyTooSlow, QueueFull
from app.http.byte_budget import ByteBudget
from app.http.connection_limits import ConnectionLimits
from app.http.fast_connections import FastConnection
from app.http.parameters import BodyDeadline
from app.http.problems import problem_answers
from tests.connections import Transport, answer, ended

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_linger")]

BODY = b"12345"
REQUEST = (
    b"POST /predict HTTP/1.1\r\nhost: x\r\nX-Request-Id: one-7\r\ncontent-type: image/png\r\ncontent-length: %d\r\n"
    b"user-agent: some client/1\r\naccept: */*\r\n\r\n%s"
)
PIECES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"0", b"5", b"a", b"HTTP/1.0", b"connection: close\r\n"]
PIECES += [
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: h2c\r\n",
    b"x-request-id: another\r\n",
    b"content-type: text/plain\r\n",
]


class Echo:
    """Answers at once, and notes what it was asked."""

    path = "/predict"
    max_body_bytes = 1000

    def __init__(self):
        self.overload = self
        self.cached_header = None
        self.asked = []
        self.refusal = None
        self.awake = 0

    def stay_awake(self):
        self.awake += 1

    def refusal_of_all(self):
        return self.refusal

    def immediate_refusal(self, head, error):
        return problem_answers(error)("id")

    def begin(self, conversation, head, body, began):
        self.asked.append((head.given_id, (head.content_type, head.key, head.codings, head.parameters), body))
        conversation.send_answer(200, b"content-length: 2\r\n", b"ok", close=False)

    def body_deadline(self, head):
        return BodyDeadline(60.0, BodyTooSlow())

    def refuse(self, conversation, head, error, began):
        conversation.send_answer(error.status, b"content-length: 0\r\n", b"", close=False)

    give_up = refuse


def connect(fast_path):
    limits = ConnectionLimits(60.0, 60.0, 10, lambda _code: None, ByteBudget(1000))
    config = uvicorn.Config(
        answer, http=partial(FastConnection, fast_path=fast_path, limits=limits), ws="none", log_config=None
    )
    config.load()
    connection = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport


def request(body=BODY):
    return REQUEST % (len(body), body)


def mutated(draw):
    """A request that differs in a place or two, most of them in the header, some only in the body or in an id."""
    data = request(bytes(draw.choices(range(256), k=draw.randrange(12))))
    for _ in range(draw.randrange(3)):
        at = draw.randrange(len(data))
        data = data[:at] + draw.choice([b"", *PIECES]) + data[at + draw.randrange(3) :]
    return data


def is_cached(connection, data):
    found = connection._cached.match(data)
    return found is not None and len(found[2]) == found[1]


async def told_without_ids(transport):
    """What was sent, but for the problems' random ids, and for the second."""
    sent = re.sub(rb"\r\ndate: [^\r]*GMT\r\n", b"\r\ndate\r\n", transport.sent)
    return sent.split(b"x-request-id")[0], transport.is_closing()


@pytest.mark.parametrize("pieces", [1, 2, 3])
async def test_what_has_almost_the_cached_header_is_taken_as_by_the_parser(pieces):
    draw = random.Random(pieces)
    cached = 0
    for _ in range(3000 // pieces):
        data = mutated(draw)
        cuts = sorted(draw.sample(range(1, len(data)), pieces - 1))
        before, after = Echo(), Echo()
        old, old_transport = connect(before)
        old.data_received(request())
        assert old._cached is not None
        old_transport.sent, before.asked = b"", []
        new, new_transport = connect(after)
        cached += is_cached(old, data)
        for connection in (old, new):
            for begin, end in pairwise([0, *cuts, len(data)]):
                connection.data_received(data[begin:end])
        old._give_up_held()
        assert old._awaits_body == new._awaits_body
        assert before.asked == after.asked, data
        assert await told_without_ids(old_transport) == await told_without_ids(new_transport), data
        for connection in (old, new):
            for task in connection.tasks:
                task.cancel()
            connection.connection_lost(None)
    assert 500 < cached * pieces < 2500


async def test_a_header_is_forgotten_for_the_next_one_and_times_run_as_ever():
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request())
    first = connection._cached
    connection.data_received(request(b"other"))
    assert connection._cached is first
    assert connection.timeout_keep_alive_task is not None
    assert connection._header_timer is None
    connection.data_received(request()[:10])
    assert connection.timeout_keep_alive_task is None
    assert connection._header_timer is not None
    connection.data_received(request()[10:])  # in pieces, by the parser
    connection.data_received(request().replace(b"*/*", b"*/x"))
    assert connection._cached is not first
    assert len(echo.asked) == 4
    assert transport.sent.count(b"HTTP/1.1 200 ") == 4


async def test_a_new_connection_begins_with_the_header_that_was_cached_last():
    echo = Echo()
    old, _ = connect(echo)
    old.data_received(request())
    new, transport = connect(echo)
    assert new._header_timer is not None
    new.data_received(request(b"another"))
    assert new._messages_begun == 0  # the parser has seen nothing
    assert [body for _, _, body in echo.asked] == [BODY, b"another"]
    assert echo.asked[0][0] == echo.asked[1][0]
    assert transport.sent.count(b"HTTP/1.1 200 ") == 1
    assert new._header_timer is None
    assert new.timeout_keep_alive_task is not None


async def test_a_header_with_a_key_stays_with_its_connection():
    echo = Echo()
    old, _ = connect(echo)
    old.data_received(request().replace(b"accept: */*", b"authorization: Bearer secret"))
    assert old._cached is not None
    assert connect(echo)[0]._cached is None


async def test_nobody_rests_while_connections_come():
    echo = Echo()
    old, _ = connect(echo)
    old.data_received(request())
    before = echo.awake
    old.data_received(request())
    assert echo.awake == before
    connect(echo)
    assert echo.awake == before + 1


async def test_the_header_time_of_a_new_connection_ends_with_a_cached_header():
    echo = Echo()
    old, _ = connect(echo)
    old.data_received(request())
    new, _ = connect(echo)
    echo.begin = lambda *_: None  # the answer takes its time
    new.data_received(request())
    assert new._header_timer is None
    assert new.timeout_keep_alive_task is None


@pytest.mark.parametrize("cached_before", [True, False])
async def test_who_is_turned_away_has_a_whole_idle_time_from_then_on(cached_before):
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request())
    if not cached_before:
        connection, transport = connect(echo)
    echo.refusal = QueueFull(retry_after_s=1)
    connection.data_received(request())
    assert b"HTTP/1.1 429 " in transport.sent
    assert connection._header_timer is None
    connection.timeout_keep_alive_handler()  # as its time began before
    assert not transport.is_closing()
    assert not connection.timeout_keep_alive_task.cancelled()
    connection.timeout_keep_alive = 0
    connection.timeout_keep_alive_handler()
    assert transport.is_closing()


async def test_a_connection_that_is_to_close_takes_no_request_by_the_cache():
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request())
    connection._closing = True
    connection.data_received(request())
    await ended(connection)
    assert len(echo.asked) == 2
    assert b"connection: close" in transport.sent
    assert transport.is_closing()


def in_two(body=BODY):
    """A request as many clients send it: the header, then the body."""
    header, end, body = request(body).partition(b"\r\n\r\n")
    return header + end, body


async def test_a_header_that_came_without_its_body_is_cached_too_and_so_is_the_next_one(monkeypatch):
    echo = Echo()
    connection, transport = connect(echo)
    for piece in in_two():
        connection.data_received(piece)
    assert connection._cached is not None
    monkeypatch.setattr(connection, "_parse", lambda _: pytest.fail("parsed"))
    for piece in in_two(b"the next one"):
        connection.data_received(piece)
    assert [body for _, _, body in echo.asked] == [BODY, b"the next one"]
    assert transport.sent.count(b"HTTP/1.1 200 ") == 2
    assert connection._held_timer is None


def held(body):
    """A connection that has had a request and the cached header of another one, whose body is returned."""
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request())
    header, body = in_two(body)
    connection.data_received(header)
    return echo, connection, transport, body


async def test_a_body_that_does_not_follow_soon_is_awaited_by_the_parser():
    echo, connection, transport, body = held(b"late")
    assert not connection._awaits_body
    assert connection.timeout_keep_alive_task is None, "the connection is not idle"
    async with asyncio.timeout(60):
        while not connection._awaits_body:
            await asyncio.sleep(0)
    assert connection._body_timer is not None
    connection.data_received(body)
    assert echo.asked[-1][2] == b"late"
    assert transport.sent.count(b"HTTP/1.1 200 ") == 2


async def test_a_connection_that_is_to_close_awaits_the_body_of_a_cached_header():
    echo, connection, transport, body = held(b"last")
    connection.shutdown()
    assert not transport.is_closing()
    connection.data_received(body)
    assert echo.asked[-1][2] == b"last"
    assert b"connection: close" in transport.sent
    assert transport.is_closing()


async def test_nothing_is_left_of_a_client_that_leaves_before_the_body():
    _, connection, _, _ = held(b"never")
    timer = connection._held_timer
    connection.connection_lost(None)
    assert timer.cancelled()
    assert connection._held == b""


@pytest.mark.parametrize("turned_away", [False, True])
async def test_nothing_is_left_of_a_client_that_resets_an_idle_connection(turned_away):
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request())
    if turned_away:
        echo.refusal = QueueFull(retry_after_s=1)
        connection.data_received(request())
    timer = connection.timeout_keep_alive_task
    connection.connection_lost(ConnectionResetError())
    assert timer.cancelled()
    left = weakref.ref(connection)
    del connection, transport
    gc.collect()
    assert left() is None


async def test_a_cached_header_lets_no_large_body_through():
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request())
    connection.data_received(request(b"x" * (Echo.max_body_bytes + 1)))
    await ended(connection)
    assert len(echo.asked) == 1
    assert transport.sent.count(b"HTTP/1.1 200 ") == 2, "the application's answer"


async def test_a_header_that_asks_for_the_connections_end_is_not_cached():
    echo = Echo()
    connection, transport = connect(echo)
    connection.data_received(request().replace(b"accept: */*", b"connection: close"))
    assert len(echo.asked) == 1
    assert transport.is_closing()
    assert connection._cached is echo.cached_header is None


async def test_an_old_connection_closes_after_its_next_response_whether_that_is_an_answer_or_a_refusal():
    for refusal in (None, QueueFull(retry_after_s=1)):
        echo = Echo()
        connection, transport = connect(echo)
        connection.data_received(request())
        connection._grow_old()
        assert not transport.is_closing()
        echo.refusal, transport.sent = refusal, b""
        connection.data_received(request())
        assert b"connection: close" in transport.sent
        assert transport.is_closing()


async def test_a_request_that_is_held_for_its_body_is_not_idle():
    _, connection, _, _ = held(b"soon")
    assert connection.idle_since() is None


async def test_who_is_turned_away_has_been_idle_since_then():
    echo = Echo()
    connection, _ = connect(echo)
    connection.data_received(request())
    answered = connection.idle_since()
    echo.refusal = QueueFull(retry_after_s=1)
    connection.data_received(request())
    assert answered < connection.idle_since() == connection._idle_since


async def test_the_body_of_who_is_turned_away_is_let_go():
    echo = Echo()
    echo.refusal = QueueFull(retry_after_s=1)
    connection, transport = connect(echo)
    for piece in in_two(b"x" * 900):
        connection.data_received(piece)
    assert b"HTTP/1.1 429 " in transport.sent
    assert not connection.cycle.body
