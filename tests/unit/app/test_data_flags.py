import logging
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
import torch
from pydantic import ValidationError

from app.cli import build_parser
from app.client import Card, fetch_card
from app.commands.data_flags import AmongPictures, check_out
from app.commands.fitted_recipe import build_recipe
from app.commands.labelled_data import load_split
from model.architecture import Architecture
from model.data import DataError, Dataset
from model.image_folder.notices import tell_of_held_out_pictures
from model.training.recipe import PRESETS
from model.transforms import MAX_INPUT_SIDE
from tests.pictures import write_folder
from tests.unit.app.command_runs import run_command


def parse(*arguments):
    return build_parser().parse_args(arguments)


def dataset(count, size, classes=3):
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    return Dataset("toy", "train", images, torch.arange(count) % classes, ("ant", "bee", "cat")[:classes])


OTHERS = tuple("abcdefghij")


def weights(classes=OTHERS, **options):
    """Stand in for a checkpoint, of which only the classes and the network's options are looked at."""
    network = Architecture("resnet18", len(classes), **options).to_dict()
    return SimpleNamespace(metadata=SimpleNamespace(architecture=network, classes=classes))


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "folder:/some/path", "folder:a b:c"])
def test_datasets_are_known_by_name(command, name):
    assert parse(command, "--data", name).data == name


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("name", ["mnist", "folder:", "/some/path", ""])
def test_other_names_are_refused_in_one_line(command, name, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(command, "--data", name)
    assert ended.value.code == 2
    assert f"expected cifar10, cifar100 or folder:PATH, not {name!r}" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["7", "513", "32.5", "x", "³²", "-32"])
def test_impossible_image_sizes_are_refused(size, capsys):
    with pytest.raises(SystemExit):
        parse("train", f"--image-size={size}")
    assert f"expected a whole number from 8 to 512, not {size!r}" in capsys.readouterr().err


def test_recipe_fits_the_data_and_says_so(caplog):
    caplog.set_level(logging.INFO)
    recipe = build_recipe(parse("train", "--data", "folder:x", "--image-size", "64"), "cpu", dataset(400, 64))
    assert recipe.phases == ((32, 7), (48, 1), (64, 2))
    assert (recipe.hold_out, recipe.batch_size, recipe.learning_rate) == (40, 32, 0.025)
    assert "batch_size 32 instead of 128, to suit the training set" in caplog.text
    assert "learning_rate 0.025 instead of 0.1" in caplog.text


def test_epochs_are_of_the_full_size_and_flags_win_silently(caplog):
    caplog.set_level(logging.INFO)
    flags = ["--image-size", "64", "--epochs", "3", "--batch-size", "50", "--hold-out", "9", "--cutout", "6"]
    recipe = build_recipe(parse("train", *flags), "standard", dataset(400, 64))
    assert (recipe.phases, recipe.batch_size, recipe.hold_out, recipe.cutout) == (((64, 3),), 50, 9, 6)
    assert recipe.learning_rate == PRESETS["standard"].learning_rate * 50 / 512
    assert "crop_padding 8 instead of 4" in caplog.text
    assert "batch_size 50" not in caplog.text


@pytest.mark.parametrize(("flags", "taken"), [((), True), (("--hold-out", "9"), False)])
def test_what_a_folder_has_to_be_held_out_is_taken_unless_a_number_is_given(monkeypatch, flags, taken):
    asked = []
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **options: asked.append(options) or dataset(9, 8))
    for split in ("train", "test"):
        load_split(parse("train", "--data", "folder:x", *flags), split=split)
    assert [options["with_val"] for options in asked] == [taken, False]


def test_a_recipe_holds_out_what_is_there_for_that_and_says_so(caplog):
    caplog.set_level(logging.INFO)
    recipe = build_recipe(parse("train", "--data", "folder:x"), "cpu", replace(dataset(500, 32), held_out=150))
    assert (recipe.hold_out, recipe.batch_size) == (150, 32)
    assert "hold_out 150 instead of 5000, to suit the folder for validation" in caplog.text
    build_recipe(parse("train", "--data", "folder:x"), "cpu", replace(dataset(500, 32), held_out=50))
    assert "fitted on 50 held-out pictures: how sure its answers are will mean little; more of them help" in caplog.text


def test_no_recipe_is_told_of_where_more_is_held_out_than_there_is(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(DataError, match="cannot hold out 1000 of 600 images"):
        build_recipe(parse("train", "--data", "folder:x", "--hold-out", "1000"), "cpu", dataset(600, 32))
    assert caplog.text == ""


def test_a_run_of_few_steps_from_fresh_weights_is_told_of(caplog):
    caplog.set_level(logging.INFO)
    build_recipe(parse("train", "--data", "folder:x"), "cpu", dataset(1000, 32))
    assert "140 steps in 10 epochs" in caplog.text
    assert "few for fresh weights" in caplog.text


@pytest.mark.parametrize(
    ("classes", "pictures", "epochs", "told"),
    [
        (OTHERS, 36, 10, ["40 steps are few for a fresh head: give more --epochs, such as 75"]),
        (OTHERS, 36, 75, []),
        (dataset(9, 8).classes, 36, 10, []),  # a head that has learnt these
    ],
)
def test_a_run_of_few_steps_for_a_fresh_head_is_told_of(caplog, classes, pictures, epochs, told):
    flags = parse("train", "--data", "folder:x", "--init-from", "x", "--epochs", str(epochs))
    build_recipe(flags, "cpu", dataset(pictures, 32), weights(classes))
    assert [line for line in caplog.messages if "few for" in line] == told


@pytest.mark.parametrize(
    ("count", "flags", "told"), [(999, (), True), (1000, (), False), (999, ("--temperature", "1"), False)]
)
def test_a_calibration_by_few_pictures_is_told_of(caplog, count, flags, told):
    build_recipe(parse("train", "--data", "folder:x", *flags), "cpu", dataset(count, 8))
    assert (f"the calibration is fitted on {count // 10} held-out pictures" in caplog.text) == told


@pytest.mark.parametrize(
    ("count", "classes", "flags", "told"),
    [
        (10, 2, (), ["2 of the 10 pictures, 20%,"]),
        (40, 10, (), ["10 of the 40 pictures, 25%,"]),
        (40, 10, ("--hold-out", "10"), []),
        (60, 9, (), []),
        (59, 9, (), ["9 of the 59 pictures, 15%,"]),
    ],
)
def test_more_than_about_a_tenth_held_out_is_told_of(caplog, count, classes, flags, told):
    labels = torch.arange(count) % classes
    pictures = replace(dataset(count, 8), labels=labels, classes=OTHERS[:classes])
    build_recipe(parse("train", "--data", "folder:x", *flags), "cpu", pictures)
    note = " are held out and not trained on, as there are few: more of them help, or a smaller --hold-out"
    assert [line.partition(note)[0] for line in caplog.messages if note in line] == told


@pytest.mark.parametrize(
    ("flags", "stem", "told"),
    [
        (["--image-size", "96"], "cifar", True),
        (["--image-size", "32"], "auto", False),  # as old runs have it, which go on only with their own recipe
        (["--image-size", "96", "--stem", "imagenet"], "imagenet", False),
    ],
)
def test_the_network_is_the_one_of_the_weights_to_start_from(caplog, flags, stem, told):
    caplog.set_level(logging.INFO)
    flags = ["--data", "folder:x", "--init-from", "x", *flags]
    recipe = build_recipe(parse("train", *flags), "cpu", dataset(1000, int(flags[5])), weights())
    assert (recipe.arch, recipe.stem) == ("resnet18", stem)
    assert ("stem cifar, as the weights of --init-from have it" in caplog.text) == told


@pytest.mark.parametrize(
    ("size", "count", "processes", "batch_size", "why"),
    [
        (32, 2000, 3, 126, "3 processes"),
        (32, 400, 1, 32, "the training set"),
        (32, 400, 3, 30, "the training set and 3 processes"),
        (224, 2000, 1, 64, "the image size"),
        (224, 2000, 3, 63, "the image size and 3 processes"),
        (224, 400, 2, 32, "the training set"),
    ],
)
def test_a_batch_suits_the_images_and_the_processes_as_the_log_says(caplog, size, count, processes, batch_size, why):
    caplog.set_level(logging.INFO)
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8).expand(count, -1, -1, -1)
    flags = parse("train", "--data", "folder:x", "--image-size", str(size))
    recipe = build_recipe(flags, "cpu", replace(dataset(count, 8), images=images), processes=processes)
    assert recipe.batch_size == batch_size
    assert f"batch_size {batch_size} instead of 128, to suit {why}" in caplog.messages


def test_a_batch_that_was_given_is_not_fitted():
    flags = parse("train", "--data", "folder:x", "--batch-size", "128")
    assert build_recipe(flags, "cpu", dataset(2000, 32), processes=3).batch_size == 128


def test_of_large_images_a_network_that_keeps_their_resolution_takes_fewer_at_once():
    flags = ["train", "--data", "folder:x", "--image-size", "224"]
    images = replace(dataset(2000, 8), images=torch.zeros(1, 3, 224, 224, dtype=torch.uint8).expand(2000, -1, -1, -1))
    assert build_recipe(parse(*flags), "cpu", images).batch_size == 64
    recipe = build_recipe(parse(*flags, "--init-from", "x"), "cpu", images, weights())
    assert (recipe.stem, recipe.batch_size) == ("cifar", 8)


def test_a_plain_network_goes_on_as_one(caplog):
    flags = ["train", "--data", "folder:x", "--init-from", "x"]
    assert build_recipe(parse(*flags), "cpu", dataset(1000, 32), weights(shortcut="none")).shortcut == "none"


def test_a_last_phase_of_another_size_than_what_is_served_is_told_of(caplog):
    build_recipe(parse("train", "--phases", "64:30"), "cpu", dataset(1000, 32))
    assert "the last phase is of 64 pixels, but 32 are what the network is measured on and served" in caplog.text
    caplog.clear()
    build_recipe(parse("train", "--image-size", "64", "--phases", "32:1,64:30"), "cpu", dataset(1000, 64))
    assert "the last phase" not in caplog.text


@pytest.mark.parametrize(("flags", "flip"), [((), True), (("--no-flip",), False), (("--flip",), True)])
def test_classes_that_differ_by_a_mirror_need_not_be_flipped(flags, flip):
    recipe = build_recipe(parse("train", *flags), "standard", dataset(1000, 32))
    assert recipe.flip is flip


@pytest.mark.usefixtures("own_logging")
def test_evaluation_of_pictures_of_other_classes_is_refused_in_one_line(tmp_path, capsys):
    assert run_command("evaluate", "--data", f"folder:{write_folder(tmp_path, 8)}") == 1
    *logged, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"resnet: error: the classes of {tmp_path.name} are not those of ")
    assert "the data alone has 'disc', 'grass', 'stripes'" in said
    assert all(" INFO    model.image_folder.dataset: " in line for line in logged)


@pytest.mark.usefixtures("own_logging")
def test_evaluation_of_what_is_no_folder_is_refused_in_one_line(tmp_path, capsys):
    assert run_command("evaluate", "--data", f"folder:{tmp_path}/nowhere") == 1
    expected = f"resnet: error: no folder of pictures at {tmp_path}/nowhere: No such file or directory\n"
    assert capsys.readouterr().err == expected


def test_of_a_service_those_sizes_are_believed_that_a_checkpoint_may_have():
    assert Card(input_size=MAX_INPUT_SIDE, classes=("a",)).input_size == MAX_INPUT_SIDE
    with pytest.raises(ValidationError):
        Card(input_size=MAX_INPUT_SIDE + 1, classes=("a",))


def test_the_card_is_asked_for_with_the_key(monkeypatch):
    asked = []

    def answer(url, headers, **_):
        asked.append((url, headers))
        return httpx.Response(200 if headers else 401, json={"input_size": 48, "classes": ["a", "b"], "name": "c"})

    monkeypatch.setattr(httpx, "get", answer)
    assert fetch_card("http://there/", "secret") == Card(input_size=48, classes=("a", "b"))
    with pytest.raises(ConnectionError, match="the service answered 401"):
        fetch_card("http://there")
    assert asked == [("http://there/model", {"authorization": "Bearer secret"}), ("http://there/model", {})]


@pytest.mark.parametrize("flag", ["--limit", "--concurrency"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", ""])
def test_evaluation_of_no_images_or_by_nobody_is_refused(flag, number, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("evaluate", flag, number)
    assert stopped.value.code == 2
    assert f"argument {flag}: expected a whole number from 1 to 1000000000, not '{number}'" in capsys.readouterr().err


def test_a_path_with_two_slashes_at_its_beginning_is_the_one_with_one(tmp_path):
    pictures = write_folder(tmp_path / "pictures", 20)
    flags = parse("train", "--data", f"folder:/{pictures}", "--out", f"/{pictures}/run")
    assert flags.data == f"folder:{pictures}"
    with pytest.raises(AmongPictures):
        check_out(flags.out, flags.data)
    tell_of_held_out_pictures(load_split(flags, split="train"), 6, fitted=True)
