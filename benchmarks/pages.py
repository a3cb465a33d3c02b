"""Tables of measured figures in a page, each between a mark of its own and `<!-- end -->`."""

from __future__ import annotations

END = "<!-- end -->"


def with_part(page: str, name: str, part: str) -> str:
    """Return the page with `part` between `<!-- name -->` and the next END. Raises ValueError if a mark is missing."""
    mark = f"<!-- {name} -->\n"
    if page.count(mark) != 1:
        raise ValueError(f"the page has {page.count(mark)} marks {mark.strip()!r}, not one")
    head, _, rest = page.partition(mark)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"nothing ends what begins at {mark.strip()!r}")
    return f"{head}{mark}{part}\n{end}{tail}"
