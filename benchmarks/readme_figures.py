"""The figures of README.md, from the files under benchmarks/: python -m benchmarks.readme_figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.pages import with_part
from benchmarks.peers.contenders import CONTENDERS, is_ours, settings_note
from benchmarks.records import FOLDER, by_machine, cores_of, newest, of_version, path_of, read

PAGE = FOLDER.parent / "README.md"
OPERATIONS = FOLDER.parent / "docs" / "operations.md"
ENGINES = {
    "engine": "**the service's engine** (`auto`)",
    "eager float32": "PyTorch, eager float32",
    "eager float32 channels-last": "PyTorch, eager float32, channels last",
    "eager bfloat16 channels-last": "PyTorch, eager bfloat16, channels last",
    "folded float32": "PyTorch, batch norm folded",
}
UNSTEADY_TIMES = 3  # a load whose highest p50 of a round is this many times the lowest has no meaningful median
CUDA = "engine_cuda.json"
PEERS = {"ours": "**this service**", "fastapi": "plain FastAPI, no batching"}


def machine_of(one: dict[str, Any]) -> str:
    """Return in words the machine that a file was made on, and the day."""
    machine = one["machine"]
    return f"{cores_of(machine)}, torch {machine['torch']}, {machine['date']}"


def _where(one: dict[str, Any]) -> tuple[str, str]:
    """Return the processor and the day."""
    return one["machine"]["processor"], one["machine"]["date"]


def service() -> str:
    """Return the table of accuracy, start, load and memory."""
    offline = read("evaluate_checkpoint.json")
    served, served_file = of_version("evaluate_service.json", offline["version"])
    int8, int8_file = of_version("precisions_cpu.json", offline["version"])
    plain, quick = read("service_cpu.json"), read("service_cpu_int8.json")
    large, opened = read("large_requests.json"), read("open_loop.json")
    memory, memory_file = newest("memory.json")

    def accuracy(one: dict[str, Any]) -> str:
        return f"{one['top1']:.2%}, {one['ece']:.2%}"

    def load(one: dict[str, Any], clients: str) -> str:
        found = one["clients_median"][clients]
        return f"{found['requests_per_s']} requests/s, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms"

    bad, above_mb = plain["bad_input"], memory["above_the_interpreter_mb"]
    rows = [
        (
            "top-1, calibration error (15 bins) on the 10,000 test images, offline",
            accuracy(offline),
            "`benchmarks/evaluate_checkpoint.json`, `make evaluate`",
        ),
        (
            "the same, each image sent to the service as a PNG",
            accuracy(served),
            f"`{served_file}`, `make bench-load`",
        ),
        ("the same in int8, engine alone", accuracy(int8["test_set"]["int8"]), f"`{int8_file}`"),
        ("start of the process to ready", f"{plain['ready_s']} s", "`benchmarks/service_cpu.json`"),
        ("one client, one 32 x 32 PNG a request", load(plain, "1"), "〃"),
        ("64 clients, the same", load(plain, "64"), "〃"),
        (
            "64 clients, images/s as a share of the engine's own best rate in the same rounds",
            f"{plain['of_the_engine_64_clients_median']:.0%}",
            "〃",
        ),
        ("one client, `RESNET_PRECISION=int8`", load(quick, "1"), "`benchmarks/service_cpu_int8.json`"),
        ("64 clients, int8", load(quick, "64"), "〃"),
        (
            "64 clients, int8, images/s as a share of the engine's own best rate in int8",
            f"{quick['of_the_engine_64_clients_median']:.0%}",
            "〃",
        ),
        (
            "256 images in a request, images/s as a share of the engine's own rate: multipart, JSON, .npy",
            ", ".join(f"{large['of_the_engine_median'][form]:.0%}" for form in ("multipart", "json", "npy")),
            "`benchmarks/large_requests.json`",
        ),
        (
            "random arrivals at 80% of capacity: p99; relative to a lone request; the same for an ideal queue",
            f"{opened['median']['80%']['p99_ms']} ms; {opened['p99_at_80_percent_over_single_p50']} times; "
            f"{opened['queue_that_loses_no_time_p99_over_single_p50']} times",
            "`benchmarks/open_loop.json`",
        ),
        (
            "at 150% of capacity: goodput as a share of capacity; p99 of refusals",
            f"{opened['goodput_at_150_percent_over_saturated']:.0%}; {opened['median']['150%']['refusal_p99_ms']} ms",
            "〃",
        ),
        (
            "slowest refusal of bad input; growth of resident memory",
            f"{max(bad['seconds'].values()):.2f} s; {bad['resident_growth_mb']} MB",
            "`benchmarks/service_cpu.json`",
        ),
        (
            "resident memory after 100,000 requests; growth since the 10,000th",
            f"{memory['resident_mb']['service after 100000 requests']:.0f} MB; "
            f"{memory['last_over_first_step'] - 1:+.1%}",
            f"`{memory_file}`, `make bench-memory`",
        ),
        (
            "the same, compared with a bare interpreter that has loaded PyTorch and the weights",
            f"{abs(above_mb):.0f} MB {'more' if above_mb > 0 else 'less'}",
            "〃",
        ),
    ]
    table = "\n".join(f"| {what} | {figure} | {evidence} |" for what, figure, evidence in rows)
    filled = plain["clients_median"]["64"]["mean_batch_images"]
    elsewhere = [
        f"the {what} ({', '.join(_where(one))})"
        for what, one in {"accuracy": int8, "memory": memory}.items()
        if _where(one) != _where(plain)
    ]
    but = f", but for {' and '.join(elsewhere)}" if elsewhere else ""
    return f"""On {machine_of(plain)}{but}; {_gpu()}.

| what | figure | evidence |
|---|---|---|
{table}

The load generator of these closed loops, {plain["load"]}, shares the cores with the service. With 64 clients, a batch held {filled} images on average."""


def _gpu() -> str:
    try:
        measured = by_machine(CUDA)
    except FileNotFoundError:
        return "a GPU has not been measured yet"
    return "the engine on a GPU: " + ", ".join(
        f"{one['machine']['gpu']}, `{path_of(CUDA, kind)}`" for kind, one in measured.items()
    )


def table(titles: dict[str, str], columns: dict[str, dict[str, str]]) -> str:
    """Return a table with a row for each of `titles`, and of `columns` the cells by name of the row."""
    rows = [["", *columns], ["---", *("---:" for _ in columns)]]
    rows += [[title, *(cells.get(name, "") for cells in columns.values())] for name, title in titles.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def engine() -> str:
    """Return the table of the engine and its contenders, images/s by batch size, on each machine; and their ceilings."""
    records = by_machine("engine_cpu.json")
    longest_first = sorted(records.values(), key=lambda one: -len(one["contenders"]))
    titles = {name: ENGINES.get(name, name) for one in longest_first for name in one["contenders"]}
    columns = {kind: {name: _rates(one, name) for name in one["contenders"]} for kind, one in records.items()}
    notes = []
    for kind, one in records.items():
        ceiling = one["ceiling"]["images_per_s"]
        share = one["contenders"]["engine"]["32"]["images_per_s"] / max(ceiling.values())
        products = " and ".join(f"{rate:.0f} in {dtype}" for dtype, rate in sorted(ceiling.items(), reverse=True))
        left_out = "".join(f" Left out: {name}, {reason}." for name, reason in one["left_out"].items())
        notes.append(
            f"- {kind}: {machine_of(one)}. One large matrix product reaches the equivalent of {products} images/s; the "
            f"engine reaches {share:.0%} of the better one at batch 32.{left_out}"
        )
    return "\n".join([table(titles, columns), "", *notes])


def _rates(one: dict[str, Any], name: str) -> str:
    return " / ".join(f"{found['images_per_s']:.0f}" for found in one["contenders"][name].values())


def peers(engine: str) -> str:
    """Return requests/s of this service and its peers, with the `engine` that each of them had, on each machine."""
    records = by_machine(f"peers_{engine}.json")
    known = {name: one["contenders"][name]["title"] for one in records.values() for name in one["medians"]}
    in_order = [contender.name for contender in CONTENDERS if contender.name in known]
    titles = {name: PEERS.get(name, known[name]) for name in in_order}
    columns = {kind: {name: _requests(one, name) for name in one["medians"]} for kind, one in records.items()}
    notes = [
        f"- {kind}: {machine_of(one)}; medians of {len(one['rounds'])} rounds of {one['seconds']} s.{settings_note(one)}"
        for kind, one in records.items()
    ]
    return "\n".join([table(titles, columns), "", *notes])


def _requests(one: dict[str, Any], name: str) -> str:
    found = one["medians"][name]
    return " / ".join(f"{found[f'clients_{count}']['requests_per_s']:.0f}" for count in one["clients"])


def beside_peers() -> str:
    """Return in words this service beside the quickest of its peers at 64 clients, with their engines and with this one."""
    own, same = read("peers_eager.json"), read("peers_checkpoint.json")
    others = [name for name in own["medians"] if not is_ours(name)]

    def rate(one: dict[str, Any], name: str) -> float:
        return float(one["medians"][name]["clients_64"]["requests_per_s"])

    quickest = max(others, key=partial(rate, same))
    reached = 1 / same["medians"][quickest]["clients_64"]["ours_to_theirs_requests_per_s"]
    return f"""To 64 clients it answers {rate(own, "ours"):.0f} requests/s, where the quickest of {len(others)} other servers, with the same checkpoint in PyTorch,
answers {max(rate(own, name) for name in others):.0f}. With this service's engine in all of them, the quickest, {same["contenders"][quickest]["title"]}, reaches {reached:.2f} times this service's rate.
([docs/peers.md](docs/peers.md) has all of them and the memory that they take, [Figures](#figures) other processors; these are of {machine_of(own)};
`benchmarks/peers_eager.json`, `benchmarks/peers_checkpoint.json`, `make bench-peers`.)"""


def open_loop() -> str:
    """Return the table of latencies of requests that arrive at random."""
    one = read("open_loop.json")
    loads = [load for load in one["median"] if load.endswith("%")]
    unsteady = [load for load in loads if _is_unsteady([turn[load]["p50_ms"] for turn in one["rounds"]])]

    def times(load: str, figure: str) -> str:
        rounds = [turn[load][figure] for turn in one["rounds"]]
        return f"{min(rounds):.0f} to {max(rounds):.0f}" if load in unsteady else f"{one['median'][load][figure]:.0f}"

    rows = [
        f"| {load} of capacity | {one['median'][load]['offered_per_s']:.0f} | {times(load, 'p50_ms')} | {times(load, 'p99_ms')} | {one['median'][load]['refused_share']:.0%} |"
        for load in loads
    ]
    notes = [
        f"At {load} the rounds differ too much for a median, so lowest to highest: where the machine's pace fell, the queue was "
        "still growing when the round ended."
        for load in unsteady
    ]
    alone = one["median"]["single"]
    return "\n".join(
        [
            "| requests at random | a second | p50 ms | p99 ms | refused |",
            "| --- | ---: | ---: | ---: | ---: |",
            f"| one client, one after the other | {alone['requests_per_s']:.0f} | {alone['p50_ms']:.1f} | {alone['p99_ms']:.1f} | 0% |",
            *rows,
            "",
            *notes,
            f"({machine_of(one)}; `benchmarks/open_loop.json`, `make bench-load`)",
        ]
    )


def _is_unsteady(p50s_ms: list[float]) -> bool:
    return max(p50s_ms) > UNSTEADY_TIMES * min(p50s_ms)


PARTS: dict[str, Callable[[], str]] = {
    "beside peers": beside_peers,
    "service": service,
    "engine": engine,
    "peers null": partial(peers, "null"),
    "peers eager": partial(peers, "eager"),
    "peers checkpoint": partial(peers, "checkpoint"),
}


def write() -> None:
    """Fill the parts between the marks; a part without its file of evidence stays as it is."""
    text = PAGE.read_text()
    for name, make in PARTS.items():
        try:
            made = make()
        except FileNotFoundError:
            continue
        text = with_part(text, f"figures: {name}", made)
    PAGE.write_text(text)
    OPERATIONS.write_text(with_part(OPERATIONS.read_text(), "open loop", open_loop()))


if __name__ == "__main__":
    write()
