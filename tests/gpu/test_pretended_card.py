"""ONNX Runtime for CUDA on a pretended card: where it computes what, what it copies, and that no card serves unproven."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.gpu.pretend.build import build
from tests.service import free_port

SITE = ROOT / ".gpu"
MISSING = " and ".join(
    [
        *([] if (SITE / ".ready").exists() else ["ONNX Runtime for CUDA (make .gpu/.ready)"]),
        *(tool for tool in ("cc", "nm") if not shutil.which(tool)),
    ]
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"a card cannot be pretended without {MISSING}"),
]

BUNDLES = [("fp16", "fused"), ("fp16", "standard"), ("fp32", "standard")]
RECORDED = [False, True]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    build(SITE, folder)
    return folder


@pytest.fixture(scope="module", params=BUNDLES, ids="-".join)
def bundle(request: pytest.FixtureRequest, lively_bundle: Callable[..., Path]) -> Path:
    return lively_bundle(*request.param)


def run(card: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Python with ``arguments`` where there is a card."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(card), "PYTHONPATH": f"{SITE}:{ROOT}", "COLUMNS": "400"}
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_everything_is_computed_on_the_card_but_shapes(card: Path, bundle: Path) -> None:
    done = run(card, "-m", "tests.gpu.placement", bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    placed = json.loads(done.stdout.splitlines()[-1])
    assert placed["astray"] == {}
    for graph in ("encoder", "decoder", "admit", "reorder"):
        assert placed[graph]["CUDAExecutionProvider"] > 20


@pytest.mark.parametrize("recorded", RECORDED, ids=["launched", "recorded"])
def test_caches_stay_where_they_are_and_a_step_moves_one_block_each_way(
    card: Path, bundle: Path, recorded: bool
) -> None:
    done = run(card, "-m", "tests.gpu.pretend.observe", bundle, *(["--cuda-graphs"] if recorded else []))
    assert done.returncode == 0, done.stdout + done.stderr
    # During a recording nobody may allocate, wait, or copy to and fro.
    assert "pretended card" not in done.stderr
    happened = json.loads(done.stdout)
    steps, first = happened["step"], 2 * 3  # each k is bound, and perhaps recorded, at its first step
    assert all((step["uploads"], step["downloads"]) == (1, 1) for step in steps[first:])
    assert all((step["launches"] == 0) == recorded for step in steps[first:])
    # A cache of eight rows has more than 100 kB.
    assert all(step["copied"] < 10_000 for step in steps)
    assert all(action["copied"] == 0 for name in ("admission", "copy") for action in happened[name])
    late = [action for actions in happened.values() for action in actions[-len(actions) // 3 :]]
    assert sum(action["used"] for action in late) == 0, "memory grows"


def test_what_would_be_computed_elsewhere_is_refused(card: Path, lively_bundle: Callable[..., Path]) -> None:
    """ONNX Runtime would go on with the CPU on the quiet: in fp32 a GPU has no fused attention over caches."""
    code = """
import sys
from pathlib import Path
from serving.runtime.cuda import CudaDevice
CudaDevice().session(Path(sys.argv[1]) / "decoder.onnx")
"""
    done = run(card, "-c", code, lively_bundle("fp32", "fused"))
    assert done.returncode == 1
    assert "decoder.onnx: GroupQueryAttention" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("would not be computed on the GPU")


def test_products_are_those_of_the_bundle_and_memory_has_a_limit(card: Path, bundle: Path) -> None:
    """Unless it is told not to, ONNX Runtime rounds products of fp32."""
    code = """
import json, sys
from pathlib import Path
from serving.runtime.cuda import CudaDevice
for limit in (None, 123 << 20):
    session = CudaDevice(limit).session(Path(sys.argv[1]) / "decoder.onnx")
    print(json.dumps(session.get_provider_options()["CUDAExecutionProvider"]))
"""
    done = run(card, "-c", code, bundle)
    assert done.returncode == 0, done.stderr
    free, limited = map(json.loads, done.stdout.splitlines())
    assert free["use_tf32"] == limited["use_tf32"] == "0"
    assert int(free["gpu_mem_limit"]) > 1 << 40
    assert int(limited["gpu_mem_limit"]) == 123 << 20


def test_arrays_keep_within_their_limit_and_give_back_what_they_took(card: Path) -> None:
    code = """
import numpy as np
from serving.runtime.cuda import CudaDevice
device = CudaDevice(None, 1 << 20)
for _ in range(5):
    arrays = [device.zeros((256, 1024), np.uint8), device.empty((512, 512), np.float16)]
    arrays = None
kept = device.array(np.arange(131072))
try:
    device.empty((1,), np.uint8)
except RuntimeError as error:
    print(error)
"""
    done = run(card, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out of memory: arrays take 1 MiB of the 1 that they may, and 1 bytes more are asked for\n"


@pytest.mark.parametrize(
    "arguments", [["verify", "--device", "cuda"], ["serve", "--no-ray", "--gpus", "1"]], ids=" ".join
)
def test_a_card_that_computes_nothing_is_refused_in_one_line(card: Path, bundle: Path, arguments: list[str]) -> None:
    port = ["--port", str(free_port()), "--bundle"] if "serve" in arguments else []
    done = run(card, "-m", "serving.cli", *arguments, *port, bundle)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "gives other tokens" in line or "mean log-probability" in line


def test_what_the_card_refuses_is_one_line(card: Path, bundle: Path) -> None:
    """A driver that is too old for these libraries."""
    code = """
import runpy, sys
from serving.runtime import cuda_driver
cuda_driver.onnxruntime.cuda_version = "14.0"
sys.argv = ["dragoman", "verify", sys.argv[1], "--device", "cuda"]
runpy.run_module("serving.cli", run_name="__main__")
"""
    done = run(card, "-c", code, bundle)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "NVIDIA's driver here is for CUDA 13.0, and this onnxruntime-gpu for CUDA 14: install a newer driver"
    ]
