"""`make serve` on a GPU: what cannot be served is refused before two gigabytes are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """make with ``arguments``, which can install nothing."""
    command = ["make", "--no-print-directory", *arguments, "PYTHON=false"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def bundle(folder: Path, precision: str) -> Path:
    (folder / "manifest.json").write_text(f'{{\n  "precision": "{precision}"\n}}\n')
    return folder


@pytest.mark.parametrize("name", ["", SMALL, f"export/bundles/{SMALL}", "no/such/folder"])
def test_a_gpu_takes_a_bundle_that_is_there_and_not_in_int8(name: str) -> None:
    ended = make("serve", "GPU=1", f"BUNDLE={name}")
    assert ended.returncode == 2
    [hint, _] = ended.stderr.splitlines()
    assert hint.startswith(
        "a GPU needs a bundle in fp16, and none ships: make .venv/.dev, then .venv/bin/dragoman export"
    )
    assert ended.stdout == ""


@pytest.mark.parametrize("gpu", ["one", "2", "0.0", "1,5", "-1", "1 1"])
def test_a_gpu_is_one_or_a_part(tmp_path: Path, gpu: str) -> None:
    ended = make("serve", f"GPU={gpu}", f"BUNDLE={bundle(tmp_path, 'fp16')}")
    assert ended.returncode == 2
    [hint, _] = ended.stderr.splitlines()
    assert hint == f"GPU is {gpu}: it takes 1, or a part of a GPU from 0.01 on, such as 0.5, or 0 for the CPU"
    assert ended.stdout == ""


@pytest.mark.parametrize("gpu", ["1", "1.0", "0.5", ".25"])
def test_a_bundle_for_a_gpu_is_taken(tmp_path: Path, gpu: str) -> None:
    ended = make("bundle-for-gpu", f"GPU={gpu}", f"BUNDLE={bundle(tmp_path, 'fp16')}")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("gpu", ["", " ", "0"])
def test_no_gpu_is_the_cpu(gpu: str) -> None:
    ended = make("--dry-run", "serve", f"GPU={gpu}")
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1].startswith("exec .venv/bin/dragoman serve")
    assert "--gpus" not in ended.stdout
