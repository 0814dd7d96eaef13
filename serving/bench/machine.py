"""What the figures were measured on: the processors, and how fast the CPU multiplies matrices in ONNX Runtime."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.functions import OPSET, VENDOR
from export.ort import onnxruntime
from serving.cores import cores

Precision = Literal["fp32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SHAPE = (512, 2048, 2048)
"""Rows, inner and outer width of the product whose speed is the ceiling."""
INSTRUCTION_SETS = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Those that decide how fast matrices are multiplied, by their names in /proc/cpuinfo."""


@dataclass(frozen=True)
class Ceiling:
    """The fastest matrix product that was seen."""

    precision: Precision
    threads: int
    gmacs_per_second: float
    """Thousand millions of multiply-adds a second."""


@dataclass(frozen=True)
class Machine:
    """A processor as this process sees it, and what runs on it."""

    cpu: str
    cores: int
    """Those this process may use."""
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    load_average: float
    """Of the minute before the first measurement: what else the cores were doing."""
    system: str
    versions: dict[str, str]
    ceilings: tuple[Ceiling, ...]
    gpu: str | None = None
    """Name, memory and driver, where it was a GPU that computed."""

    def ceiling(self, precision: str, threads: int) -> float | None:
        """Multiply-adds a second; None when it was not measured."""
        found = [one for one in self.ceilings if (one.precision, one.threads) == (precision, threads)]
        return found[0].gmacs_per_second * 1e9 if found else None


def describe(threads: Sequence[int], packages: Sequence[str], device: str = "cpu") -> Machine:
    """This machine, its ceilings with each of ``threads``, and the versions of those of ``packages`` that are there.

    With another ``device`` than the CPU there are no ceilings.
    """
    load = os.getloadavg()[0]
    cpu, flags = processor(_read("/proc/cpuinfo"))
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=cpu or platform.processor() or platform.machine(),
        cores=cores(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_average=load,
        system=platform.platform(),
        versions=versions,
        ceilings=tuple(ceiling for count in threads for ceiling in _ceilings_apart(count)) if device == "cpu" else (),
        gpu=None if device == "cpu" else gpu(),
    )


def gpu() -> str:
    """The first GPU in the words of its driver, or of PyTorch, or that neither knows one."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found = ""
    if found:
        name, memory, driver = (part.strip() for part in found.splitlines()[0].split(","))
        return f"{name}, {memory}, driver {driver}"
    import torch

    if not torch.cuda.is_available():
        return "a GPU that nvidia-smi and PyTorch do not know"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory // 2**20} MiB, CUDA {torch.version.cuda}"


def processor(cpuinfo: str) -> tuple[str, set[str]]:
    """Name and flags of the first processor in the text of /proc/cpuinfo; of what is not there, nothing."""
    name, flags = "", set[str]()
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and not name:
            name = value
        elif key in ("flags", "Features") and not flags:
            flags = set(value.split())
    return name, flags


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _ceilings_apart(threads: int) -> list[Ceiling]:
    """`measure` for each precision in a process of its own, so that no thread of it outlives it."""
    command = [sys.executable, "-m", "serving.bench.machine", str(threads)]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Ceiling(precision, threads, speed) for precision, speed in json.loads(written).items()]


def measure(precision: Precision, threads: int, shape: tuple[int, int, int] = SHAPE, seconds: float = 1.5) -> float:
    """Thousand millions of multiply-adds a second: the best of the products made within ``seconds``, at least three.

    fp32 is MatMul; int8 is MatMulIntegerToFloat, unsigned activations by signed weights in ±63 as in our bundles.
    """
    session, rows = _product(precision, threads, shape)
    best, begin = float("inf"), time.perf_counter()
    for count in range(10**9):
        start = time.perf_counter()
        session.run(None, {"rows": rows})
        end = time.perf_counter()
        if count:  # the first one is for warming up
            best = min(best, end - start)
        if count >= 3 and end - begin > seconds:
            break
    return float(np.prod(shape, dtype=np.int64) / best / 1e9)


def _product(precision: Precision, threads: int, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """A session that computes one matrix product, and the rows to give it."""
    from export.quantize import WEIGHT_LIMIT  # only now: it loads torch

    rows, inner, outer = shape
    random = np.random.default_rng(0)
    integers = random.integers(-WEIGHT_LIMIT, WEIGHT_LIMIT + 1, (inner, outer))
    weights: dict[str, Any]
    if precision == "int8":
        weights = {
            "weight": integers.astype(np.int8),
            "one": np.float32(1),
            "scale": np.full(outer, 1e-4, np.float32),
            "middle": np.uint8(128),
            "weight_middle": np.int8(0),
        }
        node = helper.make_node("MatMulIntegerToFloat", ["rows", *weights], ["product"], domain=VENDOR)
        given = random.integers(1, 256, (rows, inner)).astype(np.uint8)
    else:
        weights = {"weight": integers.astype(np.float32)}
        node = helper.make_node("MatMul", ["rows", "weight"], ["product"])
        given = random.standard_normal((rows, inner)).astype(np.float32)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("rows", helper.np_dtype_to_tensor_dtype(given.dtype), given.shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [rows, outer])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(VENDOR, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), given


if __name__ == "__main__":
    print(json.dumps({precision: measure(precision, int(sys.argv[1])) for precision in PRECISIONS}))
