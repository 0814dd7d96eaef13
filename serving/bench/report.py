"""What was measured, three times: a table to read, a plot to look at, JSON to compare with."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from serving.bench.machine import Machine
from serving.bench.plot import plot
from serving.bench.rounds import Result, Skipped, against_peers, where

JSON, PLOT = "bench.json", "bench.svg"
BUSY = 0.5
"""A load average above this is somebody else's work."""


def document(machine: Machine, results: Sequence[Result], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """Everything, for JSON; ``against_peers`` has what is to be remembered of it."""
    return {
        "machine": asdict(machine),
        "against_peers": [asdict(result) for result in against_peers(results)],
        "results": [asdict(result) for result in results],
        "skipped": [
            {**asdict(each.entrant), **asdict(each.cell), "search": each.cell.search, "reason": each.reason}
            for each in skipped
        ],
    }


def write(folder: Path, machine: Machine, results: Sequence[Result], skipped: Sequence[Skipped]) -> None:
    """Write the JSON and the plot into ``folder``, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text(json.dumps(document(machine, results, skipped), indent=2) + "\n", encoding="utf-8")
    (folder / PLOT).write_text(plot(results, _title(machine)), encoding="utf-8")


def show(console: Console, results: Sequence[Result], skipped: Sequence[Skipped]) -> None:
    """Print a table for every model, search and number of threads, and what was left out."""
    tables: dict[str, Table] = {}
    rows: dict[str, int] = {}
    for result in results:
        title = f"{result.model}, {result.search}, {result.where}"
        if title not in tables:
            tables[title] = Table("rows", "engine", title=title, title_justify="left")
            for name in ("tokens/s", "latency, ms", "× peer", "of ceiling"):
                tables[title].add_column(name, justify="right")
        opens = rows.get(title) != result.rows
        if opens and title in rows:
            tables[title].add_section()
        rows[title] = result.rows
        ratio, share = result.times_peer, result.ceiling_share
        tables[title].add_row(
            str(result.rows) if opens else "",
            f"{result.engine} {result.precision}",
            f"{result.tokens_per_second:,.0f}",
            f"{result.latency_ms:,.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if share is None else f"{share:.0%}",
        )
    for table in tables.values():
        console.print(table)
    for result in against_peers(results):
        if result.times_peer is not None:
            cell = f"{result.model}, {result.search}, {result.rows} rows, {result.where}"
            ours, speed = f"{result.engine} {result.precision}", f"{result.tokens_per_second:,.0f} tokens/s"
            console.print(f"{cell}: {ours} {speed}, {result.times_peer:.2f} × {result.peer} (the peer)", markup=False)
    settings = dict.fromkeys((f"{each.engine} {each.precision}", each.setting) for each in results if each.setting)
    for name, setting in settings:
        console.print(f"{name}: {setting}", markup=False, soft_wrap=True)
    reasons = {each.reason: [other for other in skipped if other.reason == each.reason] for each in skipped}
    for reason, left_out in reasons.items():
        names = ", ".join(dict.fromkeys(f"{each.entrant.name} ({each.cell.search})" for each in left_out))
        cells = "1 cell" if len(left_out) == 1 else f"{len(left_out)} cells"
        console.print(f"left out, {cells}: {names}: {reason}", markup=False, soft_wrap=True)


def say(console: Console, machine: Machine) -> None:
    """Print what ``machine`` is and can do."""
    console.print(_title(machine), markup=False, soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    console.print(f"{versions}; load before: {machine.load_average:.2f}", markup=False, soft_wrap=True)
    if machine.load_average > BUSY:
        console.print("others use this machine: what follows is slower and less steady than it could be")
    for ceiling in machine.ceilings:
        with_threads = where("cpu", ceiling.threads)
        console.print(f"matrix products, {ceiling.precision}, {with_threads}: {ceiling.gmacs_per_second:.0f} GMAC/s")


def _title(machine: Machine) -> str:
    sets, memory = " ".join(machine.instruction_sets), machine.memory_bytes / 2**30
    gpu = f"{machine.gpu}; " if machine.gpu else ""
    return f"{gpu}{machine.cpu}, {machine.cores} cores, {memory:.0f} GiB, {sets}"
