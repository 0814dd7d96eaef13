"""The engines that are compared, behind one interface.

``translate(sources, decoding)`` writes the best hypothesis of every source. All the sources come at once and the call
returns when the last of them is done.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from export.bundle import MANIFEST, Manifest
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import translation
from serving.runtime.devices import unchecked_runtime
from serving.settings import Settings

CHECKPOINT = "checkpoint.pt"
PEER = "ctranslate2"
"""The folder of its model."""


@dataclass(frozen=True)
class Entrant:
    """An engine at a precision."""

    engine: str
    precision: str
    """Of this engine on a GPU also with the bodies of attention: ``fp16-standard``."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.engine} {self.precision}"


ENTRANTS = {
    device: tuple(Entrant(engine, precision) for engine, those in engines for precision in those)
    for device, engines in {
        "cpu": (("dragoman", ("fp32", "int8")), ("ctranslate2", ("fp32", "int8")), ("pytorch", ("fp32",))),
        "cuda": (
            ("dragoman", ("fp16", "fp16-standard", "fp32")),
            ("ctranslate2", ("fp16",)),
            ("pytorch", ("fp16",)),
        ),
    }.items()
}
"""Who takes part on each device."""
PEERS = {
    "cpu": (Entrant("ctranslate2", "int8"),),
    "cuda": (Entrant("ctranslate2", "fp16"), Entrant("pytorch", "fp16")),
}
"""With the fastest of whom everybody is compared."""


class Contestant(Protocol):
    """An engine with its model loaded."""

    @property
    def setting(self) -> str:
        """How it computes, where there was a choice."""

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """The tokens written for each of ``sources``, the end token included where there is one."""


class Dragoman:
    """This engine, as `serving.proven_engine` sets it up, with rows enough for every hypothesis of a batch."""

    def __init__(self, bundle: Path, device: str, threads: int, rows: int) -> None:
        # Not `read_manifest`: a bundle made for a benchmark alone has passed no parity gate.
        manifest = Manifest.model_validate_json((bundle / MANIFEST).read_bytes())
        settings = Settings(gpus=int(device == "cuda"))
        rows = max(rows, settings.rows)
        runtime = unchecked_runtime(device, bundle, manifest, threads, settings.gpus, settings.cuda_graphs)
        self.setting = "CUDA graphs" if settings.cuda_graphs and settings.gpus else ""
        self._engine = Engine(runtime, runtime.batch(rows), settings.encode_tokens, sys.maxsize, rows)

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """See `Contestant`."""
        jobs = [translation(source, decoding, time.monotonic() + 3600) for source in sources]
        self._engine.submit(jobs)
        return [list(job.future.result().hypotheses[0].tokens) for job in jobs]


@dataclass(frozen=True)
class Seat:
    """Where a contestant computes, and how much is asked of it."""

    folder: Path
    """What `serving.bench.subjects` has made of the model."""
    device: str
    threads: int
    rows: int
    """Hypotheses at most."""
    split: bool = False
    """Whether a batch is cut in as many parts as there are threads."""


def enter(entrant: Entrant, seat: Seat) -> Contestant:
    """``entrant`` with its model loaded."""
    if entrant.engine == "dragoman":
        return Dragoman(seat.folder / entrant.precision, seat.device, seat.threads, seat.rows)
    if entrant.engine == "ctranslate2":
        from serving.bench.peer import CTranslate2

        return CTranslate2(seat.folder / PEER, entrant.precision, seat.device, seat.threads, seat.split)
    from serving.bench.pytorch_loop import PyTorchLoop

    return PyTorchLoop.load(seat.folder / CHECKPOINT, entrant.precision, seat.device, seat.threads, seat.rows)
