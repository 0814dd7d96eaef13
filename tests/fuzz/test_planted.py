"""A fault that is planted in a server is reported, and none is without."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.attempt import load
from tests.fuzz.campaign import campaign, one
from tests.fuzz.oracle import Limits, judge
from tests.fuzz.planted import FAULTS
from tests.fuzz.report import Report
from tests.fuzz.target import Target, running
from tests.fuzz.watch import Watch
from tests.service import free_port

pytestmark = pytest.mark.slow

COUNT = 60
LIMITS = Limits(timeout=0.5, hang=5)
IMPATIENT = Limits(timeout=0.5, hang=1.5)
KIND = "manners: as it should be"


def tried(fault: str, folder: Path) -> tuple[Report, Target]:
    port, log = free_port(), folder / "log"
    with running([sys.executable, "-m", "tests.fuzz.planted", fault, str(port)], port, log) as process:
        watch = Watch(process.pid, f"http://127.0.0.1:{port}", log, settle=1)
        hangs = fault == "hang"
        target = Target(port, watch, IMPATIENT if hangs else LIMITS)
        report = Report(folder / "faults")
        campaign(target, report, seed=1, count=COUNT, kinds=[KIND], batch=COUNT if hangs else 10)
        return report, target


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_planted_is_reported(fault: str, tmp_path: Path) -> None:
    report, _ = tried(fault, tmp_path)
    if fault == "none":
        assert report.text() == ""
        assert report.attempts == COUNT
        assert set(report.ends) == {KIND}
        return
    assert any(FAULTS[fault] in found for found in report.faults), report.text()
    assert FAULTS[fault].splitlines()[0] in report.text()


def test_a_failing_attempt_can_be_sent_again(tmp_path: Path) -> None:
    report, _ = tried("error", tmp_path)
    file, port = report.files["status 500"][0], free_port()
    attempt = load(file)
    assert attempt.sent.startswith(b"POST /v1/")
    with running(
        [sys.executable, "-m", "tests.fuzz.planted", "redirect", str(port)], port, tmp_path / "log"
    ) as process:
        watch = Watch(process.pid, f"http://127.0.0.1:{port}", tmp_path / "log")
        target = Target(port, watch, LIMITS)
        assert "status 307" in judge(attempt, one(target, attempt), target.limits)
