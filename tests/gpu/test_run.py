"""run.sh as it is called: whatever else is on the machine, and whatever an earlier run has left."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.gpu import run
from tests.processes import alive, within


def run_sh(out: Path, *arguments: str, folder: Path, **more: str) -> "subprocess.Popen[str]":
    """run.sh with ``arguments``, called in ``folder``, with nothing of the environment that tells where to import from."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(ROOT / "tests" / "gpu" / "run.sh"), "-", str(out), "--device", "cpu", "--quick", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"PYTHON": sys.executable} | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a package of tests of its own."""
    (tmp_path / "elsewhere" / "tests").mkdir(parents=True)
    (tmp_path / "elsewhere" / "tests" / "__init__.py").touch()
    return tmp_path / "elsewhere"


def test_other_packages_of_tests_are_in_nobodys_way_and_each_run_begins_anew(tmp_path: Path, elsewhere: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl").write_text("what was found before\n")
    ran = run_sh(Path("../out"), "--only", "environment", folder=elsewhere, PYTHONPATH=str(elsewhere))
    said, failures = ran.communicate()
    assert ran.returncode == 0, failures
    written = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(each["stage"], each["passed"]) for each in written] == [("environment", True)]
    lines = said.splitlines()
    [document] = [json.loads(line) for line in lines if line.startswith("{")]
    assert document["passed"]
    assert list(document["stages"]) == ["environment"]
    assert lines[-1].startswith("| environment | passed |")
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "log.txt", "table.md"}


def test_checks_that_cannot_be_imported_are_one_line(tmp_path: Path, elsewhere: Path) -> None:
    # What comes before the project is what an environment is born with.
    (elsewhere / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(elsewhere)!r})\n")
    ran = run_sh(tmp_path / "out", folder=tmp_path, PYTHONPATH=str(elsewhere))
    _, failures = ran.communicate()
    assert ran.returncode == 2
    [line] = failures.splitlines()
    assert line.startswith(f"the checks cannot be imported from {ROOT} with {sys.executable}: ")
    assert line.endswith("No module named 'tests.gpu'")


def test_who_ends_it_ends_its_stage_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    ran = run_sh(
        tmp_path / "out",
        "--only",
        "export",
        "--checkpoint",
        "en-de-small",
        folder=tmp_path,
        TMPDIR=str(tmp_path / "room"),
    )
    started: list[psutil.Process] = []

    def exporting() -> bool:
        started[:] = psutil.Process(ran.pid).children(recursive=True)
        return len(started) == 4  # the stage, and an export a bundle

    assert within(60, exporting) is not None
    ran.send_signal(signal.SIGTERM)
    ran.communicate()
    assert ran.returncode == 128 + signal.SIGTERM
    assert alive(started) == []
    assert list((tmp_path / "room").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["--only", "nothing"],
            "no stage begins with nothing; the stages are: environment, export, placement fp16-fused",
        ),
        (["--only", "env,sentence,no,more"], "no stage begins with no, more; the stages are: environment, export, "),
        (["--only", " ,"], "--only names no stage; the stages are: environment, export, "),
        (
            ["--only", "verify"],
            "there is no bundle fp16-fused, fp16-standard, fp32-standard: run the stage export first",
        ),
        (
            ["--only", "verify fp16-s"],
            "there is no bundle fp16-standard: run the stage export first, or name --bundles",
        ),
    ],
)
def test_stages_that_cannot_run_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main([str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(fault)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "long"])
def test_seconds_are_a_number_above_0(tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main([str(tmp_path / "out"), f"--seconds={seconds}"])
    assert ended.value.code == 2
    assert f"argument --seconds: '{seconds}' is not a number of seconds above 0" in capsys.readouterr().err


def options(folder: Path, only: str) -> argparse.Namespace:
    return argparse.Namespace(device="cuda", quick=True, bundles=folder, checkpoint="en-de-small", only=only)


def test_empty_words_name_no_stage(tmp_path: Path) -> None:
    assert [stage.name for stage in run.choose(options(tmp_path, "env, ,"), tmp_path)] == ["environment"]


def test_bundles_that_are_there_or_come_are_taken(tmp_path: Path) -> None:
    chosen = run.choose(options(tmp_path, "export,verify fp16-s"), tmp_path)
    assert [stage.name for stage in chosen] == ["export", "verify fp16-standard"]
    (tmp_path / "fp16-standard").mkdir()
    (tmp_path / "fp16-standard" / "manifest.json").touch()
    [stage] = run.choose(options(tmp_path, "verify fp16-s"), tmp_path)
    assert stage.name == "verify fp16-standard"


def test_a_file_is_no_folder_for_what_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit) as ended:
        run.main([str(tmp_path / "out"), "--only", "environment"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path / 'out'} cannot be written to: File exists; OUT is a folder\n"


@pytest.mark.parametrize(
    ("unpacked", "fault"),
    [
        (None, "there is no folder {}: name the one that tests/gpu/unpack.py has unpacked into, or -\n"),
        (["site"], "{} is not complete: run tests/gpu/unpack.py until it says that it is ready\n"),
    ],
)
def test_what_was_not_carried_is_refused_in_one_line(tmp_path: Path, unpacked: list[str] | None, fault: str) -> None:
    carried = tmp_path / "carried"
    for name in unpacked or ():
        (carried / name).mkdir(parents=True)
        (carried / "ready").touch()
    command = [str(ROOT / "tests" / "gpu" / "run.sh"), str(carried), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == fault.format(carried)


def test_nothing_that_ran_is_nothing_that_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "prove", lambda *_: [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own stays
    assert run.main([str(tmp_path / "out"), "--only", "environment"]) == 1
