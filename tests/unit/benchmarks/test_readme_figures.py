"""The README's figures are those of the files that it names."""

from benchmarks import readme_figures


def test_the_readme_has_the_figures_of_the_evidence():
    text = readme_figures.PAGE.read_text()
    for part in (readme_figures.service, readme_figures.engine, readme_figures.peers):
        assert part() in text
