"""What a machine is and what is installed on it, as one line of JSON: ``python -m tests.gpu.environment``."""

import importlib.metadata
import json
import platform
import subprocess

from export.ort import onnxruntime
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
    return [dict(zip(FIELDS.split(","), line.split(", "), strict=True)) for line in said.splitlines()]


def version(package: str) -> str | None:
    """The version that is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    report = {
        "gpus": gpus(),
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "providers": onnxruntime.get_available_providers(),
    }
    print(json.dumps(report))
