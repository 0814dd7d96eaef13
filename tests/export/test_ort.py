"""The package onnxruntime, and CUDA without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export import ort
from export.bundle import locate
from export.ort import onnxruntime
from tests.conftest import ROOT, SMALL

POOLING = locate(SMALL) / "pooling.onnx"


def started(*paths: Path | str, isolated: bool = False) -> "subprocess.CompletedProcess[bytes]":
    """``dragoman verify`` where Python looks for packages in ``paths`` first."""
    command = [sys.executable, "-m", "serving.cli", "verify", SMALL]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    return subprocess.run(command, env=environment, capture_output=True, check=False)


def installed(folder: Path, *distributions: str) -> Path:
    """A folder with the package and what pip writes about ``distributions`` that brought it."""
    (folder / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)
    for name in distributions:
        about = folder / f"{name.replace('-', '_')}-1.31.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    return folder


def test_two_distributions_in_one_environment_are_refused_in_one_line(tmp_path: Path) -> None:
    done = started(installed(tmp_path, "onnxruntime", "onnxruntime-gpu"))
    assert done.returncode == 1
    said = done.stderr.decode()
    assert said.count("\n") == 1
    assert f"onnxruntime and onnxruntime-gpu are both installed in {tmp_path}" in said
    assert "pip uninstall onnxruntime onnxruntime-gpu" in said


def test_without_the_package_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery as m\n"
        "real = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *rest: None if name == 'onnxruntime' else real(name, *rest)\n"
    )
    done = started(tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode() == ("onnxruntime is not installed: pip install '.[cpu]', or '.[gpu]' for GPUs\n")


def test_one_distribution_is_enough_whichever_it_is(tmp_path: Path) -> None:
    """Another environment's, further back on Python's path, is not in its way."""
    done = started(installed(tmp_path, "onnxruntime-gpu"))
    assert done.returncode == 0, done.stderr


def test_the_cpus_package_has_no_libraries_of_cuda_to_load(capfd: pytest.CaptureFixture[str]) -> None:
    ort.load_cuda.cache_clear()
    ort.load_cuda()
    assert capfd.readouterr() == ("", "")


def test_libraries_of_cuda_that_are_missing_are_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def preload() -> None:
        print("Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file")
        print("Failed to load /site-packages/nvidia/cu13/lib/libcurand.so.10: invalid ELF header")
        print("Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file")
        print("Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    ort.load_cuda.cache_clear()
    with pytest.raises(OSError, match=r"are missing \(libcublasLt.so.13, libcurand.so.10\): pip install '.\[gpu\]'"):
        ort.load_cuda()
    assert capfd.readouterr() == ("", "")


def test_a_session_that_would_compute_on_the_cpu_instead_is_none() -> None:
    """ONNX Runtime makes one all the same, here with a warning, where CUDA cannot start with less."""
    options = onnxruntime.SessionOptions()
    with pytest.warns(UserWarning, match="CUDA"), pytest.raises(RuntimeError, match="could not start CUDA"):
        ort.cuda_session(POOLING, options, {})
