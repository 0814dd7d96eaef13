"""``dragoman corpus``: text to train on."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from serving.commands.console import errors, fail, require

app = typer.Typer(no_args_is_help=True, help="Gather text to train on.")


@app.command()
def debian(
    output: Annotated[Path, typer.Argument(help="File to write: English, German and origin, tab-separated; .tsv.gz.")],
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Pairs to evaluate on, which nothing may resemble; may be given again.")
    ] = None,
    origin: Annotated[list[str] | None, typer.Option(help="Only this part; may be given again.")] = None,
    raw: Annotated[bool, typer.Option(help="Keep what teaches nothing: repeats, text that is not translated.")] = False,
) -> None:
    """Gather English and German text from Debian's packages: ten minutes; needs apt and 3 GB for a while."""
    require("polib", "train")
    from model.cleaning import clean
    from model.debian.apt import DebianError
    from model.debian.gathering import gather
    from model.debian.sources import SOURCES
    from model.held_out import without
    from model.pairs import read_pairs, write_pairs

    if unknown := set(origin or ()) - SOURCES.keys():
        fail(f"no such origin: {', '.join(sorted(unknown))}; there are {', '.join(SOURCES)}")
    try:
        held = [pair for path in held_out or () for pair in read_pairs(path)]
        output.parent.mkdir(parents=True, exist_ok=True)
        # What cannot be written is said before the work.
        if output.is_dir() or not os.access(output.parent, os.W_OK):
            fail(f"{output} cannot be written: name a file in a folder that may be written to")
        missing: list[str] = []
        gathered = gather(origin or SOURCES, errors, missing)
        pairs, left_out = (list(gathered), {}) if raw else clean(gathered)
        kept = without(pairs, held)
        # A file that has everything must not be lost for one that has not.
        written = output.with_name(f"incomplete-{output.name}") if missing and output.exists() else output
        write_pairs(written, kept)
    except (OSError, ValueError, DebianError) as error:
        fail(str(error))
    counts = {**left_out, "held_out": len(pairs) - len(kept)}
    print(json.dumps({"written": str(written), "pairs": len(kept), **counts, "missing": missing}))
    if written != output:
        fail(f"{output} stays as it was: what was gathered lacks {', '.join(missing)}, and is in {written}")


@app.command()
def split(
    text: Annotated[Path, typer.Argument(help="Pairs with origins, tab-separated, .gz or not.")],
    folder: Annotated[Path, typer.Argument(help="Folder for train.tsv.gz, dev.tsv.gz and test.tsv.gz.")],
    pairs: Annotated[int, typer.Option(min=1, help="How many for dev, and for test, evenly from the origins.")] = 2000,
    origin: Annotated[list[str] | None, typer.Option(help="Draw from this one only; may be given again.")] = None,
    seed: Annotated[int, typer.Option(help="Draw the same again.")] = 0,
) -> None:
    """Keep pairs to evaluate on apart from those to learn from, which are left without what is like them."""
    from model import held_out
    from model.pairs import read_pairs, write_pairs

    try:
        parts = held_out.split(read_pairs(text), pairs, origin or (), seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts._asdict().items():
            write_pairs(folder / f"{name}.tsv.gz", part)
    except (OSError, ValueError) as error:
        fail(str(error))
    print(json.dumps({"written": str(folder), **{name: len(part) for name, part in parts._asdict().items()}}))
