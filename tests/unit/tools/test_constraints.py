"""constraints.txt pins all that an installation brings: an image is the same tomorrow, and `make audit` sees it."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PINNED = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def brought_by(lines):
    """Return the names of all that these requirements bring here, by what is installed."""
    names, waiting = set(), [(line, "") for line in lines]
    seen = set(waiting)
    while waiting:
        line, extra = waiting.pop()
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        names.add(canonicalize_name(wanted.name))
        try:
            further = requires(wanted.name) or []
        except PackageNotFoundError:  # an extra that is not installed here
            further = []
        more = {(one, extra) for one in further for extra in ("", *wanted.extras)} - seen
        seen |= more
        waiting += more
    return names


def test_all_that_an_installation_brings_is_pinned():
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    brought = brought_by([*project["dependencies"], *extras]) - {project["name"], "pip"}
    assert {"torch", "sympy", "fastapi", "pytest"} <= brought  # it has followed them
    assert brought - PINNED == set()


def test_the_image_is_installed_by_a_pip_of_one_version():
    """The one that comes with the base image is another one as soon as that is."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG PIP_VERSION=\d+\.\d+(\.\d+)?$", dockerfile, re.M)
    first = re.search(r"/opt/venv/bin/pip install (.*)", dockerfile)[1]
    assert '"pip==${PIP_VERSION}"' in first


def test_what_builds_the_project_is_pinned_and_taken_by_the_image():
    assert brought_by(PROJECT["build-system"]["requires"]) - PINNED == set()
    (build,) = re.findall(r"^RUN (.*?pip install .*?--target)", (ROOT / "Dockerfile").read_text(), re.M | re.S)
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
        assert f"{name}=/build/constraints.txt" in build
