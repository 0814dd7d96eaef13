"""A replica of the real service dies while clients ask; what is said of it."""

import json
import subprocess
import sys
from pathlib import Path

from loadtest.servers import free_port


def test_a_replica_that_dies_costs_a_few_requests_and_another_takes_its_place(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.cli", "loadtest", "--failover", "--scenarios", "death", "--rate", "8"]
    command += ["--seconds", "9", "--port", str(free_port()), "--output", str(tmp_path / "new" / "failover")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "new" / "failover" / "failover.json").read_text()) == result
    assert list(result) == ["death"]
    found = result["death"]
    assert found["faults"] == []
    assert [span["replicas"] for span in found["spans"]] == [2, 1, 2]
    assert 2.9 < found["spans"][1]["begin"] < 6
    assert sum(span["requests"] for span in found["spans"]) == found["requests"] > 40
    assert found["statuses"]["200"] > 0.8 * found["requests"]
