"""What a machine is and what is installed on it.

    python -m tests.gpu.environment --device cuda

It ends in one line of JSON, with 1 when the device is cuda and there is no GPU, or no ONNX Runtime for one.
"""

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Sequence

from export.ort import CUDA, onnxruntime
from serving.cores import cores

PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "numpy",
    "onnx",
    "onnxscript",
    "ctranslate2",
    "pydantic",
    "typer",
)
FIELDS = "name,driver_version,memory.total,memory.used"


def gpus() -> list[dict[str, str]] | str:
    """The cards as ``nvidia-smi`` names them, or why it cannot."""
    try:
        command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)
    found = [line.split(", ") for line in said.splitlines()]
    names = FIELDS.split(",")
    if not found or any(len(values) != len(names) for values in found):
        return said.strip() or "nvidia-smi names none"
    return [dict(zip(names, values, strict=True)) for values in found]


def version(package: str) -> str | None:
    """The version that is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check(device: str) -> dict[str, object]:
    """All of it, and the reason why ``device`` cannot be used, where it cannot."""
    found, providers = gpus(), onnxruntime.get_available_providers()
    result: dict[str, object] = {
        "gpus": found,
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "providers": providers,
        "passed": True,
    }
    if device == "cuda":
        faults = [f"there is no GPU: {found}"] if isinstance(found, str) else []
        if CUDA not in providers:
            faults.append(f"ONNX Runtime has no {CUDA}: install onnxruntime-gpu in place of onnxruntime")
        result |= {"passed": not faults, "reason": "; ".join(faults)}
    return result


def main(arguments: Sequence[str]) -> int:
    """Run the check with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    result = check(**vars(parser.parse_args(arguments)))
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
