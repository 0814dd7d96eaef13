"""Export a checkpoint for a card, and its reference, side by side.

    python -m tests.gpu.exports CHECKPOINT FOLDER

writes FOLDER/fp16-fused, FOLDER/fp16-standard and FOLDER/fp32-standard, each by a process of its own; one that is there
stays. It ends in one line of JSON, with 1 when an export failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serving.cores import cores

BUNDLES = {
    "fp16-fused": ("--precision", "fp16", "--attention", "fused"),
    "fp16-standard": ("--precision", "fp16", "--attention", "standard"),
    "fp32-standard": ("--precision", "fp32", "--attention", "standard"),
}


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
    begin = time.monotonic()
    running = {
        name: subprocess.Popen(
            [*command, str(options.folder / name), *BUNDLES[name]], stdout=sys.stderr, env=environment
        )
        for name in missing
    }
    seconds: dict[str, float] = {}
    while len(seconds) < len(running):
        for name, process in running.items():
            if name not in seconds and process.poll() is not None:
                seconds[name] = round(time.monotonic() - begin, 1)
        time.sleep(0.2)
    failed = [name for name, process in running.items() if process.returncode]
    print(json.dumps({"seconds": seconds, "failed": failed, "passed": not failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
