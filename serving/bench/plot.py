"""Results as a picture: SVG, written by hand; small panels side by side, a line an engine."""

import math
from collections.abc import Sequence
from html import escape

from serving.bench.rounds import Result

COLOURS = {"dragoman": "#c2410c", "ctranslate2": "#1d4ed8", "pytorch": "#4d7c0f"}
DASHES = {"fp32": "5 4", "fp16-standard": "2 3", "fp16": "none", "int8": "none"}
WIDTH, HEIGHT = 330, 240
"""Of a panel, its margins included, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 40
HEAD = 58
"""Above the panels: the title and the legend."""


def plot(results: Sequence[Result], title: str) -> str:
    """Tokens a second over rows, both on logarithmic scales; a panel for every model, search and number of threads."""
    panels: dict[tuple[str, str, int], list[Result]] = {}
    for result in results:
        panels.setdefault((result.model, result.search, result.threads), []).append(result)
    columns = max(1, len({threads for _, _, threads in panels}))
    across, down = max(columns * WIDTH, 2 * WIDTH), math.ceil(len(panels) / columns) * HEIGHT + HEAD
    # Panels of one model and search stand beside each other, by threads.
    order = sorted(panels, key=lambda key: ([(m, s) for m, s, _ in panels].index(key[:2]), key[2]))
    drawn = "".join(
        _panel(panels[key], index % columns * WIDTH, HEAD + index // columns * HEIGHT)
        for index, key in enumerate(order)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}" height="{down}" viewBox="0 0 {across} {down}" '
        f'font-family="sans-serif" font-size="11" fill="#1f2937"><rect width="{across}" height="{down}" fill="white"/>'
        f'<text x="12" y="20" font-size="12">Target tokens a second. {escape(title[:100])}</text>'
        f"{_legend(results)}{drawn}</svg>\n"
    )


def _legend(results: Sequence[Result]) -> str:
    parts, x = [], 12
    for engine, precision in dict.fromkeys((result.engine, result.precision) for result in results):
        parts.append(_line([(x, 40), (x + 26, 40)], engine, precision))
        parts.append(f'<text x="{x + 32}" y="44">{engine} {precision}</text>')
        x += 32 + 7 * len(f"{engine} {precision}")
    return "".join(parts)


def _panel(results: Sequence[Result], x: int, y: int) -> str:
    rows = sorted({result.rows for result in results})
    speeds = [result.tokens_per_second for result in results]
    ticks = _ticks(min(speeds), max(speeds))
    left, right, top, bottom = x + LEFT, x + WIDTH - RIGHT, y + TOP, y + HEIGHT - BOTTOM

    def across(value: float) -> float:
        return left + _share(value, rows[0], rows[-1]) * (right - left)

    def up(value: float) -> float:
        return bottom - _share(value, ticks[0], ticks[-1]) * (bottom - top)

    first = results[0]
    title = escape(f"{first.model}, {first.search}, {first.where}")
    parts = [f'<text x="{left}" y="{y + 22}" font-weight="bold">{title}</text>']
    for tick in ticks:
        parts.append(f'<path d="M{left} {up(tick):.1f}H{right}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:,}</text>')
    for count in rows:
        parts.append(f'<text x="{across(count):.1f}" y="{bottom + 16}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 31}" text-anchor="middle">rows</text>')
    for engine, precision in dict.fromkeys((result.engine, result.precision) for result in results):
        own = sorted((r for r in results if (r.engine, r.precision) == (engine, precision)), key=lambda r: r.rows)
        points = [(across(result.rows), up(result.tokens_per_second)) for result in own]
        parts.append(_line(points, engine, precision))
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.8" fill="{COLOURS[engine]}"/>' for a, b in points]
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], engine: str, precision: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f'stroke="{COLOURS[engine]}" stroke-dasharray="{DASHES[precision]}"'
    return f'<polyline points="{path}" fill="none" stroke-width="1.8" {style}/>'


def _share(value: float, lowest: float, highest: float) -> float:
    """Where ``value`` stands between the two on a logarithmic scale; in the middle when they are one."""
    return math.log(value / lowest) / math.log(highest / lowest) if highest > lowest else 0.5


def _ticks(lowest: float, highest: float) -> list[int]:
    """1, 2 and 5 times powers of ten, from below ``lowest`` (at least 1) to above ``highest``."""
    steps = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
    below = max(index for index, step in enumerate(steps) if step <= max(1.0, lowest))
    above = min(index for index, step in enumerate(steps) if step >= max(1.0, highest))
    return steps[below : max(above, below + 1) + 1]
