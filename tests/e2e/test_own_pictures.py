"""Pictures of one's own, from a folder to answers: train or fine-tune, evaluate, serve, ask."""

import re
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from tests.commands import resnet
from tests.conftest import ROOT, encode
from tests.pictures import FORMATS, KINDS, draw_picture, write_folder
from tests.process import WEIGHTS, service_process

pytestmark = pytest.mark.e2e

PER_CLASS = 20


def train(pictures, out, *more):
    return resnet("train", "--data", f"folder:{pictures}", "--device", "cpu", "--out", out, *more)


def turned(image):
    """A JPEG that stands upright only if its EXIF orientation is obeyed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


@pytest.fixture(scope="module")
def unseen():
    """Pictures that are in no folder, in every format, as (kind, file)."""
    numbers = range(1000, 1000 + len(FORMATS))
    files = [
        (kind, encode(draw_picture(kind, number), image_format))
        for kind in KINDS
        for number, (_, image_format) in zip(numbers, FORMATS, strict=True)
    ]
    return [*files, ("stripes", turned(draw_picture("stripes", 2000)))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a folder with one broken file, from fresh weights."""
    folder = tmp_path_factory.mktemp("own")
    pictures = write_folder(folder / "my pictures", PER_CLASS)
    (pictures / "grass" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture at all")
    done = train(pictures, folder / "run", "--arch", "resnet18", "--image-size", "32", "--phases", "16:3,32:1")
    assert done.returncode == 0, done.stderr
    weights = folder / "run" / "checkpoint.safetensors"
    assert done.stdout.strip().splitlines()[0] == str(weights)
    return SimpleNamespace(pictures=pictures, weights=weights, log=done.stderr)


@pytest.fixture(scope="module")
def answers(trained, tmp_path_factory, unseen):
    """What a service says that is told of nothing but the weights: /model, predictions, and its evaluation."""
    with service_process(tmp_path_factory.mktemp("served") / "serve.log", weights=trained.weights) as service:
        service.wait_ready()
        card = service.get("/model").json()
        files = [("file", picture) for _, picture in unseen]
        predictions = httpx.post(f"{service.url}/predict", files=files, timeout=120).json()["predictions"]
        evaluation = resnet("evaluate", "--data", f"folder:{trained.pictures}", "--url", service.url)
        assert service.stop() == 0
    return SimpleNamespace(card=card, predictions=predictions, evaluation=evaluation)


def test_the_broken_file_is_named_and_counted(trained):
    assert "skipped 'grass/broken.jpg': not an intact JPEG, PNG, WebP, GIF or BMP picture" in trained.log
    assert "skipped 1 file(s) that cannot be used" in trained.log
    assert "Traceback" not in trained.log


def test_the_recipe_is_fitted_to_the_few_pictures_and_says_so(trained):
    assert re.search(r"batch_size 8 instead of \d+", trained.log)
    assert re.search(r"hold_out \d instead of 5000", trained.log)


def test_the_service_knows_the_classes_and_what_to_normalise_by(answers, trained):
    from model.image_folder.dataset import load_folder

    measured = load_folder(trained.pictures, split="train")
    assert answers.card["classes"] == list(KINDS)
    assert answers.card["name"] == "resnet18-my-pictures"
    assert answers.card["input_size"] == 32
    assert answers.card["mean"] == pytest.approx(measured.mean)
    assert answers.card["std"] == pytest.approx(measured.std)
    assert answers.card["dataset"]["training_images"] + answers.card["dataset"]["held_out_images"] == len(measured)


def test_unseen_pictures_get_their_class(answers, unseen):
    assert [one["label"] for one in answers.predictions] == [kind for kind, _ in unseen]
    assert [one["index"] for one in answers.predictions] == [KINDS.index(kind) for kind, _ in unseen]


def test_evaluation_of_checkpoint_and_service_agree(answers, trained):
    offline = resnet("evaluate", "--data", f"folder:{trained.pictures}", "--weights", trained.weights)
    for done in (offline, answers.evaluation):
        assert done.returncode == 0, done.stderr
        assert "on my-pictures test" in done.stdout
        assert "top-1  1.0000" in done.stdout


def test_fine_tuning_the_shipped_checkpoint_takes_fewer_steps(trained, tmp_path, unseen):
    flags = ["--init-from", WEIGHTS, "--phases", "32:3"]
    done = train(trained.pictures, tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "the head starts fresh" in done.stderr
    files = []
    for number, (kind, picture) in enumerate(unseen):
        files.append(tmp_path / f"{number}-{kind}")
        files[-1].write_bytes(picture)
    asked = resnet(
        "predict",
        "--weights",
        tmp_path / "run" / "checkpoint.safetensors",
        "--top-k",
        "1",
        *files,
    )
    found = [line.split(": ")[1].split()[0] for line in asked.stdout.splitlines()]
    assert found == [kind for kind, _ in unseen]


def test_two_processes_warn_and_report_once(trained, tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "app.cli"]
    flags = ["--data", f"folder:{trained.pictures}", "--device", "cpu", "--out", tmp_path, "--phases", "16:1"]
    done = subprocess.run(
        [*start, "train", *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped 'grass/broken.jpg'") == 2  # for training, and for the report
    path, scores = done.stdout.splitlines()
    assert path == str(tmp_path / "checkpoint.safetensors")
    assert "top-1" in scores
    assert (tmp_path / "evaluation.json").exists()


def test_a_bad_file_can_be_fatal(trained, tmp_path):
    done = train(trained.pictures, tmp_path / "run", "--on-bad-image", "fail")
    assert done.returncode == 1
    assert done.stderr.startswith("resnet: error: 'grass/broken.jpg': not an intact")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
