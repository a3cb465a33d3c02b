"""The record of the rounds as a table and a chart: benchmarks/peers_*.json -> docs/peers.md and docs/peers-*.png."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.peers.contenders import CONTENDERS, OURS, is_ours, settings_note
from benchmarks.records import FOLDER, RECORDS, cores_of

DOCS = FOLDER.parent / "docs"
TITLES = {
    "null": "The service's own cost: an engine that answers at once",
    "eager": "The shipped checkpoint, each with its own engine: the peers with eager PyTorch",
    "checkpoint": "The shipped checkpoint, our engine in all of them",
}
COLOURS = ("#D55E00", "#0072B2")  # ours, theirs; Okabe and Ito
DPI = 150

Record = dict[str, Any]


def write(record: Record) -> None:
    """Write the record with the medians of what there is so far."""
    text = json.dumps({**record, "medians": medians(record)}, indent=1)
    path = _path(record["engine"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def _path(engine: str) -> Path:
    return RECORDS / f"peers_{engine}.json"


def names(record: Record) -> list[str]:
    """Return the contenders that completed at least one round, in the record's order."""
    return [name for name in record["contenders"] if any(_whole(turns.get(name)) for turns in record["rounds"])]


def _whole(turn: dict[str, Any] | None) -> bool:
    return turn is not None and "open_loop" in turn


def median(record: Record, name: str, load: str, figure: str) -> float:
    """Return the median over the rounds of a figure of one load: `clients_<n>` or `open_loop`."""
    return float(statistics.median(turns[name][load][figure] for turns in record["rounds"] if _whole(turns.get(name))))


def ratio(record: Record, name: str, load: str, figure: str) -> float:
    """Return ours divided by theirs: the median of the rounds' own ratios, since a machine drifts between rounds."""
    both = [turns for turns in record["rounds"] if _whole(turns.get(OURS)) and _whole(turns.get(name))]
    return float(statistics.median(turns[OURS][load][figure] / turns[name][load][figure] for turns in both))


def medians(record: Record) -> dict[str, Any]:
    """Return, for each contender and load, the medians of all figures, and the ratios of rate and processor time."""
    result: dict[str, Any] = {}
    for name in names(record):
        first = next(turns[name] for turns in record["rounds"] if _whole(turns.get(name)))
        loads = [key for key, value in first.items() if isinstance(value, dict)]
        result[name] = {load: {key: median(record, name, load, key) for key in first[load]} for load in loads}
        if name != OURS and OURS in names(record):
            for load in loads:
                for figure in ("requests_per_s", "cpu_ms_per_request"):
                    result[name][load][f"ours_to_theirs_{figure}"] = round(ratio(record, name, load, figure), 4)
    return result


def errors(record: Record, name: str) -> int:
    """Return the requests without a good answer, over all loads and rounds."""
    turns = [turns[name] for turns in record["rounds"] if name in turns]
    return sum(load["errors"] for turn in turns for load in turn.values() if isinstance(load, dict))


def table(record: Record) -> str:
    """Return the record as a Markdown table, medians of the rounds."""
    clients = record["clients"]
    ends = (f"clients_{clients[0]}", f"clients_{clients[-1]}")
    few_and_many = f"{clients[0]} / {clients[-1]}"
    header = ["", *(f"requests/s, {count}" for count in clients)]
    header += [f"p50 ms, {few_and_many}", f"p99 ms, {few_and_many}", "open loop: p50 / p99 ms"]
    header += [f"CPU ms a request, {few_and_many}", "errors", "memory MB", f"ours ÷ theirs: requests/s, {few_and_many}"]
    header += [f"CPU, {clients[-1]}"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name in names(record):

        def pair(figure: str, form: str, loads: tuple[str, ...] = ends, name: str = name) -> str:
            return " / ".join(format(median(record, name, load, figure), form) for load in loads)

        about = record["contenders"][name]
        version = next(iter(about["versions"].values()), "")
        row = [f"**{about['title']}**" if name == OURS else f"{about['title']} {version}"]
        row += [format(median(record, name, f"clients_{count}", "requests_per_s"), ",.0f") for count in clients]
        row += [pair("p50_ms", ".1f"), pair("p99_ms", ".1f")]
        row += [
            f"{median(record, name, 'open_loop', 'p50_ms'):.1f} / {median(record, name, 'open_loop', 'p99_ms'):.1f}"
        ]
        row += [pair("cpu_ms_per_request", ".2f"), str(errors(record, name))]
        row += [format(max(median(record, name, load, "peak_memory_mb") for load in ends), ",.0f")]
        if name == OURS or OURS not in names(record):
            row += ["", ""]
        else:
            row += [" / ".join(f"{ratio(record, name, load, 'requests_per_s'):.2f}" for load in ends)]
            row += [f"{ratio(record, name, ends[1], 'cpu_ms_per_request'):.2f}"]
        lines.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def draw(record: Record, path: Path) -> None:
    """Draw requests per second and processor time a request, at the most clients, as bars in a PNG."""
    shown = names(record)
    load = f"clients_{record['clients'][-1]}"
    figure = Figure(figsize=(10, 0.45 * len(shown) + 1.4), layout="constrained")
    panels = (
        ("requests_per_s", f"requests/s at {record['clients'][-1]} clients (more is better)", ",.0f"),
        ("cpu_ms_per_request", "processor time a request, ms (less is better)", ".2f"),
    )
    for axes, (what, title, form) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        values = [median(record, name, load, what) for name in shown]
        colours = [COLOURS[0] if is_ours(name) else COLOURS[1] for name in shown]
        bars = axes.barh([record["contenders"][name]["title"] for name in shown], values, color=colours)
        axes.bar_label(bars, [format(value, form) for value in values], padding=3, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    machine = record["machine"]
    figure.suptitle(f"{TITLES[record['engine']]}\n{machine['date']}, {cores_of(machine)}", fontsize=11)
    figure.savefig(path, dpi=DPI)


def section(record: Record) -> str:
    """Return what docs/peers.md says of one engine."""
    machine = record["machine"]
    left_out = [
        f"{about['title']} is left out: {about['left_out']}."
        for about in record["contenders"].values()
        if "left_out" in about
    ]
    failed = [
        f"{record['contenders'][name]['title']} failed in round {number + 1}: {turn['error'].splitlines()[0]}"
        for number, turns in enumerate(record["rounds"])
        for name, turn in turns.items()
        if "error" in turn
    ]
    parts = [
        f"## {TITLES[record['engine']]}",
        f"{machine['date']}, {cores_of(machine)}, torch {machine['torch']}. Medians of "
        f"{len(record['rounds'])} rounds of {record['seconds']} s. Closed loops by {record['closed_loop']}; the open "
        f"loop sends each {record['open_loop_share']:.0%} of what it answered to the most clients in the same round"
        f"{_warm_up(record)}.",
        table(record),
        *([note] if (note := settings_note(record).strip()) else []),
        f"![bar chart](peers-{record['engine']}.png)",
        f"Raw rounds: [benchmarks/peers_{record['engine']}.json](../benchmarks/peers_{record['engine']}.json).",
        *left_out,
        *failed,
    ]
    return "\n\n".join(parts)


def _warm_up(record: Record) -> str:
    if record.get("open_loop_warmed_up"):
        return ""
    return ", straight after that load, to which BentoML had adapted"


PREAMBLE = """# Beside its peers

Made by `make bench-peers`; do not edit. Every contender does the same work: one PNG picture of 32 x 32 in the body
(`examples/`, in turn), decoded by the same function, the same network in the same precision (but for the row that
says int8), the same JSON with all ten classes. The peers' batches are of at most 32 pictures; this service has found
out at its start which are worthwhile, as it does by default: more or fewer. One contender is alive at a time, started
anew in every round, and the rounds are interleaved; the load generator runs on the same machine. Before it is
measured, each has to give the right classes and the checkpoint's own self-test probabilities (with the engine that
answers at once: that engine's answer), and to refuse a file that is no picture. "CPU" is user and system time of all
processes of the server, the steadiest figure on a machine that is shared; "memory" is the largest sum of their
proportional set sizes seen (once a second). In the open loop, requests arrive at random (Poisson) and wait for
nobody; times count from when a request was due. The machine's pace changes from round to round, so "ours ÷ theirs" is
taken in each round, and the median of these is shown: not the ratio of the medians beside it.
"""


SETTINGS = """## Settings

Those of today; where a record was measured with others, it says so below its table. They follow each one's guide to
performance, but for two things. All rows but the one so named have a single process that speaks HTTP, some in several
threads, and a single worker: the network takes all cores, but the engine that answers at once leaves them to HTTP,
where more processes may answer more. And BentoML's max_latency_ms is set so high that it refuses nothing.
"""


def load(folder: Path) -> list[Record]:
    """Return the records that there are in a folder, in the page's order."""
    paths = [folder / _path(engine).name for engine in TITLES]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


def publish() -> None:
    """Print the tables of the records that there are; if they lie where they belong, write docs/peers.md and charts."""
    records = load(RECORDS)
    for record in records:
        print(table(record))
    if RECORDS != FOLDER:
        return
    for record in records:
        draw(record, DOCS / f"peers-{record['engine']}.png")
    (DOCS / "peers.md").write_text(page(records))


def page(records: list[Record]) -> str:
    """Return docs/peers.md: the records, and today's settings; versions are those of the newest record."""
    known = max(records, key=lambda record: str(record["machine"]["date"]))["contenders"]
    settings = [
        f"- **{contender.title}**{_versions(known.get(contender.name, {}))}: {contender.settings}."
        for contender in CONTENDERS
    ]
    return "\n\n".join([PREAMBLE.strip(), *map(section, records), SETTINGS.strip(), "\n".join(settings)]) + "\n"


def _versions(about: dict[str, Any]) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    return f" ({listed})" if listed else ""
