"""What the engine process and the HTTP processes say to each other: frames of a length, a kind and a payload.

HTTP -> engine: SUBMIT images, CANCEL them; SERVING; SNAPSHOT, this process' metrics; SCRAPE, which asks for all;
FILES_REFUSED, those that could not be read again.
engine -> HTTP: ANSWER or REFUSAL to a SUBMIT; STATUS; READ_AGAIN; CLOSE; COLLECT, which asks for a SNAPSHOT; METRICS
to a SCRAPE.
Images and probabilities go as they lie in memory, everything rare as JSON; nothing is ever unpickled. Both ends are the
same code on the same machine, so that there are no versions to agree on.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from app.batching.jobs import Images, ModelIdentity, Outcome
from app.errors import (
    ClientGone,
    DeadlinePassed,
    EngineFailed,
    NotReady,
    QueueFull,
    ServiceError,
)

Payload = bytes


class Kind(IntEnum):
    """What a frame is."""

    SUBMIT = 1
    CANCEL = 2
    ANSWER = 3
    REFUSAL = 4
    STATUS = 5
    SERVING = 6
    READ_AGAIN = 7
    CLOSE = 8
    COLLECT = 9
    SNAPSHOT = 10
    SCRAPE = 11
    METRICS = 12
    FILES_REFUSED = 13


HEAD = struct.Struct("<IB")  # bytes of the payload, kind
ID = struct.Struct("<Q")  # of a request, given by the HTTP process
SUBMIT = struct.Struct("<QdIH")  # id, deadline as time.monotonic(), images, their size
ANSWER = struct.Struct("<QddIHH")  # id, queue_s, inference_s, images, classes, bytes of the model's name
REFUSAL = struct.Struct("<Qi")  # id, retry_after_s or NO_RETRY; the error's code follows
NO_RETRY = -1

# What may become of images at the engine, by the code that travels.
REFUSALS = {kind.code: kind for kind in (ClientGone, DeadlinePassed, EngineFailed, NotReady, QueueFull, ServiceError)}


class FrameDecoder:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, Payload]]:
        """Yield the kind and payload of each frame that `data` completes."""
        rest = self._rest
        if rest:
            rest += data
        stream = rest or data  # most often whole frames come, of which nothing is left: they are cut out of `data`
        at = 0
        while len(stream) - at >= HEAD.size:
            length, kind = HEAD.unpack_from(stream, at)
            begin = at + HEAD.size
            if len(stream) < begin + length:
                break
            at = begin + length
            yield kind, bytes(memoryview(stream)[begin:at])
        if rest:
            del rest[:at]
        else:
            rest += data[at:]


def frame(kind: Kind, payload: Payload = b"") -> bytes:
    """Return a frame's bytes."""
    return HEAD.pack(len(payload), kind) + payload


class Submission(NamedTuple):
    """Images of one request: uint8 (N, 3, S, S), wanted by `deadline`, a time.monotonic()."""

    submission_id: int
    deadline: float
    images: Images


def pack_submission(submission_id: int, deadline: float, images: Images) -> bytes:
    """Return the frame that hands over uint8 (N, 3, S, S), which are copied once: they may be megabytes."""
    head = SUBMIT.pack(submission_id, deadline, len(images), images.shape[-1])
    return b"".join((HEAD.pack(len(head) + images.nbytes, Kind.SUBMIT), head, np.ascontiguousarray(images).data))


def unpack_submission(payload: Payload) -> Submission:
    """Return what `pack_submission` was given."""
    submission_id, deadline, count, size = SUBMIT.unpack_from(payload)
    images = np.frombuffer(payload, np.uint8, offset=SUBMIT.size).reshape(count, 3, size, size)
    return Submission(submission_id, deadline, images)


class AnswerCodec:
    """Packs or unpacks answers to submissions; the model's name, the same in most of them, is made or read once."""

    def __init__(self) -> None:
        self._model: ModelIdentity = {}
        self._name = b"{}"

    def pack(self, submission_id: int, outcome: Outcome) -> bytes:
        """Return the frame that answers a submission."""
        if outcome.model is not self._model:
            self._model, self._name = outcome.model, json.dumps(outcome.model).encode()
        probabilities = outcome.probabilities
        head = ANSWER.pack(submission_id, outcome.queue_s, outcome.inference_s, *probabilities.shape, len(self._name))
        return frame(Kind.ANSWER, head + self._name + probabilities.tobytes())

    def unpack(self, payload: Payload) -> tuple[int, Outcome]:
        """Return what `pack` was given."""
        submission_id, queue_s, inference_s, count, classes, length = ANSWER.unpack_from(payload)
        begin = ANSWER.size + length
        name = payload[ANSWER.size : begin]
        if name != self._name:
            self._model, self._name = json.loads(name), name
        probabilities = np.frombuffer(payload, np.float64, offset=begin).reshape(count, classes)
        return submission_id, Outcome(probabilities, self._model, queue_s, inference_s)


def pack_refusal(submission_id: int, error: ServiceError) -> bytes:
    """Return the frame that says why images are not computed."""
    retry_after_s = NO_RETRY if error.retry_after_s is None else error.retry_after_s
    return frame(Kind.REFUSAL, REFUSAL.pack(submission_id, retry_after_s) + error.code.encode())


def unpack_refusal(payload: Payload) -> tuple[int, ServiceError]:
    """Return what `pack_refusal` was given; a code that no engine gives is an internal error."""
    submission_id, retry_after_s = REFUSAL.unpack_from(payload)
    error = REFUSALS.get(payload[REFUSAL.size :].decode(), ServiceError)()
    error.retry_after_s = None if retry_after_s == NO_RETRY else retry_after_s
    return submission_id, error


def pack_with_id(kind: Kind, submission_id: int, payload: Payload = b"") -> bytes:
    """Return a frame about a submission or a scrape, whose id it begins with."""
    return frame(kind, ID.pack(submission_id) + payload)


def unpack_with_id(payload: Payload) -> tuple[int, Payload]:
    """Return what `pack_with_id` was given."""
    return ID.unpack_from(payload)[0], payload[ID.size :]
