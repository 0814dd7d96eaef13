"""No process that this project starts reports anything to anybody: nothing is written to one's home, no name is looked
up, and nothing is sent beyond this machine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.servers import clean_environment
from tests.conftest import ROOT, SMALL
from tests.service import free_port

STRACE = ["strace", "--follow-forks", "--seccomp-bpf", "--trace=connect,sendto,sendmsg,sendmmsg"]
AWAY = re.compile(r"sin6?_addr=|inet_addr\(\"|inet_pton\(")
LOOPBACK = re.compile(r'"127\.\d+\.\d+\.\d+"|"::1"|"::ffff:127\.|"0\.0\.0\.0"|"::"')
PAIRS = "The file was opened.\tDie Datei wurde geöffnet.\nThe file was closed.\tDie Datei wurde geschlossen.\n" * 8
LINE = b"The file could not be opened.\n"
TRACER_FAILED = re.compile(rb"^strace: ptrace\(", re.MULTILINE)
"""What strace says when it loses a process that it follows, as it does now and then where processes come and go quickly:
it ends then, and the command with it."""
ATTEMPTS = 3


def traceable() -> str:
    """Why processes cannot be traced here; empty when they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    done = subprocess.run([*STRACE, "--output=/dev/null", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


DENIED = traceable()

COMMANDS = [
    ["translate", "--bundle", SMALL],
    ["encode", "--bundle", SMALL],
    ["export", "--list", SMALL],
    pytest.param(["export", "{checkpoint}", "{folder}/bundle"], id="export", marks=pytest.mark.slow),
    pytest.param(["evaluate", SMALL, "--data", "{pairs}"], id="evaluate", marks=pytest.mark.slow),
    pytest.param(["vectors", "evaluate", SMALL, "--data", "{pairs}"], id="vectors", marks=pytest.mark.slow),
    pytest.param(
        ["loadtest", "--bundle", SMALL, "--users", "2", "--seconds", "2", "--port", "{port}"],
        id="loadtest and serve",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ["loadtest", "--no-ray", "--bundle", SMALL, "--users", "2", "--seconds", "2", "--port", "{port}"],
        id="loadtest and serve without Ray",
        marks=pytest.mark.slow,
    ),
    pytest.param(["bench", "--quick"], id="bench", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_command_leaves_nothing_at_home_and_speaks_to_nobody(
    arguments: list[str], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for attempt in range(ATTEMPTS):
        place = tmp_path / str(attempt)
        done = run(arguments, place, tiny_checkpoint)
        if not (done.returncode and TRACER_FAILED.search(done.stderr)):
            break
    assert done.returncode == 0, done.stderr.decode()
    assert [str(path) for path in (place / "home").rglob("*")] == []
    if DENIED:
        pytest.skip(f"its files were looked at, its connections not: {DENIED}")
    lines = (place / "trace").read_text(errors="replace").splitlines()
    assert any("exited with 0" in line for line in lines)
    # A resolver may stand on this machine, so its port is refused everywhere.
    told = [line for line in lines if AWAY.search(line) and ("htons(53)" in line or not LOOPBACK.search(line))]
    assert told == []


def run(arguments: list[str], place: Path, tiny_checkpoint: Path) -> "subprocess.CompletedProcess[bytes]":
    """A command, traced into ``place`` / trace where that is allowed, with a home folder of its own."""
    home, folder, trace = place / "home", place / "work", place / "trace"
    home.mkdir(parents=True)
    folder.mkdir()
    (folder / "pairs.tsv").write_text(PAIRS)
    named = {"checkpoint": tiny_checkpoint, "folder": folder, "pairs": folder / "pairs.tsv", "port": free_port()}
    command = [sys.executable, "-m", "serving.cli", *(argument.format(**named) for argument in arguments)]
    return subprocess.run(
        [*([] if DENIED else [*STRACE, f"--output={trace}"]), *command],
        input=LINE,
        capture_output=True,
        cwd=folder,
        env=clean_environment(HOME=str(home), PYTHONPATH=str(ROOT), XDG_CACHE_HOME="", XDG_CONFIG_HOME=""),
        timeout=400,
        check=False,
    )
