"""Translations and vectors of an evaluation set: of a bundle by the engine, of a checkpoint by PyTorch."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from export.bundle import MANIFEST
from serving.errors import ServiceError
from serving.options import TranslateOptions
from serving.pipeline import Pipeline
from serving.settings import Settings

Result = TypeVar("Result")
Direction = tuple[str, str]
"""Source and target language."""


class Written(NamedTuple):
    """Translations, one a text."""

    texts: list[str]
    scores: list[float] | None
    """Their mean scores; PyTorch's search, there to compare with, gives none."""


class Evaluated(NamedTuple):
    """A model ready to be evaluated."""

    label: str
    """What it computes with: int8 or fp32 in ONNX Runtime, or pytorch."""
    pairs: tuple[Direction, ...]
    """The directions it knows."""
    check: Callable[[TranslateOptions], None]
    """ValueError when it cannot translate so."""
    translate: Callable[[Sequence[str], Direction, TranslateOptions], Written]
    """ValueError when a text cannot be translated."""


@contextmanager
def evaluated(model: Path, console: Console) -> Iterator[Evaluated]:
    """Open a bundle or a checkpoint; progress bars go to ``console``. OSError or ValueError when it cannot be."""
    if (model / MANIFEST).exists():
        with _engine(model, console) as ready:
            yield ready
    else:
        yield _reference(model, console)


@contextmanager
def _engine(bundle: Path, console: Console) -> Iterator[Evaluated]:
    pipeline = Pipeline.offline(Settings(bundle=bundle))

    def check(options: TranslateOptions) -> None:
        try:
            pipeline.check(options)
        except ServiceError as error:
            raise ValueError(str(error)) from None

    def translate(texts: Sequence[str], direction: Direction, options: TranslateOptions) -> Written:
        async def one_text(text: str) -> tuple[str, float]:
            [translation], _ = await pipeline.translate([text], *direction, options)
            return translation.text, translation.mean_score

        translations = asyncio.run(_each(texts, one_text, console, f"{direction[0]} to {direction[1]}"))
        return Written([text for text, _ in translations], [mean_score for _, mean_score in translations])

    try:
        yield Evaluated(pipeline.manifest.precision, pipeline.manifest.pairs, check, translate)
    finally:
        pipeline.close()


def vectors(
    pipeline: Pipeline, texts: Sequence[str], direction: Direction, pooling: str, console: Console
) -> NDArray[np.float32]:
    """One vector a text ``[texts, width]``, of texts in the first language of ``direction``; ValueError as above."""

    async def encode(text: str) -> NDArray[np.float32]:
        _, [pooled], _ = await pipeline.encode([text], *direction, pooling)
        return pooled[0]

    return np.stack(asyncio.run(_each(texts, encode, console, f"encoding {direction[0]}")))


async def _each(
    texts: Sequence[str], work: Callable[[str], Awaitable[Result]], console: Console, description: str
) -> list[Result]:
    """The results of ``work`` on all ``texts`` at one time; ValueError names the first that cannot be done."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=len(texts))

        async def numbered(number: int, text: str) -> Result:
            try:
                result = await work(text)
            except ServiceError as error:
                raise ValueError(f"{description}, text {number}: {error}") from None
            progress.advance(task)
            return result

        return await asyncio.gather(*(numbered(number, text) for number, text in enumerate(texts, 1)))


def _reference(folder: Path, console: Console) -> Evaluated:
    from model import checkpoint
    from model.evaluate import translations

    loaded = checkpoint.load(folder)

    def translate(texts: Sequence[str], direction: Direction, options: TranslateOptions) -> Written:
        beam = options.beam_size, options.length_penalty
        return Written(translations(loaded, texts, direction[1], console, *beam), None)

    return Evaluated("pytorch", loaded.config.pairs, lambda _: None, translate)
