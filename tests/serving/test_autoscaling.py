from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from serving.autoscaling import LOAD, Policy


@dataclass
class Known:
    """What Serve would tell."""

    running_replicas: Sequence[str] = ("a", "b")
    aggregated_metrics: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)
    current_num_replicas: int = 3


@pytest.mark.parametrize("metrics", [{}, {LOAD: {}}, {LOAD: {"gone": 5.0}}, {"other": {"a": 5.0}}])
def test_nobody_knows_so_nothing_changes(metrics: dict[str, dict[str, float]]) -> None:
    assert Policy(0.5)(Known(aggregated_metrics=metrics)) == (3, {})


@pytest.mark.parametrize(
    ("loads", "target", "needed"),
    [
        ({"a": 0.5, "b": 0.5}, 0.5, 2),
        ({"a": 1.5, "b": 0.25}, 0.5, 3.5),
        ({"a": 0.0, "b": 0.0}, 0.5, 0),
        ({"a": 0.5}, 0.25, 2),
        ({"a": 0.5, "b": 0.25, "gone": 40.0}, 0.25, 3),
    ],
)
def test_as_many_as_bring_the_load_of_those_that_run_down_to_the_target(
    loads: dict[str, float], target: float, needed: float
) -> None:
    assert Policy(target)(Known(aggregated_metrics={LOAD: loads})) == (needed, {})
