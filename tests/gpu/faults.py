"""Faults planted in a device: each must be refused by the probes, or do no harm.

    python -m tests.gpu.faults BUNDLE --device cuda

A device that is right must pass first. A fault that the probes let pass translates some sentences, which are compared
with those of the right device. It ends in one line of JSON, with 1 when a wrong translation would have been served.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from export.bundle import read_manifest
from serving.engine.search import Hypothesis
from serving.runtime.device import Device
from serving.runtime.device_cache import DeviceCache
from serving.runtime.device_runtime import DeviceRuntime
from serving.runtime.selfcheck import SelfCheckError, prove
from tests.gpu.devices import DEVICES, device_for_faults
from tests.gpu.sentences import differing
from tests.gpu.work import Translator, sources
from tests.serving.runtime.faults import COPY_FAULTS, FAULTS, forgetful, poisoned, wrong_copies

ERROR, KERNEL = "could not be translated", "Non-zero status code"
"""How `prove` says that an exception has ended it, and how ONNX Runtime does that one of its kernels has refused."""


def planted(longest: int) -> dict[str, tuple[Callable[[Device], Device], str | None]]:
    """All faults by name: what makes a device faulty, and how copies go wrong."""
    devices: dict[str, Callable[[Device], Device]] = {
        **FAULTS,
        "values are lost where rows are long": lambda device: forgetful(device, longest // 2),
        "caches begin as what is no number": lambda device: poisoned(device),
    }
    return {name: (change, None) for name, change in devices.items()} | {
        f"copies: {name}": (lambda device: device, name) for name in COPY_FAULTS
    }


@contextlib.contextmanager
def copying(fault: str | None) -> Iterator[None]:
    """Rows are copied wrongly, as ``fault`` says, where there is one."""
    if fault is None:
        yield
    else:
        with mock.patch.object(DeviceCache, "copy", wrong_copies(fault)):
            yield


def check(bundle: Path, device: str, rows: int, count: int) -> dict[str, object]:
    """Plant every fault in turn."""
    manifest = read_manifest(bundle)
    assert manifest.probes
    right = device_for_faults(device)
    work = sources(bundle, manifest, count)
    runtime = DeviceRuntime(bundle, manifest, right)
    prove(runtime, runtime.batch(rows), manifest.probes)
    expected = translate(runtime, rows, work)
    refused, broken, harmless, served = {}, {}, [], {}
    for name, (change, copies) in planted(manifest.probes.longest).items():
        with copying(copies):
            try:
                runtime = DeviceRuntime(bundle, manifest, change(right))
                prove(runtime, runtime.batch(rows), manifest.probes)
            except SelfCheckError as error:
                # An exception of anybody else says that the fault could not be planted, which proves nothing.
                (broken if ERROR in str(error) and KERNEL not in str(error) else refused)[name] = str(error)
                continue
            except Exception as error:
                broken[name] = str(error)
                continue
            wrong = len(differing(translate(runtime, rows, work), expected))
        if wrong:
            served[name] = wrong
        else:
            harmless.append(name)
    return {
        "bundle": bundle.name,
        "planted": len(refused) + len(broken) + len(harmless) + len(served),
        "refused": len(refused),
        "harmless": harmless,
        "not_planted": broken,
        "wrong_served": served,
        "passed": not served and not broken,
    }


def translate(runtime: DeviceRuntime, rows: int, work: Sequence[list[int]]) -> list[Hypothesis]:
    """Greedy translations of ``work``."""
    translator = Translator(runtime, rows)
    found = translator.company(work)
    translator.close()
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the check with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--count", type=int, default=64, help="Sentences that a fault translates that is not refused.")
    result = check(**vars(parser.parse_args(arguments)))
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
