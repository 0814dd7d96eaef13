"""The folder that replicas share: whose it is, when it goes, and what is said when it cannot be."""

import json
import os
import shutil
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from loadtest.figures import figures
from serving import state
from serving.deployment import application
from serving.start import StartError
from tests.conftest import ROOT, SMALL
from tests.processes import replicas
from tests.service import Service, dragoman, free_port, started

pytestmark = pytest.mark.slow


def numbers_of(process: int) -> Path:
    """The folder of the file in which a replica counts."""
    [path] = {Path(each.path).parent for each in psutil.Process(process).memory_maps() if each.path.endswith(".totals")}
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def stopped(service: Service, *signals: signal.Signals) -> int:
    """Send the signals, one after another, and return the exit status."""
    for each in signals:
        service.process.send_signal(each)
        time.sleep(0.7)
    service.process.communicate(timeout=60)
    return service.process.returncode


def test_without_ray_it_is_a_private_temporary_folder_that_ends_with_the_service(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    temporary, home = tmp_path / "temporary", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    with started(tiny_bundle, "--no-ray", TMPDIR=str(temporary), HOME=str(home)) as service:
        [own] = temporary.iterdir()
        assert own.name.startswith("dragoman-")
        assert numbers_of(service.process.pid) == own / "totals"
        assert (mode(own), mode(own / "totals")) == (0o700, 0o700)
        assert stopped(service, signal.SIGTERM) == 0
        assert [*temporary.iterdir(), *home.iterdir()] == []


def test_it_ends_with_the_second_signal_too(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["--no-ray", "--cpus", "1"]
    with started(tiny_bundle, *arguments, TMPDIR=str(tmp_path)) as service, ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(service.translate, "Hello there. " * 1500, ', "min_tokens": 100')
        time.sleep(0.5)
        assert stopped(service, signal.SIGINT, signal.SIGINT) == 128 + signal.SIGINT
        assert hanging.exception() is not None
        assert list(tmp_path.iterdir()) == []


def test_and_with_the_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    faults, temporary = tmp_path / "faults", tmp_path / "temporary"
    faults.mkdir()
    temporary.mkdir()
    planted = {"PYTHONPATH": f"{ROOT / 'tests' / 'planted'}:{ROOT}", "FAULTS": str(faults)}
    with started(tiny_bundle, "--no-ray", "--cpus", "1", TMPDIR=str(temporary), **planted) as service:
        (faults / "step").touch()
        assert service.translate().status == 503
        said, _ = service.process.communicate(timeout=60)
        assert service.process.returncode == 1
        assert said.splitlines()[-1].startswith("the engine has ended, and the service with it")
        assert list(temporary.iterdir()) == []


def test_and_when_no_replica_can_start(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, temporary = tmp_path / "bundle", tmp_path / "temporary"
    shutil.copytree(tiny_bundle, bundle)
    temporary.mkdir()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["probes"]["probes"][1]["tokens"][0] += 1
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = dragoman("serve", "--no-ray", "--bundle", bundle, "--port", str(free_port()), TMPDIR=str(temporary))
    assert done.returncode == 1
    assert done.stderr.decode().startswith("no replica could start: on this computer it is wrong: ")
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["one", "two"])
def test_on_ray_it_lies_in_the_private_folder_and_goes_with_it(
    tiny_bundle: Path, signals: list[signal.Signals]
) -> None:
    temporary = Path(f"/tmp/s{os.getpid()}")  # short, as the paths of sockets must be
    temporary.mkdir()
    arguments = ["--replicas", "2", "--cpus", "1"]
    try:
        with started(tiny_bundle, *arguments, TMPDIR=str(temporary)) as service, ThreadPoolExecutor(2) as threads:
            [own] = temporary.iterdir()
            both = replicas(service.process.pid)
            assert {numbers_of(each) for each in both} == {own / "state" / "totals"}
            assert (mode(own), mode(own / "state"), mode(own / "state" / "totals")) == (0o700, 0o700, 0o700)
            if len(signals) == 2:  # else the first is all it takes
                for _ in range(2):
                    threads.submit(service.translate, "Hello there. " * 1500, ', "min_tokens": 100')
                time.sleep(0.5)
            assert stopped(service, *signals) == (0 if len(signals) == 1 else 128 + signal.SIGINT)
            assert list(temporary.iterdir()) == []
    finally:
        shutil.rmtree(temporary)


def test_a_folder_that_is_named_is_made_and_kept_and_totals_go_on_in_it(tiny_bundle: Path, tmp_path: Path) -> None:
    named, temporary = tmp_path / "some" / "where", tmp_path / "temporary"
    temporary.mkdir()
    steps = 0.0
    for _ in range(2):
        with started(tiny_bundle, "--no-ray", "--state", str(named), TMPDIR=str(temporary)) as service:
            assert service.translate().status == 200
            found = figures(service.url)["steps_total"]
            assert found > steps
            steps = found
            assert stopped(service, signal.SIGTERM) == 0
        assert mode(named) == 0o700
        assert list(temporary.iterdir()) == []
    assert steps >= 2
    # Of the first run, folded; of the second; and whoever checked the folder has left one too.
    assert (named / "totals" / "base").exists()


@pytest.mark.parametrize("ray", [[], ["--no-ray"]], ids=["on Ray", "without"])
@pytest.mark.parametrize(
    ("place", "reason"), [("file", "File exists"), ("file/below", "Not a directory"), ("/proc/none", "No such file")]
)
def test_a_folder_that_cannot_be_used_is_one_line_before_anything_starts(
    tmp_path: Path, ray: list[str], place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place
    done = dragoman("serve", *ray, "--bundle", SMALL, "--port", str(free_port()), DRAGOMAN_STATE=str(folder))
    assert (done.returncode, done.stdout) == (1, b"")
    said = done.stderr.decode()
    assert said.startswith(f"cannot use the state folder {folder}: {reason}")
    assert said.endswith("; choose another with --state, or leave it out\n")
    assert said.count("\n") == 1


def test_without_any_folder_that_can_be_written_to_one_line_says_what_to_set() -> None:
    done = dragoman("serve", "--no-ray", "--bundle", SMALL, "--port", str(free_port()), TMPDIR="/proc")
    assert done.returncode == 1
    said = done.stderr.decode()
    assert said.startswith("cannot write to /proc: ")
    assert said.endswith("; set TMPDIR to a folder that can be written to, or choose one with --state\n")


def test_a_folder_that_is_good_is_left_without_a_trace_of_a_replica_alive(tmp_path: Path) -> None:
    state.check(tmp_path)
    state.check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["totals"]
    (tmp_path / "totals" / "lock").unlink()
    (tmp_path / "totals" / "lock").mkdir()
    with pytest.raises(StartError, match="Is a directory; choose another with --state, or leave it out"):
        state.check(tmp_path)


def test_where_others_may_write_a_folder_of_theirs_is_refused(tmp_path: Path) -> None:
    own = state.private(tmp_path / "own")
    assert mode(own) == 0o700
    assert state.private(own) == own
    for name, make in {"open": lambda path: path.mkdir(), "link": lambda path: path.symlink_to(own)}.items():
        make(tmp_path / name)
        with pytest.raises(PermissionError, match="is open to others; remove it, or choose another folder"):
            state.private(tmp_path / name)


def test_replicas_are_given_the_whole_path_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, expected in ((None, None), ("here", str(tmp_path / "here"))):
        [arguments] = application({"state": given})._bound_deployment.init_args
        assert json.loads(json.dumps(arguments))["state"] == expected
