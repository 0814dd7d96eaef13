"""What was measured, three times: a table to read, a plot to look at, JSON to compare with."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.compare.point import Point

JSON, PLOT = "compare.json", "compare.svg"
COLOURS = ("#c2410c", "#1d4ed8", "#4d7c0f")
WIDTH, HEIGHT = 420, 280
"""Of a panel, its margins included, in pixels."""
LEFT, RIGHT, TOP, BOTTOM, HEAD = 56, 14, 34, 40, 78
FASTEST, SLOWEST = 0.01, 10.0
"""Seconds at the lower and the upper edge of the plot: what is beyond stands there."""
LIMITS = {"1s": 1.0, "250ms": 0.25}
"""Of the p99, in seconds: the highest rate is sought that keeps to each."""


def point(measured: Point) -> dict[str, Any]:
    """A point for JSON: milliseconds, None for what never came."""
    latency = measured.latency
    return {
        "rate": round(measured.rate, 2) if math.isfinite(measured.rate) else None,
        "requests": latency.requests,
        **latency.milliseconds(),
        "shed_share": round(latency.shed / latency.requests, 4),
        "failures": latency.failed,
        "tokens_per_second": round(measured.tokens_per_second, 1),
        "padding_share": round(measured.padding_share, 4),
        "cores": round(measured.cores, 2),
        "memory_bytes": measured.memory_bytes,
    }


def show(console: Console, title: str, curves: Mapping[str, Sequence[Point]]) -> None:
    """Print what every service did at every rate, a table a service."""
    for name, curve in curves.items():
        table = Table(title=f"{title}: {name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        columns = ("rate", "p50 ms", "p90 ms", "p99 ms", "shed", "failed", "tokens/s", "padding", "cores", "MiB")
        for column in columns:
            table.add_column(column, justify="right")
        for measured in sorted(curve):
            latency = measured.latency
            table.add_row(
                f"{measured.rate:,.1f}",
                *(f"{1000 * value:,.0f}" for value in (latency.p50, latency.p90, latency.p99)),
                f"{latency.shed / latency.requests:.1%}",
                str(latency.failed),
                f"{measured.tokens_per_second:,.0f}",
                f"{measured.padding_share:.1%}",
                f"{measured.cores:.2f}",
                f"{measured.memory_bytes / 2**20:,.0f}",
            )
        console.print(table)


def overview(console: Console, found: Mapping[str, Any]) -> None:
    """Print what a scenario, as in the JSON, comes to: a line a service."""
    table = Table("service", title=f"{found['scenario']}: requests a second, and more", title_justify="left")
    for name in ("p99 < 1 s", "p99 < 250 ms", "tokens/s at most", "alone p50 ms", "p99 ms", "beside bulk", "MiB"):
        table.add_column(name, justify="right")
    for name, server in found["servers"].items():
        most, alone, mix = server["saturated"], server["alone"], server["beside_bulk"]
        table.add_row(
            name,
            *(_number(server[f"highest_rate_p99_{limit}"], "{:.1f}") for limit in ("1s", "250ms")),
            f"{most['tokens_per_second']:,.0f}",
            *(_number(alone[key]) for key in ("p50_ms", "p99_ms")),
            f"{_number(mix['without_p99_ms'])} → {_number(mix['p99_ms'])}",
            f"{most['memory_bytes'] / 2**20:,.0f}",
        )
    console.print(table)
    console.print(f"without a server: {found['offline_tokens_per_second']:,.0f} tokens/s")


def _number(value: float | None, form: str = "{:,.0f}") -> str:
    return "–" if value is None else form.format(value)


def write(folder: Path, document: Mapping[str, Any], panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> None:
    """Write the JSON and the plot into ``folder``."""
    (folder / JSON).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / PLOT).write_text(plot(panels, str(document["machine"]["cpu"])), encoding="utf-8")


def plot(panels: Mapping[str, Mapping[str, Sequence[Point]]], machine: str) -> str:
    """p99 (solid) and p50 (dashed, both on a logarithmic scale) over the rate of requests; SVG, a panel a scenario.

    A rate of 0 stands for requests that come one by one.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    across, down = max(1, len(panels)) * WIDTH, HEIGHT + HEAD
    drawn = "".join(_panel(title, curves, names, index * WIDTH) for index, (title, curves) in enumerate(panels.items()))
    legend = "".join(
        f'<path d="M12 {38 + 16 * index}h26" stroke="{COLOURS[index]}" stroke-width="2"/>'
        f'<text x="44" y="{42 + 16 * index}">{escape(name)}</text>'
        for index, name in enumerate(names)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}" height="{down}" viewBox="0 0 {across} {down}" '
        f'font-family="sans-serif" font-size="11" fill="#1f2937"><rect width="{across}" height="{down}" fill="white"/>'
        f'<text x="12" y="20" font-size="12">Latency at rising rates: p99, and p50 dashed. {escape(machine)}</text>'
        f"{legend}{drawn}</svg>\n"
    )


def _panel(title: str, curves: Mapping[str, Sequence[Point]], names: Sequence[str], x: int) -> str:
    # Of a rate that was measured twice the better counts.
    best = {
        name: sorted({each.rate: each for each in sorted(curve, key=lambda each: -each.latency.p99)}.values())
        for name, curve in curves.items()
    }
    most = max((each.rate for curve in best.values() for each in curve), default=0.0) or 1.0
    left, right, top, bottom = x + LEFT, x + WIDTH - RIGHT, HEAD + TOP, HEAD + HEIGHT - BOTTOM

    def across(rate: float) -> float:
        return left + rate / most * (right - left)

    def up(seconds: float) -> float:
        share = math.log(min(max(seconds, FASTEST), SLOWEST) / FASTEST) / math.log(SLOWEST / FASTEST)
        return bottom - share * (bottom - top)

    parts = [f'<text x="{left}" y="{HEAD + 22}" font-weight="bold">{escape(title)}</text>']
    for seconds, label in ((0.01, "10 ms"), (0.1, "100 ms"), (0.25, "250 ms"), (1.0, "1 s"), (10.0, "10 s")):
        colour = "#9ca3af" if seconds in LIMITS.values() else "#e5e7eb"
        parts.append(f'<path d="M{left} {up(seconds):.1f}H{right}" stroke="{colour}"/>')
        parts.append(f'<text x="{left - 6}" y="{up(seconds) + 4:.1f}" text-anchor="end">{label}</text>')
    step = next(step for power in range(5) for step in (10**power, 2 * 10**power, 5 * 10**power) if most / step <= 6)
    for tick in range(step, int(most) + 1, step):
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{left}" y="{bottom + 16}" text-anchor="middle">alone</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 31}" text-anchor="middle">requests a second</text>')
    for name, curve in best.items():
        colour = COLOURS[names.index(name)]
        for style, pick in (("", "p99"), (' stroke-dasharray="4 4"', "p50")):
            places = [(across(each.rate), up(getattr(each.latency, pick))) for each in curve]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{style}/>')
            if pick == "p99":
                parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>' for a, b in places]
    return "".join(parts)
