"""How fast the queue drains while something waits in it: what a refused client is told to wait for."""

import math


class Throughput:
    """Tokens of admitted jobs a second, over the last seconds in which others still waited.

    Idle time says nothing about how fast the engine could be, so it is not counted; neither are steps, whose tokens
    are not those that jobs are charged for.
    """

    MEMORY = 8.0
    """Seconds after which a turn counts for a third."""
    PRIOR = (2000.0, 0.25)
    """Tokens a second supposed before anything is known, and for how many seconds that counts."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a turn of ``seconds`` that admitted jobs charged ``tokens``, while others went on waiting."""
        kept = math.exp(-seconds / self.MEMORY)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds

    @property
    def rate(self) -> float:
        """Tokens a second."""
        rate, weight = self.PRIOR
        return (self._tokens + rate * weight) / (self._seconds + weight)
