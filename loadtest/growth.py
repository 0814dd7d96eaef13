"""A service's memory over time."""

from dataclasses import dataclass, field
from statistics import median

WARM_SECONDS = 60.0
"""After which everything has been allocated once."""
WINDOW = 20.0
"""Seconds over which memory is taken: a single moment has more or fewer requests than usual."""
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 220, 60, 36


@dataclass
class Growth:
    """Samples in order of time."""

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Bytes."""

    def add(self, seconds: float, memory: int) -> None:
        """One more, ``seconds`` from the beginning."""
        self.seconds.append(seconds)
        self.memory.append(memory)

    def around(self, begin: float, end: float) -> float:
        """The median between two times; of all there is when nothing was taken then."""
        taken = [memory for seconds, memory in zip(self.seconds, self.memory, strict=True) if begin <= seconds <= end]
        return float(median(taken or self.memory))

    @property
    def after_the_first_minute(self) -> float:
        """Bytes when everything has been allocated once."""
        return self.around(WARM_SECONDS, WARM_SECONDS + WINDOW)

    @property
    def at_the_end(self) -> float:
        """Bytes."""
        return self.around(self.seconds[-1] - WINDOW, self.seconds[-1])

    @property
    def share(self) -> float | None:
        """By which memory has grown since the first minute, below 0 when it has shrunk; None when it is too early."""
        if not self.seconds or self.seconds[-1] < WARM_SECONDS + 2 * WINDOW:
            return None
        return self.at_the_end / self.after_the_first_minute - 1


def plot(growth: Growth) -> str:
    """Memory over time as SVG, from zero."""
    right, top, bottom = WIDTH - 14, 34, HEIGHT - BOTTOM
    duration, most = max(growth.seconds) or 1.0, 1.1 * max(growth.memory)
    places = " ".join(
        f"{LEFT + seconds / duration * (right - LEFT):.1f},{bottom - memory / most * (bottom - top):.1f}"
        for seconds, memory in zip(growth.seconds, growth.memory, strict=True)
    )
    parts = []
    for part in range(5):
        height, megabytes = bottom - part / 4 * (bottom - top), part / 4 * most / 2**20
        parts.append(f'<path d="M{LEFT} {height:.1f}H{right}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{megabytes:,.0f}</text>')
        x, minutes = LEFT + part / 4 * (right - LEFT), part / 4 * duration / 60
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{minutes:.1f}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="#1f2937"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-size="12">MiB of the service over minutes at saturation</text>{"".join(parts)}'
        f'<polyline points="{places}" fill="none" stroke="#c2410c" stroke-width="1.8"/></svg>\n'
    )
