import os
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.bench.machine import PRECISIONS, Precision, _product, describe, gpu, measure, processor


def test_reads_a_processors_name_and_flags_once() -> None:
    one = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 fma\n\n"
    assert processor(one + one.replace("EPYC", "other").replace("avx2", "avx")) == ("AMD EPYC", {"fpu", "avx2", "fma"})
    assert processor("processor\t: 0\nFeatures\t: asimd i8mm\n") == ("", {"asimd", "i8mm"})
    assert processor("") == ("", set())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_product_that_is_timed_is_a_matrix_product(precision: Precision) -> None:
    session, rows = _product(precision, 1, (4, 64, 32))
    [product] = session.run(None, {"rows": rows})
    weight = np.random.default_rng(0).integers(-63, 64, (64, 32))
    whole = (rows.astype(np.float64) - 128) * 1e-4 if precision == "int8" else rows.astype(np.float64)
    np.testing.assert_allclose(product, whole @ weight, rtol=1e-4, atol=1e-3)
    assert measure(precision, 1, (4, 64, 32), seconds=0.01) > 0


def test_describes_this_machine() -> None:
    machine = describe([], ["onnxruntime", "there-is-no-such-package"])
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert set(machine.versions) == {"python", "onnxruntime"}
    assert machine.ceiling("int8", 1) is None


def test_describes_a_gpu_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 580.82'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine = describe([1], ["onnxruntime"], "cuda")
    assert machine.gpu == "NVIDIA H200, 143771 MiB, driver 580.82"
    assert machine.ceilings == ()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which PyTorch knows")
def test_a_gpu_that_nobody_knows_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu() == "a GPU that nvidia-smi and PyTorch do not know"
