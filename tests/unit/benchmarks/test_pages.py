import pytest

from benchmarks.pages import with_part

PAGE = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\nc\n"


def test_a_part_is_put_between_its_marks_and_nothing_else_changes():
    assert with_part(PAGE, "one", "new") == PAGE.replace("old", "new")
    assert with_part(with_part(PAGE, "two", "new"), "two", "kept") == PAGE


@pytest.mark.parametrize("page", ["a\n", PAGE + PAGE, "<!-- one -->\nold\n"], ids=["none", "two", "no end"])
def test_a_page_without_the_marks_is_not_made_longer(page):
    with pytest.raises(ValueError, match="one"):
        with_part(page, "one", "new")
