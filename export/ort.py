"""ONNX Runtime as this project uses it. Every other file has it from here, and no process starts it otherwise.

It reads its environment when it is imported, so what it must be told stands above the import.
"""

import os
from pathlib import Path

# Since 1.31 it reports its use to its maker unless this says no: it writes a device id and a database under the home
# folder and looks up a host.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Beyond 256 keys, with fewer heads in the batch than threads, GroupQueryAttention would sum a row's keys in blocks: its
# last bits would depend on the company and on the number of threads.
os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = "1"

import onnxruntime

__all__ = ["onnxruntime", "session"]

SPIN_MICROSECONDS = 50
"""How long a session's threads wait awake for more. From one node to the next this saves waking them, a fifth of a
step with two threads; much longer, and those of one graph would keep the cores from the next one, or from HTTP."""
SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""Its CPU kernel is several times slower than the addition and the LayerNormalization it replaces."""


def session(graph: Path, threads: int, provider: str = "CPUExecutionProvider") -> onnxruntime.InferenceSession:
    """A session that computes ``graph`` (an ``.onnx`` file) with ``threads`` threads, as the server does and the gate
    that stands before it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=[provider], disabled_optimizers=SLOW_FUSIONS)
