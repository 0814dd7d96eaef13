"""Where each node of a bundle's graphs is computed.

    python -m tests.gpu.placement BUNDLE --device cuda

On a card every node must be on it, but for those that make one shape of another: `serving.runtime.cuda` says which, and
refuses other graphs. It ends in one line of JSON, with 1 when a graph was refused.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from export import ort
from export.bundle import ADMIT, GRAPHS, REORDER, read_manifest
from export.ort import onnxruntime
from serving.runtime.devices import PROVIDERS

ON_DEVICE = (*GRAPHS, ADMIT, REORDER)
"""The graphs that a runtime has on its device: pooling is computed on the CPU."""


def session(graph: Path, device: str) -> onnxruntime.InferenceSession:
    """``graph`` as a replica runs it on a card; RuntimeError names the nodes that would be computed elsewhere."""
    if device == "cuda":
        from serving.runtime.cuda import CudaDevice

        return CudaDevice().session(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(graph, options, providers=[PROVIDERS[device]])


def check(bundle: Path, device: str) -> dict[str, object]:
    """Where all graphs of ``bundle`` are computed: so many nodes by each provider."""
    provider, manifest = PROVIDERS[device], read_manifest(bundle)
    if device == "cuda":
        ort.load_cuda()
    result: dict[str, object] = {"bundle": bundle.name}
    astray: dict[str, str] = {}
    for name in ON_DEVICE:
        if name not in manifest.graphs:
            continue
        try:
            parts = session(bundle / f"{name}.onnx", device).get_provider_graph_assignment_info()
        except RuntimeError as error:
            astray[name] = str(error)
            continue
        nodes: Counter[str] = Counter()
        elsewhere: set[str] = set()
        for part in parts:
            nodes[part.ep_name] += len(part.get_nodes())
            if part.ep_name != provider:
                elsewhere.update(node.op_type for node in part.get_nodes())
        result[name] = {**nodes, "elsewhere": sorted(elsewhere)}
        if not nodes[provider]:
            astray[name] = "everything"
    return {**result, "astray": astray, "passed": not astray}


def main(arguments: Sequence[str]) -> int:
    """Run the check with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=tuple(PROVIDERS), default="cuda")
    result = check(**vars(parser.parse_args(arguments)))
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
