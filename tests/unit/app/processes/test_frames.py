import numpy as np
import pytest

from app.batching.jobs import Outcome
from app.errors import QueueFull, ServiceError, UnsupportedMediaType
from app.processes.frames import (
    REFUSALS,
    AnswerCodec,
    FrameDecoder,
    Kind,
    frame,
    pack_refusal,
    pack_submission,
    pack_with_id,
    unpack_refusal,
    unpack_submission,
    unpack_with_id,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)


def content(packed):
    ((_, payload),) = FrameDecoder().feed(packed)
    return payload


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 100, 10_000])
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(piece_bytes):
    sent = [(Kind.SERVING, b""), (Kind.STATUS, b"x" * 300), (Kind.CLOSE, b""), (Kind.SUBMIT, bytes(range(256)))]
    stream = b"".join(frame(*one) for one in sent)
    frames = FrameDecoder()
    pieces = [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)]
    assert [one for piece in pieces for one in frames.feed(piece)] == sent


def test_what_is_not_complete_waits():
    packed = frame(Kind.STATUS, b"abc")
    frames = FrameDecoder()
    assert list(frames.feed(packed[:-1])) == []
    assert list(frames.feed(packed[-1:])) == [(Kind.STATUS, b"abc")]


def test_images_and_deadline_arrive_as_they_were():
    got = unpack_submission(content(pack_submission(2**40, 1234.5678, IMAGES[:, :, ::-1])))
    assert (got.submission_id, got.deadline) == (2**40, 1234.5678)
    np.testing.assert_array_equal(got.images, IMAGES[:, :, ::-1])
    assert got.images.dtype == np.uint8


def test_answers_arrive_bit_for_bit_and_name_their_own_model():
    packer, reader = AnswerCodec(), AnswerCodec()
    old, new = {"name": "réseau", "version": "1"}, {"name": "réseau", "version": "2"}
    for number, model in enumerate((old, old, new, old)):
        probabilities = np.random.default_rng(number).random((number + 1, 10))
        packed = packer.pack(number, Outcome(probabilities, model, 0.25, 0.5))
        got_number, got = reader.unpack(content(packed))
        assert (got_number, got.model, got.queue_s, got.inference_s) == (number, model, 0.25, 0.5)
        assert got.probabilities.tobytes() == probabilities.tobytes()
        assert got.probabilities.shape == probabilities.shape


@pytest.mark.parametrize("kind", REFUSALS.values())
def test_refusals_arrive_as_the_same_error(kind):
    error = kind()
    number, got = unpack_refusal(content(pack_refusal(7, error)))
    assert number == 7
    assert type(got) is kind
    assert (got.problem(), got.retry_after_s) == (error.problem(), error.retry_after_s)


def test_a_full_queue_says_when_to_come_back():
    assert unpack_refusal(content(pack_refusal(1, QueueFull(retry_after_s=17))))[1].retry_after_s == 17


def test_what_no_engine_says_is_an_internal_error():
    assert type(unpack_refusal(content(pack_refusal(1, UnsupportedMediaType())))[1]) is ServiceError


def test_a_number_and_what_is_said_of_it():
    assert unpack_with_id(content(pack_with_id(Kind.METRICS, 9, b"text"))) == (9, b"text")


def test_a_request_may_have_very_many_images():
    images = np.zeros((70_000, 3, 1, 1), np.uint8)
    ((kind, payload),) = FrameDecoder().feed(pack_submission(1, 2.0, images))
    assert kind == Kind.SUBMIT
    assert unpack_submission(payload).images.shape == images.shape
