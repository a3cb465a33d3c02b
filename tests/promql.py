"""Queries in PromQL beside what the service exposes: each metric and each label that they ask for has to be there."""

import re

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from app.telemetry import Telemetry

# What Prometheus adds to each series of a target.
TARGET = {"job", "instance"}

GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right) ?\(([^()]*)\)")
NAME = re.compile(r"(?<![\w.$])([a-zA-Z_:][\w:]*) *(?:(\()|\{(.*?)\})?")
WORDS = {"and", "or", "unless", "offset", "bool", "group_left", "group_right"}


def metrics():
    """Name with labels, kind and documentation of each metric of the service's own."""
    ours = [metric for metric in vars(Telemetry()).values() if hasattr(metric, "_labelnames")]
    for metric in ours:
        name = metric._name + ("_total" if isinstance(metric, Counter) else "")
        yield name, ",".join(metric._labelnames), metric._type, metric._documentation


def series():
    """Name of each series that Prometheus has of a target, and its labels."""
    yield "up", TARGET
    for family in ProcessCollector(registry=CollectorRegistry()).collect():
        yield from ((sample.name, TARGET) for sample in family.samples)
    for name, labels, kind, _ in metrics():
        own = TARGET | set(filter(None, labels.split(",")))
        if kind == "histogram":
            yield from ((f"{name}_bucket", own | {"le"}), (f"{name}_sum", own), (f"{name}_count", own))
        else:
            yield name, own


def selected(query):
    """Yield each metric that a query reads, and the labels by which it is selected there."""
    for name, call, matchers in NAME.findall(re.sub(r"\[.*?\]", "", GROUPING.sub(" ", query))):
        if not call and name not in WORDS:
            yield name, set(re.findall(r"(\w+) *(?:=|!)", re.sub(r'"[^"]*"', "", matchers)))


def grouped(query):
    """Return the labels by which a query groups or matches what it reads."""
    return set(re.findall(r"\w+", " ".join(GROUPING.findall(query))))


def unknown(query, recorded=()):
    """Return the metrics and labels of a query that nothing exposes; `recorded` are names of recording rules."""
    known = {**dict(series()), **dict.fromkeys(recorded, TARGET)}
    read = list(selected(query))
    problems = [name for name, _ in read if name not in known]
    problems += [f"{name}{{{label}}}" for name, labels in read for label in labels - known.get(name, labels)]
    return problems + sorted(grouped(query) - set().union(*(known.get(name, set()) for name, _ in read)))
