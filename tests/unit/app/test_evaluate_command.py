import hashlib
import json
import sys
from dataclasses import replace

import pytest

from app.cli import build_parser, main
from app.commands.endings import CommandError
from app.commands.recorded_scores import replace_scores
from benchmarks.model_card import robustness_section
from model import checkpoint
from model import evaluate as evaluate_module
from model.datasets import load_dataset
from model.image_folder.dataset import load_folder
from model.robustness import CORRUPTIONS
from tests.conftest import encode, noise
from tests.unit.app.conftest import TOY_CLASSES, toy_test_set

pytestmark = pytest.mark.usefixtures("own_logging")


def evaluate(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["resnet", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    if isinstance(caught.value, CommandError):  # as the interpreter does
        sys.stderr.write(f"{caught.value}\n")
        return 1
    return caught.value.code


def test_the_robustness_table_is_printed_written_and_recorded(toy_weights, monkeypatch, tmp_path, capsys):
    result = tmp_path / "result.json"
    flags = ["--weights", toy_weights, "--json", result]
    assert evaluate(monkeypatch, *flags) == 0
    plain = json.loads(result.read_text())
    assert "robustness" not in plain
    assert "sent as" not in capsys.readouterr().out

    assert evaluate(monkeypatch, *flags, "--robustness", "--record") == 0
    full = json.loads(result.read_text())
    table = full["robustness"]
    assert list(table) == list(CORRUPTIONS)
    assert {name: full[name] for name in ("top1", "nll", "ece")} == {
        name: plain[name] for name in ("top1", "nll", "ece")
    }
    assert table["clean"] == {"top1": plain["top1"], "top1_change": 0.0, "nll": plain["nll"], "ece": plain["ece"]}
    captured = capsys.readouterr()
    for name, row in table.items():
        assert f"  {name:<12} {row['top1']:.4f}" in captured.out
    assert captured.err == ""  # no progress bar where nobody watches

    loaded = checkpoint.load(toy_weights)
    held_out, test = loaded.metadata.measured
    assert held_out["split"] == "toy held-out"
    assert test["split"] == "toy test"
    assert test["robustness"] == table
    assert loaded.version == full["version"] != plain["version"]
    assert "| jpeg-75 |" in robustness_section(test)


def test_a_pinned_checkpoint_is_not_recorded_into(toy_weights, monkeypatch, capsys):
    before = toy_weights.read_bytes()
    pins = toy_weights.with_name("SHA256SUMS")
    pins.write_text(f"{hashlib.sha256(before).hexdigest()}  {toy_weights.name}\n")
    assert evaluate(monkeypatch, "--weights", toy_weights, "--record") == 1
    error = f"resnet: error: --record would change {toy_weights}, which is pinned: remove {pins} first\n"
    assert capsys.readouterr() == ("", error)
    assert toy_weights.read_bytes() == before
    pins.unlink()
    assert evaluate(monkeypatch, "--weights", toy_weights, "--record") == 0


@pytest.fixture
def link(toy_weights, tmp_path):
    """A link to the toy weights, by way of another one, from a folder of its own."""
    link = tmp_path / "current" / "model.safetensors"
    link.parent.mkdir()
    link.with_name("latest").symlink_to(toy_weights)
    link.symlink_to("latest")
    return link


def test_scores_are_recorded_in_the_file_that_a_link_leads_to(toy_weights, link, monkeypatch):
    assert evaluate(monkeypatch, "--weights", link, "--record") == 0
    assert (link.is_symlink(), link.with_name("latest").is_symlink()) == (True, True)
    assert [one["split"] for one in checkpoint.load(toy_weights).metadata.measured] == ["toy held-out", "toy test"]


@pytest.mark.parametrize("whose", ["link", "file"])
def test_a_pinned_checkpoint_is_not_recorded_into_through_a_link(toy_weights, link, monkeypatch, capsys, whose):
    before = toy_weights.read_bytes()
    pinned = link if whose == "link" else toy_weights
    pinned.with_name("SHA256SUMS").write_text(f"{hashlib.sha256(before).hexdigest()}  {pinned.name}\n")
    assert evaluate(monkeypatch, "--weights", link, "--record") == 1
    assert f"--record would change {pinned}, which is pinned" in capsys.readouterr().err
    assert toy_weights.read_bytes() == before
    assert link.is_symlink()


def test_scores_are_not_recorded_in_a_file_that_took_the_measured_ones_place(
    toy_weights, monkeypatch, tmp_path, capsys
):
    """A training run that ends meanwhile, for one."""
    measured = checkpoint.load(toy_weights)
    score = evaluate_module.score_checkpoint

    def score_while_it_is_replaced(source, dataset, device):
        newer = measured.metadata.model_copy(update={"seed": 7})
        arrays = measured.self_test_images, measured.self_test_probabilities
        checkpoint.save(toy_weights, newer, measured.tensors, *arrays)
        return score(source, dataset, device)

    monkeypatch.setattr(evaluate_module, "score_checkpoint", score_while_it_is_replaced)
    result = tmp_path / "result.json"
    assert evaluate(monkeypatch, "--weights", toy_weights, "--record", "--json", result) == 1
    said = f"resnet: error: checkpoint {toy_weights}: replaced while it was measured, so nothing is recorded in it\n"
    told = capsys.readouterr()
    assert told.err == said
    assert f"top-1  {json.loads(result.read_text())['top1']:.4f}\n" in told.out  # they have taken minutes
    assert json.loads(result.read_text())["version"] == measured.version
    found = checkpoint.load(toy_weights).metadata
    assert (found.seed, found.measured) == (7, measured.metadata.measured)


def test_a_path_of_weights_that_is_wrong_leaves_no_folder(monkeypatch, tmp_path, capsys):
    assert evaluate(monkeypatch, "--weights", tmp_path / "runz" / "checkpoint.safetensors", "--record") == 1
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_a_circle_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "circle").symlink_to("circle")
    assert evaluate(monkeypatch, "--weights", tmp_path / "circle", "--record") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_another_checkpoint_than_the_expected_one_is_one_line(toy_weights, monkeypatch, command):
    files = ["picture.png"] if command == "predict" else []
    flags = ["--weights", str(toy_weights), "--weights-sha256", "0" * 64]
    monkeypatch.setattr(sys, "argv", ["resnet", command, *files, *flags])
    with pytest.raises(SystemExit) as caught:
        main()
    said = caught.value.code
    assert said.startswith(f"resnet: error: checkpoint {toy_weights}: its SHA-256 ")
    assert len(said.splitlines()) == 1


def test_a_recorded_table_survives_until_a_new_one_comes():
    held = {"split": "held-out", "top1": 0.6}
    table = {"clean": {"top1": 0.5}}
    first = replace_scores((held,), {"split": "test", "images": 9, "top1": 0.5, "robustness": table})
    again = replace_scores(first, {"split": "test", "images": 9, "top1": 0.501})
    assert again == (held, {"split": "test", "images": 9, "top1": 0.501, "robustness": table})
    assert replace_scores(again, {"split": "test", "images": 9, "top1": 0.5, "robustness": {}})[1]["robustness"] == {}


@pytest.mark.parametrize("other", [{"images": 10}, {"top1": 0.51}])
def test_a_recorded_table_of_other_images_does_not(other):
    first = {"split": "test", "images": 9, "top1": 0.5, "robustness": {}}
    assert replace_scores((first,), {"split": "test", "images": 9, "top1": 0.5} | other) == (
        {"split": "test", "images": 9, "top1": 0.5} | other,
    )


def test_a_card_without_the_table_has_no_section_of_it():
    assert robustness_section({"split": "test", "images": 5}) == ""


@pytest.mark.parametrize("flag", ["--robustness", "--record"])
def test_what_needs_a_checkpoint_refuses_a_url(monkeypatch, capsys, flag):
    assert evaluate(monkeypatch, "--url", "http://127.0.0.1:9", flag) == 1
    assert capsys.readouterr().err == f"resnet: error: {flag} needs a checkpoint, not --url\n"


def test_shares_of_training_images_are_flags():
    arguments = build_parser().parse_args(["train", "--jpeg", "0.25", "--greyscale", "1", "--rescale", "0"])
    assert (arguments.jpeg, arguments.greyscale, arguments.rescale) == (0.25, 1.0, 0.0)


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan", "many"])
def test_shares_outside_of_one_are_refused(share, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["train", "--jpeg", share])
    assert caught.value.code == 2
    assert "argument --jpeg: expected a share from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["nan", "-3", "90", "1.01"])
def test_a_least_accuracy_that_is_no_share_is_refused_in_a_line(share, capsys):
    """Nothing is below NaN, and everything is below 90."""
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["evaluate", f"--min-accuracy={share}"])
    assert caught.value.code == 2
    assert f"argument --min-accuracy: expected a share from 0 to 1, not '{share}'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("evaluate", "--json", ""), ("evaluate", "--report", "")])
def test_a_path_of_no_letters_is_not_this_very_folder(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[1]}: expected a path, not ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "flags", "said"),
    [
        ("test", ["--limit", "1000"], "toy test"),
        ("test", ["--limit", "40"], "toy test"),
        ("test", ["--limit", "7"], "toy test[:7]"),
        ("val", ["--limit", "7"], "toy val[:7]"),
    ],
)
def test_a_split_is_called_a_part_only_where_something_is_left_out(
    toy_weights, monkeypatch, tmp_path, split, flags, said
):
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **__: replace(toy_test_set(), split=split))
    result = tmp_path / "result.json"
    assert evaluate(monkeypatch, "--weights", toy_weights, "--json", result, *flags) == 0
    scores = json.loads(result.read_text())
    assert (scores["split"], scores["images"]) == (said, 7 if said.endswith("]") else 40)


@pytest.mark.parametrize("split", [None, "test", "train", "all"])
def test_of_a_folder_that_share_is_scored_that_is_asked_for_and_the_log_says_which(
    toy_weights, monkeypatch, tmp_path, capsys, split
):
    monkeypatch.setattr("model.datasets.load_dataset", load_dataset)
    root = tmp_path / "pictures"
    for number in range(40):
        folder = root / TOY_CLASSES[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode(noise(seed=number)))
    test = len(load_folder(root, split="test"))
    wanted = {"train": 40 - test, "all": 40}.get(split, test)
    assert test < 10
    flags = ["--split", split] if split else []
    assert evaluate(monkeypatch, "--weights", toy_weights, "--data", f"folder:{root}", *flags) == 0
    printed = capsys.readouterr()
    assert f"on pictures {split or 'test'}\nimages {wanted}\n" in printed.out
    note = "the test share of a folder without train and test;"
    hint = f"INFO    model.image_folder.dataset: {root}: {test} of 40 pictures: {note}"
    assert (hint in printed.err) == (wanted == test)


@pytest.mark.parametrize("flags", [[], ["--download"]])
def test_the_dataset_is_downloaded_only_where_that_is_asked_for(toy_weights, monkeypatch, flags):
    asked = []

    def load(*where, download=False, **options):
        asked.append(download)
        return toy_test_set(*where, **options)

    monkeypatch.setattr("model.datasets.load_dataset", load)
    assert evaluate(monkeypatch, "--weights", toy_weights, *flags) == 0
    assert asked == [bool(flags)]
