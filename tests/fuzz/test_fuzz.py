"""A thousand generated requests against the real service: no error of its own, no hang, nothing left open or held.

``make fuzz`` makes ten thousand.
"""

from pathlib import Path

import pytest

from tests.fuzz.campaign import campaign
from tests.fuzz.report import Report
from tests.fuzz.target import target


@pytest.mark.slow
def test_a_thousand_requests_find_no_fault(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seed, report = pytestconfig.getoption("--seed"), Report(tmp_path / "faults")
    with target(tmp_path / "log") as service:
        campaign(service, report, seed, 1000)
    assert report.attempts == 1000
    assert report.text() == "", f"seed {seed}\n{report.text()}"
