"""``dragoman translate`` and ``dragoman encode``: standard input line by line, without a server."""

import asyncio
import codecs
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.console import BeamSize, LengthPenalty, errors, fail, options_of, standard_input, with_settings
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.pipeline import Pipeline


def _lines() -> list[str]:
    """Standard input as lines; a byte that is not UTF-8 is refused with its line's number."""
    lines: list[str] = []
    given = standard_input().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(given.removesuffix(b"\n").split(b"\n") if given else [], 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            fail(f"line {number} is not UTF-8: {error.reason} at byte {error.start + 1}")
    return lines


def _each_line(
    settings: Settings,
    source: str | None,
    target: str | None,
    work: Callable[["Pipeline", tuple[str, str], str, int], Any],
    blank: str,
    check: Callable[["Pipeline"], object],
) -> None:
    """Print the result of ``work`` for each line of standard input, in order; say which failed and leave them blank.

    ``work`` is given each line with its number, from 0 on; ``check`` says beforehand what can be done for no line.
    """
    from rich.progress import Progress

    from export.bundle import BundleError
    from serving.errors import ServiceError
    from serving.pipeline import Pipeline

    lines = _lines()
    try:
        pipeline = Pipeline.offline(settings)
        pair = pipeline.pair(source, target)
        check(pipeline)
    except (BundleError, ServiceError) as error:
        fail(str(error))
    failed = 0

    async def run() -> None:
        nonlocal failed
        window = asyncio.Semaphore(4 * settings.rows)

        async def one(number: int, line: str) -> str:
            async with window:
                return str(await work(pipeline, pair, line, number)) if line.strip() else blank

        with Progress(console=errors, transient=True, disable=len(lines) < 100 or not errors.is_terminal) as progress:
            tasks = [asyncio.create_task(one(number, line)) for number, line in enumerate(lines)]
            for number, task in enumerate(progress.track(tasks, description="lines"), 1):
                try:
                    print(await task)
                except ServiceError as error:
                    failed += 1
                    print(blank)
                    errors.print(f"line {number}: {error.detail}", markup=False, soft_wrap=True)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        fail("stopped")
    finally:
        pipeline.close()
    if failed:
        fail(f"{failed} of {len(lines)} lines failed")


@with_settings
def translate(
    settings: Settings,
    source: Annotated[str | None, typer.Option(help="Language of the input; the model's first unless given.")] = None,
    target: Annotated[str | None, typer.Option(help="Language to write; the first there is unless given.")] = None,
    beam_size: BeamSize = 1,
    length_penalty: LengthPenalty = 1.0,
    min_tokens: Annotated[int, typer.Option(help="The fewest tokens of a sentence.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="The most; twice the source's and ten unless given.")] = None,
    no_repeat_ngram: Annotated[int, typer.Option(help="Repeat no so many tokens in a row in a sentence.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="Draw the translation: above 1 more boldly.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens; 50.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of these, from those whose probabilities reach it; 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same again; each line adds its number, from 0 on.")] = None,
) -> None:
    """Translate standard input line by line, without a server."""
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    drawn = {name: value for name, value in drawing.items() if value is not None}
    if drawn and temperature is None:
        fail(f"--{next(iter(drawn)).replace('_', '-')} is for drawing translations: give --temperature too")
    options = options_of(
        beam_size=beam_size,
        length_penalty=length_penalty,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        no_repeat_ngram=no_repeat_ngram,
        sampling=drawn or None,
    )
    if options.sampling and seed is None:
        errors.print(f"drawing with --seed {options.sampling.seed}")

    async def work(pipeline: "Pipeline", pair: tuple[str, str], line: str, number: int) -> str:
        [found], _ = await pipeline.translate([line], *pair, options.reseeded(number))
        if found.finish_reason == "length":
            errors.print(f"ran into its limit and may be cut short: {line}", markup=False, soft_wrap=True)
        return " ".join(found.text.splitlines())

    _each_line(settings, source, target, work, "", lambda pipeline: pipeline.check(options))


@with_settings
def encode(
    settings: Settings,
    source: Annotated[str | None, typer.Option(help="Language of the input; the model's first unless given.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="attention or mean; unless given, attention where the model has it.")
    ] = None,
) -> None:
    """Encode standard input line by line: a JSON list each, a vector of length 1 that is near to its translation's."""
    if pooling not in (None, "attention", "mean"):
        fail(f"--pooling is {pooling!r}; it takes attention or mean")

    async def work(pipeline: "Pipeline", pair: tuple[str, str], line: str, number: int) -> str:
        _, [vectors], _ = await pipeline.encode([line], *pair, pooling)
        return json.dumps(vectors[0].tolist())

    _each_line(settings, source, None, work, "null", lambda pipeline: pipeline.pooling(pooling))
