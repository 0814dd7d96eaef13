"""Whether memory stays flat over many requests.

    python -m tests.gpu.memory BUNDLE --device cuda

Requests of all lengths, greedy and with beams, go through one engine, wave after wave. The device's memory and the
process' are read after each wave. What is taken after the first third must not grow. It ends in one line of JSON with
the samples, and with 1 when memory has grown.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.gpu.devices import DEVICES, runtime
from tests.gpu.work import Translator, sources

GROWTH = 32.0
"""MiB by which the process' memory may grow and still count as flat; the device's may not grow at all."""
SAMPLES = 40


def device_memory() -> float | None:
    """MiB that this process takes of the card, of all of them where the driver tells no processes; None: no card."""

    def ask(what: str) -> list[list[str]]:
        command = ["nvidia-smi", f"--query-{what}", "--format=csv,noheader,nounits"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split(", ") for line in said.splitlines()]

    try:
        own = [float(used) for pid, used in ask("compute-apps=pid,used_memory") if pid == str(os.getpid())]
        return own[0] if own else float(ask("gpu=memory.used")[0][0])
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def grown(samples: Sequence[float]) -> float:
    """By how much the most of the last third is above the most of the second; the first warms up."""
    third = len(samples) // 3
    return max(samples[2 * third :]) - max(samples[third : 2 * third])


def check(bundle: Path, device: str, requests: int, rows: int, beam: int) -> dict[str, object]:
    """Translate so many ``requests``."""
    on_device = runtime(bundle, device)
    work = sources(bundle, on_device.manifest, 500)
    greedy, search = Translator(on_device, rows), Translator(on_device, rows, beam)
    process = psutil.Process()
    wave = -(-requests // SAMPLES)
    resident, taken = [], []
    for number in range(SAMPLES):
        chosen = [work[(number * wave + index) % len(work)] for index in range(wave)]
        cut = wave * 9 // 10
        greedy.company(chosen[:cut])
        search.company(chosen[cut:])
        resident.append(round(process.memory_info().rss / 2**20, 1))
        if (used := device_memory()) is not None:
            taken.append(used)
    greedy.close()
    search.close()
    growth = {"process": grown(resident), "device": grown(taken) if taken else None}
    flat = growth["process"] <= GROWTH and not (growth["device"] or 0) > 0
    return {
        "bundle": bundle.name,
        "requests": wave * SAMPLES,
        "process_mib": resident,
        "device_mib": taken,
        "growth_mib": growth,
        "passed": flat and (bool(taken) or device != "cuda"),
    }


def main(arguments: Sequence[str]) -> int:
    """Run the check with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--beam", type=int, default=4)
    result = check(**vars(parser.parse_args(arguments)))
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
