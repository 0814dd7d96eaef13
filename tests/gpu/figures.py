"""The figures that a card has to reach, judged by what the stages have found.

A figure whose stages were not asked for is left out; one whose stage has found nothing is missed, and so is a peer that
could not be measured, for then it is not known who is the faster. A step or a pass that
is recorded counts where it is better than one that is launched, and the figure's name says which it was.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.gpu.report import Outcome

NAME = "figures to reach"
ROWS = 256
PEERS = (("ctranslate2", "fp16"), ("pytorch", "fp16"))
SPEED_MUST, SPEED_GOAL = 2.0, 4.0
"""Target tokens a second, over those of the faster peer."""
STEP_MUST, STEP_GOAL = 1.5, 1.0
"""Milliseconds of a step, over the prototype's; where that was not measured, over the graph's alone."""
PROTOTYPE, PROTOTYPE_MS = re.compile(r"NVIDIA H200( NVL)?"), 0.68
"""The card on which a step of the prototype was measured, and what it took."""
Results = Mapping[str, Any]
"""By the stage's name."""


@dataclass(frozen=True)
class Figure:
    """One that has to be reached."""

    name: str
    must: float
    goal: float
    found: float | None
    """None: it was not measured."""
    verdict: str

    @property
    def reached(self) -> bool:
        """Whether it is what it must be."""
        return self.verdict in ("goal", "must")


def figure(name: str, must: float, goal: float, found: float | None, more_is_better: bool) -> Figure:
    """A figure with its verdict; what is no number is missed."""
    sign = 1 if more_is_better else -1
    if found is None:
        verdict = "not measured"
    elif sign * found >= sign * goal:
        verdict = "goal"
    else:
        verdict = "must" if sign * found >= sign * must else "missed"
    return Figure(name, must, goal, found if found is None else round(found, 4), verdict)


def judge(outcomes: Sequence[Outcome], served: str) -> Outcome | None:
    """One more outcome, for the bundle called ``served`` and all others that were measured; None: nothing was asked."""
    results = {each.stage: each.result if isinstance(each.result, dict) else {} for each in outcomes}
    found = [*_sentences(results, served), *_faults(results, served), *_speed(results), *_step(results)]
    if not found:
        return None
    missed = [f"{each.name}: {each.verdict}" for each in found if not each.reached]
    result = {each.name: {name: value for name, value in asdict(each).items() if name != "name"} for each in found}
    return Outcome(NAME, not missed, 0.0, "; ".join(missed), {**result, "passed": not missed})


def _of(results: Results, kind: str, served: str) -> list[Any]:
    """What the stages of a ``kind`` have found: that of the bundle ``served`` whatever it is, of others if anything."""
    own = [results[name] for name in (f"{kind} {served}",) if name in results]
    others = [found for name, found in results.items() if name.startswith(f"{kind} ") and name != f"{kind} {served}"]
    return own + [each for each in others if each]


def _sentences(results: Results, served: str) -> Iterator[Figure]:
    if found := _of(results, "sentences", served):
        for name, search in (("greedy", "greedy"), ("beam", "search")):
            wrong = [each.get(search, {}).get("wrong") for each in found]
            translated = sum(each.get("translations", 0) for each in found)
            share = max(0.0, 100 * (1 - sum(wrong) / translated)) if translated and None not in wrong else None
            yield figure(f"% of sentences right, {name}", 100, 100, share, more_is_better=True)


def _faults(results: Results, served: str) -> Iterator[Figure]:
    if found := _of(results, "faults", served):
        wrong = [each.get("wrong_served") for each in found]
        count = None if None in wrong else sum(sum(each.values()) for each in wrong)
        yield figure("wrong served under faults", 0, 0, count, more_is_better=False)


def _speed(results: Results) -> Iterator[Figure]:
    if "bench" not in results:
        return
    launched = _measured(results["bench"])
    peers = {name: launched.get(name) for name in PEERS}
    for (engine, precision), found in peers.items():
        rate = found and found["tokens_per_second"]
        yield figure(f"tokens a second of {engine} {precision}", 0, 0, rate, more_is_better=True)
    own, recorded = (
        each.get(("dragoman", "fp16")) for each in (launched, _measured(results.get("bench recorded", {})))
    )
    times: dict[str, float] = {}
    if own and own["times_peer"] is not None:
        times["launched"] = own["times_peer"]
    fastest = max((each["tokens_per_second"] for each in peers.values() if each), default=None)
    if recorded and fastest:  # no peer was measured a second time
        times["recorded"] = recorded["tokens_per_second"] / fastest
    better = max(times, key=times.__getitem__, default="")
    name = f"times the faster peer, {ROWS} rows{better and ', '}{better}"
    yield figure(name, SPEED_MUST, SPEED_GOAL, times.get(better), more_is_better=True)


def _measured(result: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Results of the benchmark by engine and precision: greedy, so many rows."""
    return {
        (each["engine"], each["precision"]): each
        for each in result.get("results", [])
        if each["rows"] == ROWS and each["search"] == "greedy"
    }


def _step(results: Results) -> Iterator[Figure]:
    stages = {"launched": "steps", "recorded": "steps recorded"}
    if not any(stage in results for stage in stages.values()):
        return
    cards = results.get("environment", {}).get("gpus")
    known = isinstance(cards, list) and bool(cards) and bool(PROTOTYPE.fullmatch(cards[0]["name"]))
    times: dict[str, float] = {}
    for how, stage in stages.items():
        for each in results.get(stage, {}).get("steps", []):
            if each["rows"] == ROWS:
                times[how] = each["engine_ms"] / (PROTOTYPE_MS if known else each["graph_ms"])
    better = min(times, key=times.__getitem__, default="")
    name = f"step of {ROWS} rows over {'the prototype' if known else 'the graph'}'s{better and ', '}{better}"
    yield figure(name, STEP_MUST, STEP_GOAL, times.get(better), more_is_better=False)
