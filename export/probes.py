"""Probes: sentences with which whoever serves a bundle proves that it computes what the bundle means.

A probe's tokens must come out the same wherever the bundle runs. So it is a sentence, or the beginning of one, at
whose every step the best token leads the second best by more than right computers differ by. Tokens alone would
overlook small faults, such as a key that is not seen. So probabilities are compared too.
"""

from typing import NamedTuple

from export.parity import Frozen


class Tolerance(NamedTuple):
    """What right computers may differ by, and what that asks of a probe."""

    margin: float
    """Nats by which the best token leads the second best at every step: more than right computers differ by."""
    mean_log_probability: float
    """Nats, of a probe's tokens on average, and of its last ones."""


TOLERANCES = {
    # PyTorch and ONNX Runtime differ by 1e-4 at most, of all tokens at all steps (the gate's bound).
    "fp32": Tolerance(margin=0.01, mean_log_probability=2e-4),
    # Logits above 16 lie 0.016 apart, and devices round at other places than the CPU, where 0.02 was measured.
    "fp16": Tolerance(margin=0.1, mean_log_probability=0.01),
    # An activation on the edge between two steps may round to either side. Between ONNX Runtime 1.28 and 1.31, and
    # between processors with AVX2 and without, 0.24 and 0.018 are the most that en-de-base was seen to differ by.
    "int8": Tolerance(margin=0.5, mean_log_probability=0.05),
}


LAST = 8
"""Tokens at a probe's end of which the mean is compared too."""


class Probe(Frozen):
    """A source, and the greedy tokens for it."""

    source: tuple[int, ...]
    tokens: tuple[int, ...]
    """All of them, or as many as keep the margin."""
    margin: float
    """The least of all its steps, in nats."""
    mean_log_probability: float
    last_log_probability: float
    """The mean of its last `LAST` tokens: what goes wrong in long rows alone shows here."""


class Probes(Frozen):
    """The probes of a bundle; in its manifest."""

    margin: float
    """The least margin that was asked of them; see `Tolerance`."""
    tolerance: float
    """Of a probe's mean log-probability."""
    longest: int
    """Tokens of the longest. Less than `PAST` says that the model yields none that is longer and keeps the margin."""
    probes: tuple[Probe, ...]


PAST = 129
"""Tokens that the longest probe should have: a fault may begin where a cache is longer than usual."""
