"""``dragoman vectors``: sentence vectors, fitted and measured."""

import json
from pathlib import Path
from typing import Annotated

import typer

from serving.commands.console import errors, fail, read_settings, require

app = typer.Typer(no_args_is_help=True, help="Fit sentence vectors, and measure how near translations are.")


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="A checkpoint: its folder, or the name of one that ships.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Pairs, tab-separated; first the language that the model reads first. May be given again."),
    ],
    dev: Annotated[Path, typer.Option(help="Pairs by which the best step is chosen.")],
    recipe: Annotated[Path | None, typer.Option(help="JSON of the settings; see model/fit_pooling.py.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting, such as steps=500; dots nest.")] = None,
) -> None:
    """Fit the pooling that makes sentence vectors, and write it into the checkpoint; then export it again.

    It needs some 6 GB of disk for a while (TMPDIR says where), and half an hour of one core for en-de-base.
    """
    require("torch", "train")
    from model import checkpoint, pooling
    from model.fit_pooling import PoolingSettings
    from model.fit_pooling import fit as run
    from model.pairs import read_pairs

    settings = read_settings(PoolingSettings, recipe, set_ or [])
    folder = checkpoint.locate(model)
    try:
        loaded = checkpoint.load(folder)
        pairs = [pair for path in data for pair in read_pairs(path)]
        fitted, wrong = run(loaded, pairs, read_pairs(dev), settings, errors)
        pooling.save(folder / checkpoint.POOLING, fitted)
    except (OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    print(json.dumps({"written": str(folder / checkpoint.POOLING), "wrong_nearest_on_dev": round(wrong.mean, 4)}))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A bundle: its folder, or the name of one that ships.")],
    data: Annotated[list[Path], typer.Option(help="Pairs, tab-separated, .gz or not; may be given again.")],
    languages: Annotated[str, typer.Option(help="What their first two columns hold.")] = "en-de",
) -> None:
    """Count the sentences whose nearest vector in the other language is not their translation's, for each pooling."""
    from export.bundle import BundleError, locate
    from model.evaluation_sets import read_sets
    from model.pairs import read_pairs
    from model.retrieval import wrong_nearest
    from serving.commands.tables import show
    from serving.errors import ServiceError
    from serving.evaluate import vectors
    from serving.pipeline import Pipeline
    from serving.settings import Settings

    if languages.count("-") != 1:
        fail(f"--languages is {languages!r}: name two, such as en-de")
    forth, back = languages, "-".join(reversed(languages.split("-")))
    columns = ["wrong nearest vector", "pairs", "pooling", forth, back, "mean"]
    rows: list[list[str]] = []
    try:
        sets = read_sets(data, read_pairs)
        pipeline = Pipeline.offline(Settings(bundle=locate(model)))
        try:
            # A direction that the model knows reads the language that it begins with.
            directions = [pipeline.pair(*direction.split("-", 1)) for direction in (forth, back)]
            for name, pairs in sets:
                sides = [pair.source for pair in pairs], [pair.target for pair in pairs]
                for pooling in pipeline.manifest.poolings:
                    first, second = (
                        vectors(pipeline, texts, direction, pooling, errors)
                        for texts, direction in zip(sides, directions, strict=True)
                    )
                    wrong = wrong_nearest(first, second)
                    shares = {forth: round(wrong.forth, 4), back: round(wrong.back, 4)}
                    print(json.dumps({"set": name, "pairs": len(pairs), "pooling": pooling, **shares}), flush=True)
                    rows.append([name, f"{len(pairs):,}", pooling, *(f"{share:.1%}" for share in (*wrong, wrong.mean))])
        finally:
            pipeline.close()
    except (BundleError, OSError, ValueError, ServiceError) as error:
        if rows:
            show(columns, rows)
        fail(str(error))
    show(columns, rows)
