"""Translations of an evaluation set by the engine."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from serving.errors import ServiceError
from serving.options import GREEDY, TranslateOptions
from serving.pipeline import Pipeline
from serving.settings import Settings
from serving.translation import Translation


def translations(
    bundle: Path, texts: Sequence[str], direction: tuple[str, str], console: Console, options: TranslateOptions = GREEDY
) -> list[Translation]:
    """Translations of ``texts`` by the bundle, with a progress bar on ``console``; ValueError when one cannot be."""
    pipeline = Pipeline.offline(Settings(bundle=bundle))

    async def run() -> list[Translation]:
        source, target = pipeline.pair(*direction)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"translating into {target}", total=len(texts))

            async def one(number: int, text: str) -> Translation:
                try:
                    [found], _ = await pipeline.translate([text], source, target, options)
                except ServiceError as error:
                    raise ValueError(f"text {number}: {error}") from None
                progress.advance(task)
                return found

            return await asyncio.gather(*(one(number, text) for number, text in enumerate(texts, 1)))

    try:
        pipeline.check(options)
        return asyncio.run(run())
    except ServiceError as error:
        raise ValueError(str(error)) from None
    finally:
        pipeline.close()
