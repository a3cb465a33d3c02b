"""Where `resnet train` may leave its run, and which flags go together: found out before anything is read."""

import pytest
import torch

from app.cli import build_parser
from app.settings import SHIPPED_WEIGHTS
from model import checkpoint


class Reached(Exception):
    """The pictures would be read."""


def reached(*_, **__):
    raise Reached


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **__: pytest.fail("the pictures are read"))


def train(*flags):
    arguments = build_parser().parse_args(["train", "--device", "cpu", *map(str, flags)])
    return arguments.run(arguments)


@pytest.mark.parametrize("out", ["runs/resnet18", "cat", "."])
@pytest.mark.parametrize("link", [False, True])
def test_a_run_among_the_pictures_would_be_learnt_as_a_class(tmp_path, monkeypatch, capsys, out, link):
    pictures = tmp_path / "pictures"
    (pictures / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(pictures)
    monkeypatch.chdir(pictures)
    assert train("--data", f"folder:{tmp_path / 'link' if link else '.'}", "--out", out) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"resnet: error: --out {out} lies within {pictures}, where the files in it would be")
    assert [path.name for path in pictures.iterdir()] == ["cat"]


def test_the_home_of_nobody_has_no_run_in_it(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    assert train("--data", "folder:~nobody-at-all/pictures", "--out", tmp_path) == 1
    assert "whose home that is cannot be told" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert train("--out", tmp_path / "file" / "deep" / "run") == 1
    assert capsys.readouterr().err == f"resnet: error: [Errno 20] Not a directory: '{tmp_path}/file'\n"
    monkeypatch.setattr("os.access", lambda *_: False)  # for root, nothing is read-only
    assert train("--out", tmp_path / "deep" / "run", "--tensorboard") == 1
    assert capsys.readouterr().err == f"resnet: error: [Errno 13] Permission denied: '{tmp_path}'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_checkpoint_that_must_not_be_replaced_is_told_of_before_anything_is_read(tmp_path, capsys, pinned):
    (tmp_path / "checkpoint.safetensors").write_bytes(SHIPPED_WEIGHTS.read_bytes())
    if pinned:
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  checkpoint.safetensors\n")
    assert train("--out", tmp_path, "--tensorboard") == 1
    said = "is pinned by the SHA256SUMS beside it" if pinned else "holds a checkpoint without the state of its run"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("out", ["link", "link/run", "link/deep/run"])
def test_a_run_below_a_link_that_leads_nowhere_is_refused_before_anything_is_read(tmp_path, capsys, out):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted" / "disk")
    assert train("--out", tmp_path / out) == 1
    said = f"resnet: error: [Errno 2] A link that leads nowhere: '{tmp_path}/link'\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_run_may_lie_below_a_link_to_a_folder(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.setattr("model.datasets.load_dataset", reached)
    for out in ("link", "link/run", "link/deep/run"):
        with pytest.raises(Reached):
            train("--out", tmp_path / out)


def test_a_run_among_files_of_another_kind_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')
    assert train("--out", tmp_path, "--tensorboard") == 1
    assert capsys.readouterr().err.startswith(f"resnet: error: {tmp_path}/settings.json is of no run")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    assert (tmp_path / "settings.json").read_text() == '{"theme": "dark"}'


def test_where_no_state_was_saved_there_is_nothing_to_finish(tmp_path, capsys):
    assert train("--out", tmp_path / "run", "--finish") == 1
    said = f"resnet: error: {tmp_path}/run holds no saved state, of which --finish could make a checkpoint\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()


def fill(folder, count):
    """Make a folder of two classes with so many empty files, which are not told from pictures until they are read."""
    for number in range(count):
        path = folder / ("bee" if number % 2 else "ant") / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return f"folder:{folder}"


def test_weights_of_other_classes_are_not_kept_which_shows_before_pictures_are_read(tmp_path, capsys):
    data = fill(tmp_path / "pictures", 2)
    flags = ["--data", data, "--out", tmp_path / "run", "--init-from", SHIPPED_WEIGHTS, "--keep-initial", "0.3"]
    assert train(*flags) == 1
    said = capsys.readouterr().err
    assert f"a checkpoint of the same classes: this is {SHIPPED_WEIGHTS}, whose classes are 'airplane', 'auto" in said
    assert said.endswith(" and 5 more, and those to train on are 'ant', 'bee'\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("apart", "count"), [((), 81), (("test",), 90), (("test", "val"), 100)])
def test_pictures_that_a_gpu_has_no_room_for_are_refused_before_they_are_read(
    tmp_path, monkeypatch, capsys, apart, count
):
    """Of a hundred, ten are to be tested on and of the rest a tenth is held out, unless they lie apart."""
    gpu = torch.device("cuda")
    folder = tmp_path / "pictures"
    fill(folder / ("train" if apart else ""), 100)
    for note in range(100):
        (folder / ("train" if apart else "") / "ant" / f"{note}.xml").touch()
    for name in apart:
        fill(folder / name, 10)
    data = f"folder:{folder}"
    monkeypatch.setattr("model.hardware.device.pick_device", lambda _name: gpu)
    free = {gpu: (80 * 3 * 64**2, 80 << 30)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free[device])
    monkeypatch.setattr("model.datasets.load_dataset", reached)
    assert train("--data", data, "--out", tmp_path / "run", "--image-size", "64") == 1
    assert capsys.readouterr().err.startswith(f"resnet: error: {count} training pictures of 64x64 take ")
    with pytest.raises(Reached):
        train("--data", data, "--out", tmp_path / "run", "--image-size", "48")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep-initial", "0.3"], "--keep-initial needs --init-from"),
        (["--arch", "resnet18", "--groups", "32"], "groups and width_per_group are for bottleneck blocks"),
        (["--hold-out", "0"], "nothing is held out"),
        (["--cutout", "32"], "--cutout 32 would cover images of 32 x 32 pixels"),
        (["--cutout", "64", "--image-size", "48"], "--cutout 64 would cover images of 48 x 48 pixels"),
        (
            ["--init-from", SHIPPED_WEIGHTS, "--arch", "resnet34"],
            "to go on from it give --arch resnet18 (not resnet34)",
        ),
        (["--init-from", SHIPPED_WEIGHTS, "--groups", "2"], "to go on from it give --groups 1 (not 2)"),
        (["--init-from", SHIPPED_WEIGHTS, "--image-size", "96", "--stem", "auto"], "give --stem cifar (not imagenet)"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_read(tmp_path, capsys, flags, said):
    assert train("--data", "folder:pictures", "--out", tmp_path / "run", *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--image-size", "8", "--preset", "best"],
        ["--init-from", SHIPPED_WEIGHTS, "--keep-initial", "0.3", "--image-size", "96"],
        ["--hold-out", "0", "--temperature", "1"],
    ],
)
def test_flags_that_may_go_together_are_not(tmp_path, monkeypatch, flags):
    monkeypatch.setattr("model.datasets.load_dataset", reached)
    for name in checkpoint.load(SHIPPED_WEIGHTS).metadata.classes:
        (tmp_path / "pictures" / name).mkdir(parents=True)
    with pytest.raises(Reached):
        train("--data", f"folder:{tmp_path}/pictures", "--out", tmp_path / "run", *flags)
