"""docs/reliability.md says what the files say."""

from benchmarks.reliability_page import PAGE, filled


def test_the_tables_of_the_page_are_those_of_the_files():
    assert filled(PAGE.read_text()) == PAGE.read_text()
    assert PAGE.read_text().count("<!-- end -->") == 4
