"""The comparison from end to end on the small model, made as short as it can be."""

import importlib.util
import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from export.bundle import locate
from model.checkpoint import Checkpoint
from serving.cores import cores
from tests.conftest import SMALL
from tests.loadtest.stub import PATCHED, program

FOLLOWING = f"""{PATCHED}
import json, math, sys
import loadtest.compare.run as run
from loadtest.compare.point import Point
from loadtest.latency import Latency

def at(rate, p99):
    return Point(rate, Latency(9, 0, 0, p99, p99, p99), 1.0, 0.0, 1.0, 1)

alone, first, capacity = json.loads(sys.argv[1])
curve = []
while (rate := run._following(curve, at(0.0, alone), first)) is not None:
    curve.append(at(rate, alone + max(0.0, rate - capacity)))
    assert len(curve) < 60
highest = [run._highest(curve, at(0.0, alone), limit) for limit in (1.0, 0.25)]
print(json.dumps([[[point.rate, point.latency.p99] for point in curve], highest]))
"""


def rates(alone: float, first: float, capacity: float) -> tuple[list[tuple[float, float]], list[float | None]]:
    """What is measured of a service that keeps to ``capacity``, and the highest rates under one second and 250 ms."""
    done = program(FOLLOWING, json.dumps([alone, first, capacity]))
    assert done.returncode == 0, done.stderr
    curve, highest = json.loads(done.stdout)
    return [(rate, p99) for rate, p99 in curve], highest


def test_when_no_limit_holds_with_nobody_else_there_one_rate_is_enough() -> None:
    assert rates(alone=3.0, first=8.0, capacity=50) == ([(8.0, 3.0)], [None, None])


def test_a_limit_that_does_not_hold_alone_is_not_searched_for() -> None:
    found, (under_a_second, under_a_quarter) = rates(alone=0.5, first=8.0, capacity=50)
    assert under_a_second == pytest.approx(50.5, rel=0.1)
    assert under_a_quarter is None
    assert [p99 < 1.0 for rate, p99 in sorted(found)].count(True) >= 5
    assert min(rate for rate, _ in found) == 8.0, "it would go down for the stricter limit"


def test_rates_are_found_for_both_limits() -> None:
    found, highest = rates(alone=0.1, first=8.0, capacity=50)
    for limit, capacity, best in zip((1.0, 0.25), (50.9, 50.15), highest, strict=True):
        assert best is not None
        assert capacity / 1.1 <= best < capacity
        assert best == round(max(rate for rate, p99 in found if p99 < limit), 2)


DRIVER = f"""{PATCHED}
import sys
import loadtest.compare.climb as climb, loadtest.compare.contestants as contestants, loadtest.compare.run as run

contestants.BATCHES, contestants.FINALISTS, contestants.FINAL_ROUNDS = (8,), 1, 1
contestants.SWEEP_REQUESTS = contestants.FINAL_REQUESTS = 16
run.TRIES, run.AT_ONCE, run.ALONE, run.LEAST_REQUESTS = 1, 16, 4, 10
climb.MOST, climb.CLEARLY, climb.LOWEST = 1.0, 1.0, 1.0  # one rate each
services = run._services
run._services = lambda *given: dict(list(services(*given).items())[::2])  # without the one of two replicas
sys.exit(run.main(sys.argv[1:]))
"""


PLACE = f"""{PATCHED}
import pathlib, sys
from loadtest.compare.run import place_of
from loadtest.payloads import SENTENCES
print(place_of("en-de-small", pathlib.Path(sys.argv[1]), SENTENCES))
"""


@pytest.fixture
def prepared(tmp_path: Path, converted: Path, small: Checkpoint, sentences: list[str]) -> Path:
    """A folder for the comparison where the small model is ready; to prepare it takes minutes."""
    done = program(PLACE, str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    place = Path(done.stdout.strip())
    shutil.copytree(locate(SMALL), place / "bundle")
    shutil.copytree(converted, place / "ctranslate2")
    texts = [text for text in sentences if text.isascii() and 20 < len(text) < 60][:12]
    lines = [(text, len(small.tokenizer.source(text, "de"))) for text in texts]
    description = {"name": SMALL, "language": small.tokenizer.language_id("de"), "fixed": False, "lines": lines}
    (place / "model.json").write_text(json.dumps(description))
    return tmp_path


@pytest.mark.skipif(
    importlib.util.find_spec("ctranslate2") is None,
    reason="ctranslate2 is not installed: pip install --editable '.[compare]'",
)
@pytest.mark.slow
def test_both_services_are_measured_and_the_document_says_how_they_did(request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("prepared")
    done = program(DRIVER, "--seconds", "1", "--scenarios", f"{SMALL}, greedy", "--output", str(folder), timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stdout.splitlines()
    document = json.loads((folder / "compare.json").read_text())
    assert [{"machine": document["machine"], **each} for each in document["scenarios"]] == [json.loads(line)]
    ElementTree.fromstring((folder / "compare.svg").read_text())
    assert document["machine"]["cores"] == cores()
    [scenario] = document["scenarios"]
    assert (scenario["scenario"], scenario["model"], scenario["beam_size"]) == (f"{SMALL}, greedy", SMALL, 1)
    assert scenario["offline_tokens_per_second"] > 10
    chosen, tried = scenario["peer_setting"], scenario["peer_sweep"]
    assert chosen["max_batch"] == 8
    assert [each.get("p99_ms") is None for each in tried] == [True] * (len(tried) - 1) + [False]
    assert {name: tried[-1][name] for name in chosen} == chosen
    assert list(scenario["servers"]) == ["dragoman", "fastapi+ctranslate2"]
    for server in scenario["servers"].values():
        check(server)
        mix = server["beside_bulk"]
        assert mix["rate"] > 0
        assert mix["without_p99_ms"] > 0
        assert mix["p99_ms"] > 0


def check(server: dict[str, Any]) -> None:
    curve, saturated, alone = server["curve"], server["saturated"], server["alone"]
    asked = [point["rate"] for point in curve]
    assert asked == sorted(asked)
    for point in (*curve, saturated, alone):
        assert point["failures"] == 0
        assert 0 <= point["padding_share"] < 1
        assert point["cores"] > 0
        assert point["memory_bytes"] > 2**24
        assert point["tokens_per_second"] > 0
        assert point["p99_ms"] is None or 0 < point["p50_ms"] <= point["p99_ms"]
    assert (saturated["rate"], saturated["requests"], alone["rate"], alone["requests"]) == (None, 16, 0, 4)
    assert all(point["requests"] > 0 for point in curve)
    for name, limit in (("1s", 1000), ("250ms", 250)):
        held = None
        for point in curve if (alone["p99_ms"] or math.inf) < limit else []:
            if (point["p99_ms"] or math.inf) >= limit:
                break
            held = point["rate"]
        assert server[f"highest_rate_p99_{name}"] == held
