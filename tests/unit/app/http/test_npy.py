import pickle

import numpy as np
import pytest

from app.errors import MalformedRequest, ServiceError, TooManyImages, UnusableArray
from app.http.bodies import split_images
from app.http.npy import MAX_HEADER_BYTES, read_npy
from tests.mutations import damaged_start
from tests.npy_files import npy

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3, 8, 8), }"


def with_header(text, data=b"", version=1):
    header = text.encode()
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_the_images_are_a_view_of_the_body(version):
    body = npy(IMAGES, version)
    images = read_npy(body, 3, 8)
    np.testing.assert_array_equal(images, IMAGES)
    assert np.shares_memory(images, np.frombuffer(body, np.uint8))


def test_one_image_needs_no_count():
    np.testing.assert_array_equal(read_npy(npy(IMAGES[1]), 1, 8), IMAGES[1:2])


def test_what_other_writers_make_of_the_header_is_read():
    text = """{"shape" :(3,3,8,8),"fortran_order":False,\n "descr":'<u1'}"""
    np.testing.assert_array_equal(read_npy(with_header(text, IMAGES.tobytes()), 3, 8), IMAGES)


@pytest.mark.parametrize("name", ["|u1", "<u1", ">u1", "=u1", "u1", "B", "|B", "uint8"])
def test_the_type_may_have_any_of_its_names(name):
    body = with_header(HEADER.replace("|u1", name), IMAGES.tobytes())
    np.testing.assert_array_equal(read_npy(body, 3, 8), IMAGES)


@pytest.mark.parametrize("order", ["True", "0", "''", "()"])
def test_only_false_says_that_an_array_is_in_c_order(order):
    with pytest.raises(UnusableArray):
        read_npy(with_header(HEADER.replace("False", order), IMAGES.tobytes()), 3, 8)


@pytest.mark.parametrize(
    "array",
    [
        IMAGES.astype(np.int8),
        IMAGES.astype(np.float32),
        IMAGES > 100,
        IMAGES.transpose(0, 2, 3, 1).copy(),
        IMAGES[:, :, :7].copy(),
        IMAGES[:, :1],
        IMAGES[None],
        IMAGES.reshape(-1),
        np.uint8(1),
        np.asfortranarray(IMAGES),
        np.zeros((0, 3, 7, 8), np.uint8),
        np.zeros((2, 0, 8, 8), np.uint8),
        np.zeros((3, 3, 8, 8), [("field", np.uint8)]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_another_type_shape_or_order_is_no_array_for_the_network(array):
    with pytest.raises(UnusableArray):
        read_npy(npy(array), 3, 8)


def test_a_pickle_is_not_loaded():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    array = np.empty((1, 3, 8, 8), object)
    array[...] = Trap()
    with pytest.raises(UnusableArray):
        read_npy(npy(array, allow_pickle=True), 3, 8)
    with pytest.raises(MalformedRequest):
        read_npy(pickle.dumps(Trap()), 3, 8)


def test_too_many_images_and_none():
    with pytest.raises(TooManyImages):
        read_npy(npy(IMAGES), 2, 8)
    with pytest.raises(MalformedRequest):
        read_npy(npy(IMAGES[:0]), 2, 8)


@pytest.mark.parametrize("cut", [0, 1, 6, 7, 8, 9, 10, 60, 127, 128, -1])
def test_a_body_that_is_cut_off_is_malformed(cut):
    with pytest.raises(MalformedRequest):
        read_npy(npy(IMAGES)[:cut], 3, 8)


@pytest.mark.parametrize(
    "body",
    [
        npy(IMAGES) + b"\0",
        npy(IMAGES, (3, 0)),
        b"\x93NUMPY\x01\x01" + npy(IMAGES)[8:],
        b"PK\x03\x04" + npy(IMAGES),
        with_header(HEADER.replace("3, 3", "10**9, 3"), IMAGES.tobytes()),
        with_header(HEADER.replace("(3,", "(-1,"), IMAGES.tobytes()),
        with_header(HEADER.replace("(3,", "(True,"), IMAGES[:1].tobytes()),
        with_header(HEADER.replace("(3, 3, 8, 8)", "5")),
        with_header(HEADER.replace("'shape'", "'form'")),
        with_header(HEADER.replace("}", "'more': 1}"), IMAGES.tobytes()),
        with_header(HEADER.replace("{", "[").replace("}", "]")),
        with_header("{[]: 1}"),
        with_header("("),
        with_header("(" * MAX_HEADER_BYTES),
        with_header("1if 1else 2"),
        with_header("'\\q'"),
        with_header(""),
        with_header(HEADER + " " * MAX_HEADER_BYTES, IMAGES.tobytes()),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + HEADER.encode() + IMAGES.tobytes(),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_npy_file_is_malformed(body):
    with pytest.raises(MalformedRequest):
        read_npy(body, 3, 8)


@pytest.mark.parametrize("text", ["1if 1else 2", "'\\q'", '"\\q"'])
def test_nothing_that_a_stranger_writes_makes_python_warn(text, recwarn):
    with pytest.raises(MalformedRequest):
        read_npy(with_header(text), 3, 8)
    assert not recwarn.list


def test_a_header_has_1024_bytes_at_most():
    text = HEADER.ljust(1024)
    np.testing.assert_array_equal(read_npy(with_header(text, IMAGES.tobytes()), 3, 8), IMAGES)
    with pytest.raises(MalformedRequest):
        read_npy(with_header(text + " ", IMAGES.tobytes()), 3, 8)


def test_a_header_that_lies_costs_no_memory():
    body = with_header(HEADER.replace("(3,", "(99999999999999,"), IMAGES.tobytes())
    with pytest.raises(MalformedRequest):
        read_npy(body, 10**15, 8)


@pytest.mark.filterwarnings("error")
def test_mutated_files_are_read_or_refused():
    rng = np.random.default_rng(1)
    good = npy(IMAGES)
    outcomes = set()
    for _ in range(3000):
        body = damaged_start(rng, good)
        if rng.random() < 0.2:
            del body[int(rng.integers(len(body))) :]
        try:
            outcomes.add(read_npy(bytes(body), 3, 8).shape)
        except ServiceError as error:
            outcomes.add(error.code)
    assert outcomes >= {"malformed-request", "unusable-array", IMAGES.shape}


def test_the_entries_of_such_a_body_are_ready():
    entries = split_images("application/x-npy", npy(IMAGES), 3, 8)
    np.testing.assert_array_equal(np.stack(entries), IMAGES)
