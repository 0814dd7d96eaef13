"""The command as users run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.bench.run import main


def bench(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "serving.cli", "bench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=550, check=False, env=os.environ | environment
    )


@pytest.mark.slow
def test_a_quick_run_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed: pip install --editable '.[bench]'")
    engines = "dragoman:int8,ctranslate2:int8,pytorch"
    done = bench("--quick", "--rows", "1,2", "--search", "greedy,beam", "--engines", engines, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    said = json.loads(done.stdout)
    assert said == json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")
    machine, results = said["machine"], said["results"]
    assert {(one["precision"], one["threads"]) for one in machine["ceilings"]} == {("fp32", 1), ("int8", 1)}
    assert all(one["gmacs_per_second"] > 0 for one in machine["ceilings"])
    measured = [tuple(one[key] for key in ("engine", "precision", "search", "rows", "threads")) for one in results]
    everybody = [("dragoman", "int8"), ("ctranslate2", "int8"), ("pytorch", "fp32")]
    assert measured == [
        (*engine, search, rows, 1) for search in ("greedy", "beam 4") for rows in (1, 2) for engine in everybody
    ]
    for one in results:
        assert one["model"] == "en-de-small"
        assert one["tokens_per_second"] > 0
        assert one["latency_ms"] > 0
        assert one["times_peer"] > 0
        assert one["peer"] == "ctranslate2 int8"
        assert one["ceiling_share"] > 0 or one["engine"] == "pytorch"
    assert [(one["search"], one["rows"]) for one in said["against_peers"]] == [("greedy", 2), ("beam 4", 2)]
    assert said["skipped"] == []
    assert "en-de-small, greedy, 1 thread" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "0"], "'0' is not a whole number above 0"),
        (
            ["--engines", "dragoman:int8", "--device", "cuda"],
            "'dragoman:int8' is none of dragoman:fp16, dragoman:fp16-s",
        ),
        (["--engines", "marian"], "'marian' is none of dragoman:fp32, dragoman:int8, ctranslate2:fp32"),
        (["--models", "huge"], "'huge' is none of en-de-base, en-de-small, paper, and no checkpoint's folder"),
        (["--search", "widest"], "'widest' is neither greedy nor beam"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path / "none"), "--engines", "pytorch", "--rows", "1", "--threads", "1"]
    assert main(["--output", str(tmp_path / "out"), *arguments]) == 2
    assert "No such file" in capsys.readouterr().err


def test_where_nobody_can_start_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU, as here; and with one, something else fails that is to be said."""
    arguments = ["--device", "cuda", "--models", "paper", "--rows", "1", "--engines", "ctranslate2", "--repeats", "1"]
    assert main(["--output", str(tmp_path / "out"), *arguments]) in (0, 2)
    assert "ctranslate2 fp16" in capsys.readouterr().err


def test_without_ctranslate2_it_says_what_to_do(tmp_path: Path) -> None:
    blocking = "import importlib.util as u\nf = u.find_spec\nu.find_spec = lambda n, *a: None if n == 'ctranslate2' else f(n, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(blocking)
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}"
    done = bench("--output", tmp_path / "out", PYTHONPATH=path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        "ctranslate2 is not installed: run make bench, or leave it out with --engines dragoman,pytorch" in done.stderr
    )
