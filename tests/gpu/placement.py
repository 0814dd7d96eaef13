"""Where each node of a bundle's graphs is computed.

    python -m tests.gpu.placement BUNDLE --device cuda

On a card every node must be on it, but for those that make one shape of another. It ends in one line of JSON, with 1
when other nodes are elsewhere.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from export import ort
from export.bundle import ADMIT, REORDER, read_manifest
from export.ort import onnxruntime
from serving.runtime.cuda import SHAPE_OPERATORS
from serving.runtime.devices import PROVIDERS

GRAPHS = ("encoder", "decoder", ADMIT, REORDER)


def placed(graph: Path, provider: str) -> dict[str, Counter[str]]:
    """The operators of ``graph`` by the provider that computes them, where ``provider`` comes first."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=[provider])
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def check(bundle: Path, device: str) -> dict[str, object]:
    """Where all graphs of ``bundle`` are computed that a step or an encoder takes."""
    provider, manifest = PROVIDERS[device], read_manifest(bundle)
    if device == "cuda":
        ort.load_cuda()
    result: dict[str, object] = {"bundle": bundle.name}
    astray: dict[str, list[str]] = {}
    for name in GRAPHS:
        if name in manifest.graphs:
            found = placed(bundle / f"{name}.onnx", provider)
            nodes = {each: sum(operators.values()) for each, operators in found.items()}
            elsewhere = {op for each, operators in found.items() if each != provider for op in operators}
            result[name] = {**nodes, "elsewhere": sorted(elsewhere)}
            if wrong := sorted(elsewhere - SHAPE_OPERATORS) or ([] if provider in found else ["everything"]):
                astray[name] = wrong
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
