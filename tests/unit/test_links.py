"""Every link from a page to another one, to a heading or to a file of this repository leads somewhere."""

import re

import pytest

from tests.conftest import ROOT

OTHERS = ("README.md", "CHANGELOG.md", "weights/README.md")
PAGES = [*(ROOT / name for name in OTHERS), *sorted((ROOT / "docs").glob("*.md"))]


def prose(page):
    """Return a page without its blocks of code, where a comment looks like a heading."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """Return what GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"\w+:", link)]
    assert [link for link in links if not leads_somewhere(page, link)] == []


def test_a_link_to_no_heading_or_no_file_is_found():
    page = ROOT / "README.md"
    assert leads_somewhere(page, "#usage")
    assert leads_somewhere(page, "docs/operations.md#nvidias-driver")
    assert not leads_somewhere(page, "#usages")
    assert not leads_somewhere(page, "docs/operation.md")
