"""examples/grafana.json shows what the service exposes, in panels that Grafana can lay out."""

import json
import re
from itertools import product

import pytest

from app.routes.predict import PATH
from tests.conftest import ROOT
from tests.promql import TARGET, grouped, metrics, selected, series, unknown

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# By what a metric's name ends with, what its panel says the axis has, in Grafana's words.
UNITS = {"_bytes": "bytes", "_requests_total": "reqps", "_rejected_total": "reqps", "_seconds_bucket": "s"}


def without_twins(pairs):
    """An object's members; a name that is there twice would hide the first one."""
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


@pytest.fixture(scope="module")
def text():
    return (ROOT / "examples" / "grafana.json").read_text()


@pytest.fixture(scope="module")
def dashboard(text):
    return json.loads(text, object_pairs_hook=without_twins)


@pytest.fixture(scope="module")
def panels(dashboard):
    return dashboard["panels"]


@pytest.fixture(scope="module")
def queries(panels):
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_queries_ask_for_metrics_and_labels_that_there_are(queries):
    assert {query: unknown(query) for query in queries if unknown(query)} == {}
    assert set(re.findall(r'route="([^"]*)"', " ".join(queries))) == {PATH}


def test_each_metric_of_the_service_is_shown(queries):
    read = " ".join(queries)
    assert [name for name, *_ in metrics() if not re.search(rf"\b{name}(?:_bucket|_sum|_count)?\{{", read)] == []


def test_probes_do_not_thin_out_what_predictions_get(queries):
    """Each scrape and each probe is a request, too."""
    routed = {name for name, labels in series() if "route" in labels}
    read = [(name, labels) for query in queries for name, labels in selected(query) if name in routed]
    assert read
    assert all("route" in labels for _, labels in read)


def test_variables_choose_what_is_shown(dashboard, text, queries):
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["query"] == "prometheus"
    for name, chosen_by in (("job", set()), ("instance", {"job"})):
        query = variables[name]["query"]["query"]
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
        assert (unknown(metric), label) == ([], name)
        assert [labels for _, labels in selected(metric)] == [chosen_by]
    assert "allValue" not in variables["job"]  # other programs have metrics of processes, too
    assert all(labels >= TARGET for query in queries for _, labels in selected(query))
    assert set(re.findall(r"\$\{?(\w+)", text)) == {*variables, "__all", "__rate_interval"}


def test_quantiles_are_computed_of_buckets(queries):
    of = r"histogram_quantile\(0\.\d+, sum by \((.*?)\) \(rate\((\w+)_bucket\{"
    asked = re.findall(of, " ".join(queries))
    assert len(asked) == " ".join(queries).count("histogram_quantile(") > 0
    assert all("le" in labels.split(", ") for labels, _ in asked)


def test_what_only_grows_is_shown_as_a_rate_and_nothing_else_is(queries):
    read = [one for query in queries for one in re.findall(r"(\w+)?\(?\b(\w+)\{", query)]
    for function, name in read:
        grows = name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert (function in {"rate", "increase"}) == grows, name


def test_what_is_counted_in_bars_is_counted_once(panels):
    """Of bars closer together than the interval that each counts, several would show one event."""
    bars = [panel for panel in panels if panel["fieldConfig"]["defaults"].get("custom", {}).get("drawStyle") == "bars"]
    assert bars
    for panel in bars:
        assert panel["interval"] == "1m", panel["title"]  # $__rate_interval is four scrapes of 15 s


def test_legends_name_labels_that_are_left(panels):
    known = dict(series())
    for target in [target for panel in panels for target in panel["targets"]]:
        aggregated = re.search(r"\b(?:sum|count|min|max|avg)\b", target["expr"])
        of_series = set().union(*(known[name] for name, _ in selected(target["expr"])))
        left = grouped(target["expr"]) if aggregated else of_series
        assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= left, target


def test_panels_fill_the_grid_and_none_covers_another(panels):
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (y, x)
        for place in places
        for y, x in product(range(place["y"], place["y"] + place["h"]), range(place["x"], place["x"] + place["w"]))
    ]
    height = max(y for y, _ in cells) + 1
    assert sorted(cells) == list(product(range(height), range(24)))
    assert places == sorted(places, key=lambda place: (place["y"], place["x"]))


def test_panels_have_what_grafana_asks_for(dashboard, panels):
    assert dashboard["id"] is None  # Grafana gives one
    assert 8 <= len(dashboard["uid"]) <= 40
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == DATASOURCE
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])


def test_units_are_those_of_the_metrics(panels):
    checked = set()
    for panel in panels:
        queries = [target["expr"] for target in panel["targets"]]
        for name in {name for query in queries for name, _ in selected(query)}:
            ends = next((end for end in UNITS if name.endswith(end)), None)
            if ends:
                share = all(" / " in query for query in queries)
                assert panel["fieldConfig"]["defaults"]["unit"] == ("percentunit" if share else UNITS[ends]), name
                checked.add(ends)
    assert checked == set(UNITS)
