"""Stages run one after the other whatever becomes of them, and all is written down."""

import json
import sys
import time
from pathlib import Path

from tests.gpu.report import Stage, headline, last_json, run_all, table


def python(name: str, code: str, seconds: float = 60) -> Stage:
    return Stage(name, [sys.executable, "-c", code], seconds, {"GIVEN": "yes"})


def test_a_stage_that_fails_or_hangs_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    begin = time.monotonic()
    outcomes = run_all(
        [
            python("good", """print('first'); print('{"rate": 3.0, "passed": true}')"""),
            python("bad", """print('{"wrong": 2, "passed": false}'); raise SystemExit(1)"""),
            python("broken", "raise ValueError('no card')"),
            python("hung", child, seconds=1),
            python("last", "import json, os; print(json.dumps({'given': os.environ['GIVEN']}))"),
        ],
        300,
        tmp_path,
        tmp_path,
    )
    assert time.monotonic() - begin < 250
    assert [(each.stage, each.passed, each.reason) for each in outcomes] == [
        ("good", True, ""),
        ("bad", False, "status 1: its check failed"),
        ("broken", False, "status 1: ValueError: no card"),
        ("hung", False, "it took longer than 1 s"),
        ("last", True, ""),
    ]
    assert outcomes[-1].result == {"given": "yes"}
    written = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [each["stage"] for each in written] == ["good", "bad", "broken", "hung", "last"]
    assert written[1]["result"] == {"wrong": 2, "passed": False}
    text = table(outcomes)
    assert "| good | passed |" in text
    assert "rate 3.0" in text
    assert "| bad | FAILED |" in text
    assert "wrong 2" in text
    assert "first" in (tmp_path / "log.txt").read_text()


def test_what_has_no_time_left_is_said(tmp_path: Path) -> None:
    [outcome] = run_all([python("late", "print(1)")], 0.5, tmp_path, tmp_path)
    assert not outcome.passed
    assert outcome.reason == "no time was left for it"


def test_the_last_line_of_json_is_the_result() -> None:
    assert last_json('{"a": 1}\n{"b": 2}\n{broken\nand more') == {"b": 2}
    assert last_json("nothing") is None


def test_figures_of_parts_stand_under_their_names() -> None:
    assert headline({"greedy": {"wrong": 0, "alone": {"equal": 7}}, "list": [1], "passed": True, "x": 1.23456}) == {
        "greedy.wrong": 0,
        "greedy.alone.equal": 7,
        "x": 1.2346,
    }


def test_what_was_measured_of_engines_is_a_headline_by_its_name() -> None:
    steps = [{"rows": 1, "engine_ms": 0.5, "graph_ms": 0.25, "batch_ms": 0.4}]
    results = [{"engine": "dragoman", "precision": "fp16", "rows": 256, "tokens_per_second": 9.0, "times_peer": None}]
    assert headline({"steps": steps, "results": results, "other": [1, "x"]}) == {
        "1 engine_ms": 0.5,
        "1 graph_ms": 0.25,
        "dragoman fp16 256 tokens_per_second": 9.0,
    }
