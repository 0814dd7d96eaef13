"""Export a checkpoint for a card, and its reference, side by side.

    python -m tests.gpu.exports CHECKPOINT FOLDER

writes FOLDER/fp16-fused, FOLDER/fp16-standard and FOLDER/fp32-standard, each by a process of its own; one that is there
stays. It ends in one line of JSON, with 1 when an export failed: the reason is the last line of each that did.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.cores import cores

BUNDLES = {
    "fp16-fused": ("--precision", "fp16", "--attention", "fused"),
    "fp16-standard": ("--precision", "fp16", "--attention", "standard"),
    "fp32-standard": ("--precision", "fp32", "--attention", "standard"),
}


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, str]:
    """Run ``command`` and pass on what it says; returns the seconds it took, and its last line where it failed."""
    begin, last = time.monotonic(), "it said nothing"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes) as process:
        assert process.stdout
        for line in process.stdout:
            sys.stderr.write(line)
            last = line.strip(" \n-") or last
    return round(time.monotonic() - begin, 1), last if process.returncode else ""


def main(arguments: Sequence[str]) -> int:
    """Run the exports with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", help="A folder, or the name of one that ships.")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in BUNDLES if not (options.folder / name / "manifest.json").exists()]
    threads = str(max(1, cores() // max(1, len(missing))))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "serving.cli", "export", options.checkpoint]
    with ThreadPoolExecutor(len(BUNDLES)) as pool:
        ended = pool.map(lambda name: run([*command, str(options.folder / name), *BUNDLES[name]], environment), missing)
        results = dict(zip(missing, ended, strict=True))
    seconds = {name: took for name, (took, _) in results.items()}
    failed = {name: last for name, (_, last) in results.items() if last}
    reason = "; ".join(f"{name}: {last}" for name, last in failed.items())
    print(json.dumps({"seconds": seconds, "failed": failed, "reason": reason, "passed": not failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
