"""The tables of docs/reliability.md, each from the newest file of its name: python -m benchmarks.reliability_page."""

from __future__ import annotations

from typing import Any

from benchmarks.pages import with_part
from benchmarks.records import FOLDER, by_machine, cores_of, newest
from benchmarks.soak_figure import LABELS

PAGE = FOLDER.parent / "docs" / "reliability.md"


def _machine(one: dict[str, Any], path: str) -> str:
    return f"`{path}`, {one['machine']['date']}, {cores_of(one['machine'])}"


def overload() -> str:
    """Return the table of the overload test: what was asked and what was reached.

    Older files lack some of it: the windows, the connections and the control's probes.
    """
    one, path = newest("reliability/overload.json")
    before, statuses = one["before"], one["statuses"]
    own, own_path = newest("reliability/overload_ids.json")
    return f"""| | target | measured |
|---|---|---|
| sustainable rate (64 clients) | | {before["requests_per_s"]} requests/s{_windows(one, "before")} |
| offered, for {one["seconds"]:.0f} s | ten times that | {one["offered_per_s"]} requests/s ({one["sent_late"]} of {one["sent"]:,} sent more than 10 ms late{_connections(one)}) |
| answers | 200 and 429 only | {", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))} |
| without an answer | none | {one["unanswered"]} |
| slowest accepted request | within its deadline, 10 s | {one["accepted_slowest_s"]:.2f} s (p50 {one["accepted_p50_s"]:.2f} s, p99 {one["accepted_p99_s"]:.2f} s) |
| goodput | 90% of the sustainable rate | {one["goodput_per_s"]} requests/s, {one["goodput_share"]:.0%}{_per_core(one)} |
| probes ({one["probes"]}) | within 50 ms | p50 {one["probe_p50_ms"]} ms, p99 {one["probe_p99_ms"]} ms, slowest {one["probe_slowest_ms"]} ms{_late(one)} |{_control(one)}
| the rate of 64 clients from 2 s after the end on | the sustainable one | {one["after_2_s_per_s"]} requests/s, {one["after_2_s_share"]:.0%}{_windows(one, "after")} |
| the last accepted request was answered | | {one["queue_empty_after_s"]:.2f} s after the end |

({_machine(one, path)}; `make chaos`)

All of these requests have the same header. Where each has an id of its own, as proxies give it: goodput {own["goodput_per_s"]} of {own["before"]["requests_per_s"]} requests/s, {own["goodput_share"]:.0%}, slowest probe {own["probe_slowest_ms"]} ms. ({_machine(own, own_path)})

Offered on each machine, and of the answers refusals: {_offered()}."""


def _windows(one: dict[str, Any], when: str) -> str:
    """Say what the rate before or after is the median of, and the windows' rates in turn; "" of an older file."""
    rates = one.get(when, {}).get("windows_per_s")
    return f", median of {len(rates)} times {one['window_s']:g} s: {', '.join(map(str, rates))}" if rates else ""


def _connections(one: dict[str, Any]) -> str:
    """Say when the sender opened its connections; "" of an older file."""
    if "connections_before" not in one:
        return ""
    return f"; {one['connections_before']:,} connections opened before, {one['connections_opened']:,} meanwhile"


def _per_core(one: dict[str, Any]) -> str:
    """Say the ratio of the answers a core that was left to the service; "" of an older file."""
    share = one.get("goodput_share_per_core")
    return "" if share is None else f"; {share:.0%} by core that sender and prober left to the service"


def _late(one: dict[str, Any]) -> str:
    """Say how many probes were sent late; "" of an older file, whose times are from when a probe was due."""
    late = one.get("probe_sent_late")
    return "" if late is None else f" ({late} sent more than 10 ms late, which is not counted)"


def _control(one: dict[str, Any]) -> str:
    """Return a row of the probes of a server that does nothing; "" of an older file."""
    if "control_probes" not in one:
        return ""
    p50, p99, slowest = (one[f"control_probe_{what}_ms"] for what in ("p50", "p99", "slowest"))
    asked = f"the same of a server that does nothing ({one['control_probes']})"
    return f"\n| {asked} | | p50 {p50} ms, p99 {p99} ms, slowest {slowest} ms |"


def _offered() -> str:
    """Say how many requests a second each machine was sent, and what share of their answers were refusals."""
    return "; ".join(
        f"{name} {one['offered_per_s']:,.0f} requests/s, {one['statuses']['429'] / sum(one['statuses'].values()):.0%}"
        + (f" (sending takes {one['sender_cores']} of the cores)" if "sender_cores" in one else "")
        for name, one in by_machine("reliability/overload.json").items()
    )


def slow_clients() -> str:
    """Return the table of the slow clients."""
    one, path = newest("reliability/slow_clients.json")
    rows = [
        f"| {kind} slow clients | {one['requests'][kind]:,} | {one['p50_ms'][kind]} ms | {one['p99_ms'][kind]} ms |"
        for kind in ("without", "with")
    ]
    return f"""| | good requests | p50 | p99 |
|---|---|---|---|
{chr(10).join(rows)}

p99 is {one["p99_ratio"]} times as high with them (target: at most twice).
({_machine(one, path)}; `make chaos`)"""


def soak() -> str:
    """Return the tables of the soak: what was answered, and what each process held."""
    one, path = newest("reliability/soak.json")
    good = one["answers"]["good 200"]
    bad = sum(count for kind, count in one["answers"].items() if kind.startswith("bad"))
    rows = [
        f"| {LABELS[name]}, process {number} | {life['at_rest'][0][name]:g} | {life['at_rest'][-1][name]:g} | "
        f"{life['growth'][name]:+.1%} |"
        for number, life in enumerate(one["processes"], 1)
        for name in LABELS
    ]
    return f"""{good:,} good requests, all answered with 200; {one["verified_images"]:,} pictures' probabilities within
{one["largest_difference_from_offline"]} of the offline ones. {bad:,} bad requests, {one["answers"]["slow"]:,} slow and {one["answers"]["leaving"]:,} leaving clients,
{one["reloads"]} reloads, one restart. Found wrong: {"; ".join(one["first_problems"]) or "nothing"}.

| at rest | after the first cycle | after the last | |
|---|---|---|---|
{chr(10).join(rows)}

({_machine(one, path)}; `make soak`)

![resident memory, open files, threads and tasks over the half hour](../{path.replace(".json", ".png")})"""


def fuzz() -> str:
    """Return the tables of the fuzzing and of the bombs."""
    (one, path), (bombs, bombs_path) = newest("reliability/fuzz.json"), newest("reliability/bombs.json")
    titles = {
        "pictures": "damaged pictures",
        "bodies": "damaged multipart and JSON bodies",
        "schemathesis": "schemathesis, all checks",
        "schemathesis_with_key": "schemathesis, with a key",
    }
    rows = [
        f"| {title} | {one[name]['cases']:,} | "
        f"{', '.join(f'{count:,} x {status}' for status, count in sorted(one[name]['statuses'].items()))} | "
        f"{one[name].get('faults', one[name].get('unique_failures'))} | {one[name]['slowest_s']:.2f} s |"
        for name, title in titles.items()
    ]
    return f"""| | cases | answers | faults | slowest |
|---|---|---|---|---|
{chr(10).join(rows)}

A fault is a 5xx other than a deadline that the request itself set, an answer that is none of the documented ones, or
one that tells of the inside. Resident memory from the second to the last quarter of the damaged pictures:
{one["pictures"]["resident_mb_second_quarter"]} to {one["pictures"]["resident_mb_last_quarter"]} MB; of the bodies: {one["bodies"]["resident_mb_second_quarter"]} to {one["bodies"]["resident_mb_last_quarter"]} MB.
({_machine(one, path)}; `make chaos`)

{bombs["bombs"]} bombs, each refused with the right 4xx: the slowest took {bombs["slowest_s"]} s, the largest {bombs["most_extra_mb"]} MB of memory.
(`{bombs_path}`; `make chaos`)"""


TABLES = {"overload": overload, "slow clients": slow_clients, "fuzz": fuzz, "soak": soak}


def filled(page: str) -> str:
    """Return the page with each table in its place, between `<!-- name -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        try:
            measured = table()
        except FileNotFoundError:
            measured = "Not measured yet."
        page = with_part(page, name, measured)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
