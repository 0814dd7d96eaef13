"""Translations of an evaluation set by the engine."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model.corpus import Pair
from serving.errors import ServiceError
from serving.options import GREEDY, TranslateOptions
from serving.pipeline import Pipeline
from serving.settings import Settings


def translations(
    bundle: Path, pairs: Sequence[Pair], console: Console, options: TranslateOptions = GREEDY
) -> list[str]:
    """Translations of ``pairs`` by the bundle, with a progress bar on ``console``; ValueError when one cannot be."""
    pipeline = Pipeline.offline(Settings(bundle=bundle))
    source, target = pipeline.pair(None, None)

    async def run() -> list[str]:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("translating", total=len(pairs))

            async def one(number: int, text: str) -> str:
                try:
                    [found], _ = await pipeline.translate([text], source, target, options)
                except ServiceError as error:
                    raise ValueError(f"pair {number}: {error}") from None
                progress.advance(task)
                return found.text

            return await asyncio.gather(*(one(number, pair.source) for number, pair in enumerate(pairs, 1)))

    try:
        pipeline.check(options)
        return asyncio.run(run())
    except ServiceError as error:
        raise ValueError(str(error)) from None
    finally:
        pipeline.close()
