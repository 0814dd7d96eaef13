"""ONNX Runtime as this project uses it. Every other file has it from here, and no process starts it otherwise.

It reads its environment when it is imported, so what it must be told stands above the import.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

# Since 1.31 it reports its use to its maker unless this says no: it writes a device id and a database under the home
# folder and looks up a host.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Beyond 256 keys, with fewer heads in the batch than threads, GroupQueryAttention would sum a row's keys in blocks: its
# last bits would depend on the company and on the number of threads.
os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = "1"

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Those that bring the package: the extras cpu and gpu."""


def _check_package() -> None:
    """ImportError of one line unless exactly one of the distributions brings the package."""
    found = importlib.util.find_spec("onnxruntime")
    if not (found and found.origin):
        raise ImportError(
            "onnxruntime is not installed: pip install '.[cpu]', or '.[gpu]' for GPUs", name="onnxruntime"
        )
    folder = Path(found.origin).parent.parent.resolve()
    bringing = []
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            # Only in one place do they overwrite each other.
            if Path(str(importlib.metadata.distribution(name).locate_file(""))).resolve() == folder:
                bringing.append(name)
    if len(bringing) > 1:
        both = " and ".join(bringing)
        raise ImportError(
            f"{both} are both installed in {folder} and overwrite each other: pip uninstall {' '.join(bringing)}, "
            "and then pip install '.[cpu]' or '.[gpu]', not both",
            name="onnxruntime",
        )


_check_package()
import onnxruntime

__all__ = ["CUDA", "cuda_session", "load_cuda", "onnxruntime", "session"]

CUDA = "CUDAExecutionProvider"

SPIN_MICROSECONDS = 50
"""How long a session's threads wait awake for more. From one node to the next this saves waking them, a fifth of a
step with two threads; much longer, and those of one graph would keep the cores from the next one, or from HTTP."""
SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""Its CPU kernel is several times slower than the addition and the LayerNormalization it replaces."""


def session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session that computes ``graph`` (an ``.onnx`` file) on the CPU with ``threads`` threads, as the server does and
    the gate that stands before it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(graph, options, providers=providers, disabled_optimizers=SLOW_FUSIONS)


def cuda_session(
    graph: Path, options: onnxruntime.SessionOptions, provider_options: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """A session that computes ``graph`` on the first GPU that the process sees; RuntimeError, or another of ONNX
    Runtime's errors, when it cannot."""
    load_cuda()
    options.log_severity_level = 4  # errors are raised, too
    provider = CUDA, dict(provider_options)
    # Else a session that fails on the GPU, at its start or later, says so on standard output and goes on with the CPU.
    made = onnxruntime.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
    if CUDA not in made.get_providers():
        # Why, it says in its log only: so once more, and aloud.
        onnxruntime.set_default_logger_severity(2)
        options.log_severity_level = 2
        onnxruntime.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
        raise RuntimeError("ONNX Runtime could not start CUDA: its log, on standard error, says why")
    return made


@functools.cache
def load_cuda() -> None:
    """Load CUDA's libraries, of pip's packages or where the system looks; OSError says which are missing.

    They are large: only a process that computes on a GPU calls this.
    """
    # What goes wrong is raised. The rest are warnings, of what the graphs of a bundle never do.
    onnxruntime.set_default_logger_severity(4)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    failed = dict.fromkeys(Path(name).name for name in re.findall(r"^Failed to load ([^\s:]+)", said.getvalue(), re.M))
    # It looks in several places, and says of each that a library is not there.
    if missing := [name for name in failed if not _loads(name)]:
        raise OSError(f"libraries of CUDA are missing ({', '.join(missing)}): pip install '.[gpu]'")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
