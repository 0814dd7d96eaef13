"""Build the pretended card (cuda.c) as the libraries that ONNX Runtime for CUDA loads.

    python tests/gpu/pretend/build.py SITE OUT

SITE is a folder with ``onnxruntime-gpu`` and CUDA's headers (``nvidia-cuda-runtime`` and ``nvidia-cuda-crt``), which pip
installs there; OUT is written. With OUT as ``LD_LIBRARY_PATH`` a process sees a card. It takes a C compiler and nm.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda.c")
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
HEADER = "nvidia/*/include/cuda_runtime_api.h"
LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1")
LIBRARIES += ("libcudnn.so", "libcudnn.so.9")
OURS = re.compile(r"_*(?:cuda|cublas|curand|cudnn|cu[A-Z])\w*")


def build(site: Path, out: Path) -> None:
    """See above; CalledProcessError when a tool fails, which says why."""
    [headers] = {path.parent for path in site.glob(HEADER)}
    provider, source = site / PROVIDER, SOURCE.read_text(encoding="utf-8")
    symbols = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    linked = {line.split()[-1].split("@")[0] for line in symbols.stdout.splitlines()}
    # cuDNN's functions are looked up by their names.
    looked_up = {name.decode() for name in re.findall(rb"(?<=\0)cudnn[A-Z]\w+(?=\0)", provider.read_bytes())}
    written = set(OURS.findall(source))
    rest = sorted(name for name in linked | looked_up if OURS.fullmatch(name) and name not in written)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rest.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in rest), encoding="utf-8")
    card = out / "libcard.so"
    command = ["cc", "-w", "-std=gnu11", "-shared", "-fPIC", "-O1", "-I", headers, "-o", card, SOURCE, out / "rest.c"]
    subprocess.run([*command, "-lpthread"], check=True)
    empty = out / "empty.c"
    empty.touch()
    for name in LIBRARIES:
        named = ["-Wl,-soname," + name, "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"]
        subprocess.run(["cc", "-shared", "-o", out / name, empty, *named, card], check=True)


def main(arguments: Sequence[str]) -> None:
    """Build it with ``arguments``; SystemExit where SITE lacks what it takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("site", type=Path, help="Folder with onnxruntime-gpu and CUDA's headers (make .gpu/.ready).")
    parser.add_argument("out", type=Path, help="Folder to write.")
    options = parser.parse_args(arguments)
    for wanted in (PROVIDER, HEADER):
        if not any(options.site.glob(wanted)):
            parser.error(f"{options.site} has no {wanted}: make .gpu/.ready installs it into .gpu")
    build(options.site, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
