"""All kinds of raw requests, by name."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.fuzz import bodies, framing, heads, manners, noise
from tests.fuzz.attempt import Attempt

__all__ = ["KINDS", "raw"]

KINDS: Mapping[str, Callable[[random.Random], Attempt]] = {
    **{f"noise: {name}": kind for name, kind in noise.KINDS.items()},
    **{f"framing: {name}": kind for name, kind in framing.KINDS.items()},
    **{f"head: {name}": kind for name, kind in heads.KINDS.items()},
    **{f"body: {name}": kind for name, kind in bodies.KINDS.items()},
    **{f"manners: {name}": kind for name, kind in manners.KINDS.items()},
}


def raw(seed: int, number: int, kinds: Mapping[str, Callable[[random.Random], Attempt]] = KINDS) -> Attempt:
    """The attempt of ``number`` in the run of ``seed``: the same two make the same bytes. All kinds take turns."""
    chance = random.Random(f"{seed} {number}")
    name = list(kinds)[number % len(kinds)]
    return replace(kinds[name](chance), kind=name)
