"""Each figure is judged by what was found, and what was not found is missed."""

from typing import Any

import pytest

from tests.gpu.figures import NAME, judge
from tests.gpu.report import Outcome

SERVED = "fp16-fused"


def measured(engine: str, rate: float, times: float | None, precision: str = "fp16", rows: int = 256) -> dict[str, Any]:
    figures = {"tokens_per_second": rate, "times_peer": times}
    return {"engine": engine, "precision": precision, "rows": rows, "search": "greedy", **figures}


def found() -> dict[str, Any]:
    """Results of a run in which everything is as it must be."""
    right = {"sentences": 500, "translations": 1000, "greedy": {"wrong": 0}, "search": {"wrong": 0}}
    others = [measured("dragoman", 99.0, 9.9, "fp32"), measured("dragoman", 99.0, 9.9, rows=32)]
    peers = [measured("ctranslate2", 10.0, 0.5), measured("pytorch", 20.0, 1.0)]
    step = {"rows": 256, "engine_ms": 0.9, "graph_ms": 0.75}
    return {
        "environment": {"gpus": [{"name": "NVIDIA H200"}]},
        f"sentences {SERVED}": right,
        f"faults {SERVED}": {"wrong_served": {}},
        "steps": {"steps": [{"rows": 1, "engine_ms": 9.0, "graph_ms": 1.0}, step]},
        "bench": {"results": [*others, measured("dragoman", 50.0, 2.5), *peers]},
        "steps recorded": {"steps": [step | {"engine_ms": 0.6}]},
        "bench recorded": {"results": [measured("dragoman", 90.0, None)]},
        "sentences fp16-standard": right,
        "faults fp16-standard": {"wrong_served": {}},
    }


def outcome(results: dict[str, Any]) -> Outcome:
    judged = judge([Outcome(name, True, 1.0, "", result) for name, result in results.items()], SERVED)
    assert judged
    return judged


def test_every_figure_has_must_goal_found_and_verdict() -> None:
    judged = outcome(found())
    assert (judged.stage, judged.passed, judged.reason) == (NAME, True, "")
    assert judged.result == {
        "% of sentences right, greedy": {"must": 100, "goal": 100, "found": 100.0, "verdict": "goal"},
        "% of sentences right, beam": {"must": 100, "goal": 100, "found": 100.0, "verdict": "goal"},
        "wrong served under faults": {"must": 0, "goal": 0, "found": 0, "verdict": "goal"},
        "tokens a second of ctranslate2 fp16": {"must": 0, "goal": 0, "found": 10.0, "verdict": "goal"},
        "tokens a second of pytorch fp16": {"must": 0, "goal": 0, "found": 20.0, "verdict": "goal"},
        "times the faster peer, 256 rows, recorded": {"must": 2.0, "goal": 4.0, "found": 4.5, "verdict": "goal"},
        "step of 256 rows over the prototype's, recorded": {
            "must": 1.5,
            "goal": 1.0,
            "found": 0.8824,
            "verdict": "goal",
        },
        "passed": True,
    }


def test_what_is_launched_counts_where_it_is_better() -> None:
    results = found()
    results["bench recorded"] = {"results": [measured("dragoman", 30.0, None)]}
    results["steps recorded"] = None  # it failed
    judged = outcome(results).result
    assert judged["times the faster peer, 256 rows, launched"]["found"] == 2.5
    assert judged["times the faster peer, 256 rows, launched"]["verdict"] == "must"
    assert judged["step of 256 rows over the prototype's, launched"]["found"] == 1.3235


def test_on_another_card_a_step_is_compared_with_the_graph_of_the_same_run() -> None:
    results = found()
    results["environment"] = {"gpus": [{"name": "NVIDIA L4"}]}
    judged = outcome(results).result
    assert judged["step of 256 rows over the graph's, recorded"] == {
        "must": 1.5,
        "goal": 1.0,
        "found": 0.8,
        "verdict": "goal",
    }


@pytest.mark.parametrize(
    ("stage", "result", "missed"),
    [
        (f"sentences {SERVED}", None, "% of sentences right, greedy: not measured"),
        (
            "sentences fp16-standard",
            {"translations": 9, "greedy": {"wrong": 0}, "search": {"wrong": 1}},
            "beam: missed",
        ),
        (f"faults {SERVED}", {"wrong_served": {"token of the step before": 3}}, "wrong served under faults: missed"),
        (f"faults {SERVED}", None, "wrong served under faults: not measured"),
        ("steps", {"steps": [{"rows": 256, "engine_ms": 1.03, "graph_ms": 1.0}]}, "prototype's, launched: missed"),
        ("steps", None, "step of 256 rows over the prototype's: not measured"),
        ("bench", None, "tokens a second of pytorch fp16: not measured"),
        ("bench", {"results": [measured("pytorch", 50.0, 1.0)]}, "tokens a second of ctranslate2 fp16: not measured"),
        ("bench", {"results": [measured("dragoman", 50.0, 1.9)]}, "times the faster peer, 256 rows, launched: missed"),
        ("bench", {"results": [measured("dragoman", 50.0, None)]}, "times the faster peer, 256 rows: not measured"),
    ],
)
def test_what_falls_short_is_named(stage: str, result: Any, missed: str) -> None:
    results = found()
    results["steps recorded"] = results["bench recorded"] = None
    judged = outcome(results | {stage: result})
    assert not judged.passed
    assert not judged.result["passed"]
    assert missed in judged.reason


def test_a_bundle_that_is_not_served_may_be_left_out_and_what_is_not_asked_is_not_judged() -> None:
    results = found()
    assert outcome(results | {"sentences fp16-standard": None, "faults fp16-standard": None}).passed
    only = {"environment": results["environment"], f"faults {SERVED}": {"wrong_served": {}}}
    assert list(outcome(only).result) == ["wrong served under faults", "passed"]
    assert judge([], SERVED) is None
