"""The map of the house in docs/architecture.md has every room, and no room that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MAP = PAGE.split("```")[1]
# What stands in one line of the map or in one folder: commands are found by their names.
IN_A_LINE = {"__init__.py", "commands"}


def drawn(house: str) -> set[str]:
    """Return the modules that the map has below a folder."""
    part = re.search(rf"^{house}/.*?(?=^\w+/|\Z)", MAP, re.MULTILINE | re.DOTALL)
    assert part is not None
    return set(re.findall(r"\b(\w+\.py)\b", part.group()))


@pytest.mark.parametrize("house", ["app", "model"])
def test_every_module_is_on_the_map(house):
    there = {
        path.name
        for path in (ROOT / house).rglob("*.py")
        if not IN_A_LINE & {path.name, path.parent.name} and path.parent.name != "routes"
    }
    routes = {path.name for path in (ROOT / house / "routes").glob("*.py")}
    assert there - drawn(house) == set()
    assert drawn(house) - there - routes == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:app|model|tests|benchmarks|tools|examples)/[\w/.-]+\.\w+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
