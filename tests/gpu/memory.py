"""Whether memory stays flat over many requests.

    python -m tests.gpu.memory BUNDLE --device cuda

Requests of all lengths the model takes go through two engines on one runtime, one greedy and one with beams. They come
in waves of all sizes and in no order, so shapes are new to the end; they are the same at each run. The device's memory
and the process' are read after each wave. What is taken after the first third must not grow. It ends in one line of JSON
with the samples, and with 1 when memory has grown.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import psutil

from export.bundle import Manifest
from tests.gpu.devices import DEVICES, runtime
from tests.gpu.work import Translator, joined, sources

GROWTH = 32.0
"""MiB by which memory may grow and still count as flat: a shape that is new may fit none of the pieces that are free."""
LONG = 0.1
"""Of the requests, those that are several sentences joined, up to what the model takes."""
SAMPLES = 40


def device_memory() -> float | None:
    """MiB that this process takes of the card, of all of them where the driver tells no processes; None: no card."""

    def ask(what: str) -> list[list[str]]:
        command = ["nvidia-smi", f"--query-{what}", "--format=csv,noheader,nounits"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line.split(", ") for line in said.splitlines()]

    try:
        # "[N/A]" is what the driver says of a process whose memory it does not know.
        for pid, *used in ask("compute-apps=pid,used_memory"):
            if pid == str(os.getpid()) and used[0].isdigit():
                return float(used[0])
        return float(ask("gpu=memory.used")[0][0])
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
        return None


def grown(samples: Sequence[float]) -> float:
    """By how much the most of the last third is above the most of the second; the first warms up."""
    third = len(samples) // 3
    return max(samples[2 * third :]) - max(samples[third : 2 * third])


def waves(bundle: Path, manifest: Manifest, requests: int) -> list[list[list[int]]]:
    """The sources of so many ``requests``, in `SAMPLES` waves: the largest first, the rest of all sizes."""
    generator = random.Random(0)
    ends = list(accumulate([2.0, *(generator.uniform(0.2, 1.6) for _ in range(SAMPLES - 1))], initial=0.0))
    cuts = [round(requests * end / ends[-1]) for end in ends]
    work = sources(bundle, manifest, requests)
    few = round(requests * LONG)
    chosen = generator.choices(work, k=requests - few) + joined(bundle, manifest, few, generator)
    generator.shuffle(chosen)
    return [chosen[begin:end] for begin, end in pairwise(cuts)]


def check(bundle: Path, device: str, requests: int, rows: int, beam: int) -> dict[str, object]:
    """Translate so many ``requests``."""
    on_device = runtime(bundle, device)
    greedy, search = Translator(on_device, rows), Translator(on_device, rows, beam)
    process = psutil.Process()
    resident, taken, arrays = [], [], []
    for wave in waves(bundle, on_device.manifest, requests):
        cut = len(wave) * 9 // 10
        for translator, part in ((greedy, wave[:cut]), (search, wave[cut:])):
            if part:
                translator.company(part)
        resident.append(round(process.memory_info().rss / 2**20, 1))
        if (used := device_memory()) is not None:
            taken.append(used)
        if device == "cuda":  # what the card's memory in use would hide: it grows in large pieces
            arrays.append(on_device._device.taken)  # type: ignore[attr-defined]
    greedy.close()
    search.close()
    growth = {"process": grown(resident), "device": grown(taken) if taken else None}
    flat = all(each is None or each <= GROWTH for each in growth.values()) and not (arrays and grown(arrays))
    return {
        "bundle": bundle.name,
        "requests": requests,
        "process_mib": resident,
        "device_mib": taken,
        "array_bytes": arrays,
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
