"""The README's figures are those of the files that it names."""

from benchmarks import readme_figures


def test_the_readme_has_the_figures_of_the_evidence():
    text = readme_figures.OPERATIONS.read_text()
    assert f"<!-- open loop -->\n{readme_figures.open_loop()}\n<!-- end -->" in text
    text = readme_figures.PAGE.read_text()
    for name, part in readme_figures.PARTS.items():
        assert f"<!-- figures: {name} -->\n{part()}\n<!-- end -->" in text
