"""The README, and the page of training, say what is so: settings are the settings, files and targets exist."""

import re
import tomllib

from app.errors import ServiceError
from app.settings import Settings
from app.signals import SAME_SIGNAL_S
from model.architecture import Architecture
from model.cost import count_macs
from model.training.recipe import Recipe
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "docs" / "training.md").read_text()


def default_of(field):
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default))
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return str(field.default).removeprefix(f"{ROOT}/")


def settings_table():
    rows = ["| environment variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `RESNET_{name.upper()}` | `{default_of(field)}` | {field.description} |")
    return "\n".join(rows)


def test_the_settings_table_is_complete_and_right():
    assert settings_table() in README


def test_every_error_code_is_in_the_table():
    for kind in ServiceError.__subclasses__():
        if kind.status != 499:  # its client is gone
            rows = [row for row in README.splitlines() if f"`{kind.code}`" in row and row.startswith("| ")]
            assert [row.startswith(f"| {kind.status} |") for row in rows] == [True], kind.code


def test_files_and_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = README + TRAINING
    for target in re.findall(r"^make ([a-z-]+)", text, re.M) + re.findall(r"`make ([a-z-]+)`", text):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`((?:benchmarks|app|model|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_every_target_that_measures_is_named():
    makefile = (ROOT / "Makefile").read_text()
    measuring = re.findall(r"^((?:bench|experiment)[a-z-]*|evaluate|targets|soak|chaos):", makefile, re.M)
    assert len(measuring) > 10
    text = " ".join((README + TRAINING).split())  # a name may stand across the end of a line
    assert [target for target in measuring if f"`make {target}`" not in text] == []


def test_what_counts_as_one_signal_is_said():
    stop = README.partition("**Stop.**")[2].partition("\n\n")[0]
    assert re.findall(r"within ([\d.]+) s", stop) == [f"{SAME_SIGNAL_S}"]


def test_the_changelog_begins_with_the_release_that_this_is():
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(.*)\] - (Unreleased|\d{4}-\d\d-\d\d)$", changelog, re.M)[1] == release
    for setting in re.findall(r"RESNET_(\w+)", changelog):
        assert setting.lower() in Settings.model_fields


def test_the_version_of_swagger_ui_is_the_one_that_is_here():
    static = ROOT / "app" / "static"
    version = re.search(r"Version ([\d.]+),", (static / "NOTICE").read_text())[1]
    assert f'PACKAGE_VERSION:"{version}"' in (static / "swagger-ui-bundle.js").read_text()


def test_the_costs_of_the_ways_to_start_are_right():
    """Fresh weights have the first layers that the size asks for, others those of the shipped ones."""
    shipped = Architecture("resnet18", 3, "cifar").build()
    whole = count_macs(shipped, 32)
    fresh = Recipe().architecture(3, 96).build()
    costs = [count_macs(network, size) / whole for network, size in ((shipped, 32), (shipped, 64), (fresh, 96))]
    table = README.partition("| pictures | a class has | start with | cost |")[2].partition("\n\n")[0]
    assert [row.split("|")[-2].strip() for row in table.splitlines()[2:]] == [f"{cost:.1g}" for cost in costs]
    assert round(count_macs(shipped, 96) / whole) == 9
