"""The comparison from end to end on the shipped model, made as short as it can be."""

import importlib.util
import json
import math
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import Checkpoint
from tests.conftest import SHIPPED
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
print(json.dumps([[point.rate, point.latency.p99] for point in curve]))
"""


def rates(alone: float, first: float, capacity: float) -> list[tuple[float, float]]:
    done = program(FOLLOWING, json.dumps([alone, first, capacity]))
    assert done.returncode == 0, done.stderr
    return [(rate, p99) for rate, p99 in json.loads(done.stdout)]


def test_when_no_limit_holds_with_nobody_else_there_one_rate_is_enough() -> None:
    assert rates(alone=3.0, first=8.0, capacity=50) == [(8.0, 3.0)]


def test_a_limit_that_does_not_hold_alone_is_not_searched_for() -> None:
    found = rates(alone=0.5, first=8.0, capacity=50)
    assert [p99 < 1.0 for rate, p99 in sorted(found)].count(True) >= 5
    assert min(rate for rate, _ in found) == 8.0, "it would go down for the stricter limit"


def test_rates_are_found_for_both_limits() -> None:
    found = rates(alone=0.1, first=8.0, capacity=50)
    for limit, highest in ((1.0, 50.9), (0.25, 50.15)):
        assert highest / 1.1 <= max(rate for rate, p99 in found if p99 < limit) < highest
        assert min(rate for rate, p99 in found if p99 >= limit) >= highest


DRIVER = f"""{PATCHED}
import sys
import loadtest.compare.climb as climb, loadtest.compare.contestants as contestants, loadtest.compare.run as run

contestants.BATCHES, contestants.FINALISTS, contestants.SWEEP_REQUESTS = (8,), 1, 16
run.AT_ONCE, run.ALONE, run.LEAST_REQUESTS = 16, 4, 10
climb.MOST = 1.0  # one rate each
sys.exit(run.main(sys.argv[1:]))
"""


PLACE = f"""{PATCHED}
import pathlib, sys
from loadtest.compare.run import place_of
from loadtest.payloads import SENTENCES
print(place_of("shipped", pathlib.Path(sys.argv[1]), SENTENCES))
"""


@pytest.fixture
def prepared(tmp_path: Path, converted: Path, shipped: Checkpoint, sentences: list[str]) -> Path:
    """A folder for the comparison where the shipped model is ready; to prepare it takes minutes."""
    done = program(PLACE, str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    place = Path(done.stdout.strip())
    shutil.copytree(SHIPPED, place / "bundle")
    shutil.copytree(converted, place / "ctranslate2")
    texts = [text for text in sentences if text.isascii() and 20 < len(text) < 60][:12]
    lines = [(text, len(shipped.tokenizer.source(text, "de"))) for text in texts]
    description = {"name": "shipped", "language": shipped.tokenizer.language_id("de"), "fixed": False, "lines": lines}
    (place / "model.json").write_text(json.dumps(description))
    return tmp_path


@pytest.mark.skipif(
    importlib.util.find_spec("ctranslate2") is None,
    reason="ctranslate2 is not installed: pip install --editable '.[compare]'",
)
def test_both_services_are_measured_and_the_document_says_how_they_did(request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("prepared")
    done = program(DRIVER, "--seconds", "1", "--scenarios", "shipped, greedy", "--output", str(folder), timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert json.loads((folder / "compare.json").read_text()) == document
    ElementTree.fromstring((folder / "compare.svg").read_text())
    assert document["machine"]["cores"] == len(os.sched_getaffinity(0))
    [scenario] = document["scenarios"]
    assert (scenario["scenario"], scenario["model"], scenario["beam_size"]) == ("shipped, greedy", "shipped", 1)
    assert scenario["offline_tokens_per_second"] > 10
    chosen, tried = scenario["peer_setting"], scenario["peer_sweep"]
    assert chosen["max_batch"] == 8
    assert [each.get("p99_ms") is None for each in tried] == [True] * (len(tried) - 1) + [False]
    assert {name: tried[-1][name] for name in chosen} == chosen
    assert list(scenario["servers"]) == ["dragoman", "dragoman, a replica a core", "fastapi+ctranslate2"]
    for server in scenario["servers"].values():
        check(server)
        mix = server["beside_bulk"]
        assert mix["rate"] > 0
        assert mix["without_p99_ms"] > 0
        assert mix["p99_ms"] > 0


def check(server: dict[str, Any]) -> None:
    curve, saturated, alone = server["curve"], server["saturated"], server["alone"]
    asked = [point["rate"] for point in curve]
    assert asked == sorted(set(asked))
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
        held = []
        for point in curve:
            if (point["p99_ms"] or math.inf) >= limit:
                break
            held.append(point["rate"])
        found = server[f"highest_rate_p99_{name}"]
        assert (round(found, 2) if found else None) == (held[-1] if held else None)
    assert server["highest_rate_p99_1s"] is not None
