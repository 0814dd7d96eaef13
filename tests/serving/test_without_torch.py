import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import fetch, free_port, running

BLOCKED = "import sys\nfor name in ('torch', 'onnx', 'onnxscript', 'safetensors', 'sacrebleu', 'locust'):\n    sys.modules[name] = None\n"


@pytest.fixture
def without(tmp_path: Path) -> str:
    """A PYTHONPATH under which every process, Ray's workers too, fails to import what serving must not need."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    return f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"


def test_the_block_works(without: str) -> None:
    done = subprocess.run([sys.executable, "-c", "import torch"], env=os.environ | {"PYTHONPATH": without}, check=False)
    assert done.returncode != 0


@pytest.mark.filterwarnings("ignore")
def test_the_service_answers_everything_without_torch(without: str) -> None:
    port = free_port()
    with running([sys.executable, "-m", "serving.cli", "serve", "--port", str(port)], port, PYTHONPATH=without):
        for route in ("translate", "encode", "attention"):
            assert fetch(f"http://127.0.0.1:{port}/v1/{route}", b'{"text": "Open the file."}').status == 200


def test_translating_lines_needs_no_torch(without: str) -> None:
    command = [sys.executable, "-m", "serving.cli", "translate"]
    done = subprocess.run(
        command, input=b"Open the file.\n", capture_output=True, env=os.environ | {"PYTHONPATH": without}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
