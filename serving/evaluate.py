"""Translations of an evaluation set: of a bundle by the engine, of a checkpoint by PyTorch."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from export.bundle import MANIFEST
from serving.errors import ServiceError
from serving.options import GREEDY, TranslateOptions
from serving.pipeline import Pipeline
from serving.settings import Settings


class Written(NamedTuple):
    """Translations, one a text."""

    texts: list[str]
    scores: list[float] | None
    """Their mean scores; PyTorch's search, there to compare with, gives none."""


class Evaluated(NamedTuple):
    """A model ready to translate."""

    pairs: tuple[tuple[str, str], ...]
    """The directions it knows."""
    translate: Callable[[Sequence[str], tuple[str, str]], Written]
    """Texts in one of them; ValueError when one cannot be translated."""


@contextmanager
def evaluated(model: Path, console: Console, options: TranslateOptions = GREEDY) -> Iterator[Evaluated]:
    """Open a bundle or a checkpoint; progress bars go to ``console``. OSError or ValueError when it cannot be."""
    if (model / MANIFEST).exists():
        pipeline = Pipeline.offline(Settings(bundle=model))
        try:
            pipeline.check(options)

            def by_engine(texts: Sequence[str], direction: tuple[str, str]) -> Written:
                return asyncio.run(_written(pipeline, texts, direction, console, options))

            yield Evaluated(pipeline.manifest.pairs, by_engine)
        except ServiceError as error:
            raise ValueError(str(error)) from None
        finally:
            pipeline.close()
    else:
        from model import checkpoint
        from model.evaluate import translations

        loaded = checkpoint.load(model)

        def by_torch(texts: Sequence[str], direction: tuple[str, str]) -> Written:
            beam = options.beam_size, options.length_penalty
            return Written(translations(loaded, texts, direction[1], console, *beam), None)

        yield Evaluated(loaded.config.pairs, by_torch)


async def _written(
    pipeline: Pipeline, texts: Sequence[str], direction: tuple[str, str], console: Console, options: TranslateOptions
) -> Written:
    source, target = pipeline.pair(*direction)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"translating into {target}", total=len(texts))

        async def one(number: int, text: str) -> tuple[str, float]:
            try:
                [found], _ = await pipeline.translate([text], source, target, options)
            except ServiceError as error:
                raise ValueError(f"text {number}: {error}") from None
            progress.advance(task)
            return found.text, found.mean_score

        found = await asyncio.gather(*(one(number, text) for number, text in enumerate(texts, 1)))
    return Written([text for text, _ in found], [score for _, score in found])
