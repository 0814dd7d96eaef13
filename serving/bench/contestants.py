"""The engines that are compared, behind one interface.

``translate(sources, decoding)`` writes the best hypothesis of every source. All the sources come at once and the call
returns when the last of them is done.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from export.bundle import MANIFEST, Manifest
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import translation
from serving.runtime.cpu import CpuRuntime
from serving.settings import Settings

if TYPE_CHECKING:
    from model.transformer import Transformer

ENGINES = ("dragoman", "ctranslate2", "pytorch")
CHECKPOINT = "checkpoint.pt"
PEER = "ctranslate2"


class Contestant(Protocol):
    """An engine with its model loaded."""

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """The tokens written for each of ``sources``, the end token included where there is one."""


class Dragoman:
    """This engine, as `serving.pipeline` sets it up, with rows enough for every hypothesis of a batch."""

    def __init__(self, bundle: Path, threads: int, rows: int) -> None:
        # Not `read_manifest`: a bundle made for a benchmark alone has passed no parity gate.
        manifest = Manifest.model_validate_json((bundle / MANIFEST).read_bytes())
        settings = Settings()
        rows = max(rows, settings.rows)
        runtime = CpuRuntime(bundle, manifest, threads)
        self._engine = Engine(runtime, runtime.batch(rows), settings.encode_tokens, sys.maxsize, rows)

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """See `Contestant`."""
        jobs = [translation(source, decoding, time.monotonic() + 3600) for source in sources]
        self._engine.submit(jobs)
        return [list(job.future.result().hypotheses[0].tokens) for job in jobs]


class PyTorch:
    """The PyTorch model as it stands: a batch at a time, greedy, every step reads the whole target again."""

    def __init__(self, model: "Transformer", threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = model.eval()

    @classmethod
    def load(cls, path: Path, threads: int) -> "PyTorch":
        """The model that was saved at ``path``."""
        import torch

        return cls(torch.load(path, weights_only=False), threads)

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """See `Contestant`; ValueError for a beam."""
        import torch

        from model.corpus import pad
        from model.tokenizer import END, START

        if decoding.beam_size > 1:
            raise ValueError("the PyTorch contestant searches greedily only")
        with torch.inference_mode():
            encoded = self._model.encode(
                torch.from_numpy(pad(sources)).long(), torch.tensor([len(source) for source in sources])
            )
            target = torch.full((len(sources), 1), START)
            ended = torch.zeros(len(sources), dtype=torch.bool)
            for step in range(decoding.max_tokens):
                logits = self._model.projection(self._model.decode(target, encoded).states[:, -1])
                if step + 1 < decoding.min_tokens:
                    logits[:, END] = -torch.inf
                token = logits.argmax(-1)
                target = torch.cat((target, token[:, None]), dim=1)
                ended |= token == END
                if ended.all():
                    break
            written = target[:, 1:].tolist()
        return [row[: row.index(END) + 1] if END in row else row for row in written]


def enter(engine: str, precision: str, folder: Path, threads: int, rows: int, split: bool) -> Contestant:
    """``engine`` with the model that `serving.bench.subjects` put into ``folder``, for ``rows`` hypotheses at most."""
    if engine == "dragoman":
        return Dragoman(folder / precision, threads, rows)
    if engine == "ctranslate2":
        from serving.bench.peer import CTranslate2

        return CTranslate2(folder / PEER, precision, threads, split)
    return PyTorch.load(folder / CHECKPOINT, threads)
