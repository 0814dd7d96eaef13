"""What jobs end in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serving.engine.search import Hypothesis

Array = NDArray[Any]


@dataclass(frozen=True)
class Timings:
    """Seconds a job spent in each stage of the engine."""

    queue: float
    encode: float
    decode: float


@dataclass(frozen=True)
class Translated:
    """One sentence's translations."""

    hypotheses: list[Hypothesis]
    """Best first."""
    timings: Timings


@dataclass(frozen=True)
class Encoded:
    """Vectors of one text."""

    vectors: Array
    """``[tokens, width]`` fp32, the encoder's output; ``[1, width]`` when they were pooled."""
    timings: Timings


@dataclass(frozen=True)
class Attended:
    """Attention of one pair of token sequences."""

    arrays: Mapping[str, Array]
    """By name, such as ``decoder.1.cross.weights`` ``[heads, target, source]``."""
    timings: Timings
