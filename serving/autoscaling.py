"""How many replicas are needed, by what their engines say of themselves."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

LOAD = "load"
"""The figure replicas report: the part of an engine's rows that is in use or waited for; above 1 when they wait.

A text that is only encoded counts for one row.
"""


class Context(Protocol):
    """What Ray Serve tells a policy (``ray.serve.config.AutoscalingContext``)."""

    current_num_replicas: int
    running_replicas: Sequence[Any]
    aggregated_metrics: Mapping[str, Mapping[Any, float]]


class Policy:
    """Ray Serve asks it now and then; limits and delays are Serve's."""

    def __init__(self, target: float) -> None:
        """``target``: the load at which there are as many replicas as needed."""
        self._target = target

    def __call__(self, context: Context) -> tuple[float, dict[str, Any]]:
        """Replicas needed (Serve rounds up), and no state."""
        loads = context.aggregated_metrics.get(LOAD, {})
        known = [loads[replica] for replica in context.running_replicas if replica in loads]
        if not known:
            return context.current_num_replicas, {}
        return sum(known) / self._target, {}
