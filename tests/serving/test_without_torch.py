import os
import subprocess
import sys

from tests.service import fetch


def test_the_block_works(without_torch: str) -> None:
    environment = os.environ | {"PYTHONPATH": without_torch}
    done = subprocess.run([sys.executable, "-c", "import torch"], env=environment, check=False, capture_output=True)
    assert done.returncode != 0
    assert b"import of torch halted; None in sys.modules" in done.stderr


def test_the_service_answers_everything_without_torch(service: str) -> None:
    for route in ("translate", "encode", "attention"):
        assert fetch(f"{service}/v1/{route}", b'{"text": "Open the file."}').status == 200


def test_translating_lines_needs_no_torch(without_torch: str) -> None:
    command = [sys.executable, "-m", "serving.cli", "translate"]
    environment = os.environ | {"PYTHONPATH": without_torch}
    done = subprocess.run(command, input=b"Open the file.\n", capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
