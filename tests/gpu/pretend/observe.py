"""What a runtime does on the pretended card, as one line of JSON.

    LD_LIBRARY_PATH=CARD PYTHONPATH=SITE:. python -m tests.gpu.pretend.observe BUNDLE [--cuda-graphs]

CARD and SITE are build.py's. Each action is named with what it did: kernels launched, arrays uploaded and downloaded,
bytes copied within the card's memory, and bytes of it that are allocated more than before.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

from export.bundle import read_manifest
from model.tokenizer import END
from serving.runtime.batch import CacheCopy
from serving.runtime.devices import runtime_on

WHAT = ("launches", "uploads", "downloads", "copied", "used")
ROWS = 8


def main(bundle: Path, cuda_graphs: bool) -> None:
    """Do what a server does, once and again, and print what happened."""
    card = ctypes.CDLL("libcard.so")
    counters = [getattr(card, f"card_{name}") for name in WHAT]
    for counter in counters:
        counter.restype = ctypes.c_long
    happened: dict[str, list[dict[str, int]]] = {}

    def note(name: str, action: Callable[[], object]) -> None:
        before = [counter() for counter in counters]
        action()
        after = [counter() for counter in counters]
        changes = {what: new - old for what, old, new in zip(WHAT, before, after, strict=True)}
        happened.setdefault(name, []).append(changes)

    runtime = runtime_on("cuda", bundle, read_manifest(bundle), 1, cuda_graphs=cuda_graphs)
    batch = runtime.batch(ROWS)
    for _ in range(3):
        [encoded] = runtime.encode([[[4, 9, END], [4, 8, 9, END]]])
        assert not isinstance(encoded, Exception)
        slots = [batch.admit(encoded, index, 3, 0) for index in range(2)]
        note("admission", batch._cache.settle)  # type: ignore[attr-defined]
        for k in (2, 8, 2, 8, 2, 8):
            note("step", lambda k=k: batch._decoder.step(2, k, False))  # type: ignore[attr-defined,misc]
        note("copy", lambda: batch._cache.copy([CacheCopy(0, 5, 1, 1)]))  # type: ignore[attr-defined]
        batch.release(slots)
    print(json.dumps(happened))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--cuda-graphs" in sys.argv[2:])
