"""`resnet predict` as a person sees it: which files and numbers it takes, and what it says of the others."""

import json
import os

import numpy as np
import pytest

from app import engine, imaging
from app.cli import build_parser
from app.settings import Settings
from tests.bombs import png
from tests.conftest import ROOT, encode, noise
from tests.fakes import Cats

CAMERA = (5000, 4000)  # more than the service takes by default
PANORAMA = (20_000, 10_000)  # more than Pillow does


@pytest.fixture(autouse=True)
def cats(monkeypatch):
    monkeypatch.setattr(engine, "load_engine", lambda _settings: Cats())
    monkeypatch.delenv("RESNET_MAX_PIXELS", raising=False)


def predict(*arguments):
    parsed = build_parser().parse_args(["predict", *map(str, arguments)])
    return parsed.run(parsed)


@pytest.mark.parametrize("number", ["0", "-5", "1.5", "many"])
def test_no_class_at_all_is_no_answer_to_ask_for(number, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["predict", "picture.png", f"--top-k={number}"])
    assert stopped.value.code == 2
    assert f"argument --top-k: expected a whole number from 1 to 1000000000, not '{number}'" in capsys.readouterr().err


def test_a_picture_of_a_camera_is_taken_as_training_takes_it(tmp_path, capsys):
    assert CAMERA[0] * CAMERA[1] > Settings().max_pixels
    (tmp_path / "photo.png").write_bytes(png(*CAMERA, bits=1, colours=0))
    assert predict(tmp_path / "photo.png", "--top-k", 1) == 0
    assert capsys.readouterr().out == f"{tmp_path}/photo.png: cat 75.0%\n"


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_limit_that_is_given_holds_and_the_flag_is_named(tmp_path, capsys, monkeypatch, how):
    (tmp_path / "photo.png").write_bytes(png(*CAMERA, bits=1, colours=0))
    if how == "environment":
        monkeypatch.setenv("RESNET_MAX_PIXELS", "1000000")
    flags = ["--max-pixels", "1000000"] if how == "flag" else []
    assert predict(tmp_path / "photo.png", *flags) == 1
    said = "The image has more than the limit of 1000000 pixels. --max-pixels raises it."
    assert capsys.readouterr().out == f"{tmp_path}/photo.png: {said}\n"


@pytest.mark.filterwarnings("error")
def test_the_limit_can_be_raised_beyond_pillows_own(tmp_path, capsys):
    (tmp_path / "panorama.png").write_bytes(png(*PANORAMA, bits=1, colours=0))
    assert predict(tmp_path / "panorama.png") == 1
    assert "more than the limit of 67108864 pixels. --max-pixels raises it." in capsys.readouterr().out
    assert predict(tmp_path / "panorama.png", "--max-pixels", 200_000_000) == 0


def test_a_phones_heic_and_a_scanners_tiff_are_called_so(tmp_path, capsys):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "scan.tif").write_bytes(encode(noise(), "TIFF"))
    (tmp_path / "text.png").write_text("no picture")
    assert predict(tmp_path / "photo.heic", tmp_path / "scan.tif", tmp_path / "text.png") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/photo.heic: HEIC or AVIF, which is not read here: save it as JPEG",
        f"{tmp_path}/scan.tif: TIFF or a camera's raw file, which is not read here: save it as JPEG or PNG",
        f"{tmp_path}/text.png: not an intact JPEG, PNG, WebP, GIF or BMP picture",
    ]


def test_what_is_no_file_that_ends_is_named_and_the_others_are_answered(tmp_path, capsys):
    """Nobody writes into the pipe: reading it would never end."""
    os.mkfifo(tmp_path / "pipe")
    cat = ROOT / "examples" / "cat.png"
    assert predict(tmp_path / "pipe", tmp_path, tmp_path / "none.png", cat) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/pipe: not a regular file",
        f"{tmp_path}: a folder: give its files",
        f"{tmp_path}/none.png: cannot be read: No such file or directory",
        f"{cat}: cat 75.0%, dog 25.0%",
    ]


def test_want_of_memory_is_named_and_the_others_are_answered(tmp_path, capsys, monkeypatch):
    def decode_in_too_little(data, *limits, decode=imaging.decode):
        if len(data) > 5_000:
            raise MemoryError
        return decode(data, *limits)

    monkeypatch.setattr(imaging, "decode", decode_in_too_little)
    (tmp_path / "large.png").write_bytes(encode(noise(64, 64)))
    (tmp_path / "small.png").write_bytes(encode(noise()))
    assert predict(tmp_path / "large.png", tmp_path / "small.png", "--top-k", 1) == 1
    assert capsys.readouterr().out == f"{tmp_path}/large.png: out of memory\n{tmp_path}/small.png: cat 75.0%\n"


def test_of_classes_that_are_as_likely_the_first_one_is_named_first_as_in_the_services_answers(monkeypatch, capsys):
    monkeypatch.setattr(Cats, "run", lambda _self, images: np.array([[0.5, 0.5 + 1e-7]] * len(images), np.float32))
    cat = ROOT / "examples" / "cat.png"
    assert predict(cat) == 0
    assert capsys.readouterr().out == f"{cat}: cat 50.0%, dog 50.0%\n"


def test_a_picture_that_the_network_has_no_finite_answer_for_is_named(monkeypatch, capsys):
    monkeypatch.setattr(Cats, "run", lambda _self, images: np.full((len(images), 2), np.nan, np.float32))
    cat = ROOT / "examples" / "cat.png"
    assert predict(cat, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"file": str(cat), "error": "the network has no finite answer"}
