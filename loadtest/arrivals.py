"""When requests arrive: load shapes, and random times that follow them. Plain Python; no clock, no network."""

import random
from collections.abc import Callable

SPIKE = 3.0
"""How many times the mean the spike's rate is, for a fifth of the time; half the mean before and after."""

SHAPES: dict[str, Callable[[float], float]] = {
    "steady": lambda share: 1.0,
    "ramp": lambda share: 2 * share,
    "spike": lambda share: SPIKE if 0.4 <= share < 0.6 else (1 - SPIKE / 5) / 0.8,
}
"""The rate over its mean, by the share of the time that has passed; each is 1 on average."""


def arrivals(shape: str, rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the beginning at which requests arrive, ``rate`` of them a second on average.

    Each comes at its own moment whatever became of the others (a Poisson process, thinned to the ``shape``), as from
    many users who know nothing of each other. Users that wait for their answer before they ask again would hide how
    slow a crowded service is: they ask less of it.
    """
    relative, chance = SHAPES[shape], random.Random(f"{shape}/{seed}")
    peak = max(relative(step / 1000) for step in range(1001))
    found, now = [], 0.0
    while (now := now + chance.expovariate(rate * peak)) < seconds:
        if chance.random() * peak < relative(now / seconds):
            found.append(now)
    return found
