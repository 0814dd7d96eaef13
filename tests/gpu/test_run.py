"""run.sh as it is called: whatever else is on the machine, and whatever an earlier run has left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
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
