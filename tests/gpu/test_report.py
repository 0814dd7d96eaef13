"""Stages run one after the other whatever becomes of them, and all is written down."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.gpu.report import Stage, headline, last_json, run, run_all, summary, table


def python(name: str, code: str, seconds: float = 60) -> Stage:
    return Stage(name, [sys.executable, "-c", code], seconds, {"GIVEN": "yes"})


def test_a_stage_that_fails_or_hangs_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    begin = time.monotonic()
    outcomes = run_all(
        [
            python("good", """print('first'); print('{"rate": 3.0, "passed": true}')"""),
            python("bad", """print('{"wrong": 2, "passed": false}'); raise SystemExit(1)"""),
            python("explained", """print('{"passed": false, "reason": "why"}'); raise SystemExit(1)"""),
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
        ("explained", False, "status 1: why"),
        ("broken", False, "status 1: ValueError: no card"),
        ("hung", False, "it took longer than 1 s"),
        ("last", True, ""),
    ]
    assert outcomes[-1].result == {"given": "yes"}
    written = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [each["stage"] for each in written] == ["good", "bad", "explained", "broken", "hung", "last"]
    assert written[1]["result"] == {"wrong": 2, "passed": False}
    said = summary(outcomes)
    assert said["good"] | {"seconds": 0} == {"passed": True, "seconds": 0, "figures": {"rate": 3.0}}
    assert said["broken"]["reason"] == "status 1: ValueError: no card"
    text = table(outcomes)
    assert "| good | passed |" in text
    assert "rate 3.0" in text
    assert "| bad | FAILED |" in text
    assert "wrong 2" in text
    assert "first" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_nothing_of_a_stage_is_left_that_took_too_long(tmp_path: Path) -> None:
    """Neither what it has started in a session of its own, nor what that has started."""
    sleep = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    middle = f"import subprocess, sys; print(subprocess.Popen({sleep}).pid, flush=True); sys.stdin.read()"
    code = f"""
import subprocess, sys, time
middle = subprocess.Popen([sys.executable, "-c", {middle!r}], start_new_session=True, stdin=subprocess.PIPE)
print(middle.pid, flush=True)
time.sleep(600)
"""
    begin = time.monotonic()
    [outcome] = run_all([python("hung", code, seconds=5)], 300, tmp_path, tmp_path)
    assert time.monotonic() - begin < 250
    assert outcome.reason == "it took longer than 5 s"
    pids = [int(line) for line in (tmp_path / "log.txt").read_text().splitlines() if line.isdigit()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_a_helper_that_is_left_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It holds what the stage wrote to."""
    code = """
import json, subprocess, sys
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"helper": helper.pid}))
"""
    [outcome] = run_all([python("short", code)], 300, tmp_path, tmp_path)
    psutil.Process(outcome.result["helper"]).kill()
    assert outcome.passed, outcome.reason


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


def test_a_stages_last_words_are_its_own_whatever_others_have_written(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("ü" * 1000, encoding="utf-8")
    stage = Stage("speaks", [sys.executable, "-c", "import sys; sys.exit('why it failed')"], 30)
    assert run(stage, 30, tmp_path, log).reason == "status 1: why it failed"
