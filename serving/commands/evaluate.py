"""``dragoman evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands.console import LengthPenalty, errors, fail, options_of, require

if TYPE_CHECKING:
    from model.pairs import Pair
    from model.significance import Comparison
    from serving.scoring import Scored


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A bundle, a checkpoint (computed by PyTorch), or the name of a bundle that ships.")
    ],
    data: Annotated[
        list[Path], typer.Option(help="Pairs with origins, tab-separated, .gz or not; may be given again.")
    ],
    languages: Annotated[str, typer.Option(help="What their first two columns hold.")] = "en-de",
    pair: Annotated[
        list[str] | None, typer.Option(help="A direction such as de-en; all the model knows unless given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs of each file.")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="int8 or fp32: export the checkpoint if no bundle has it; may be given again."),
    ] = None,
    beam_size: Annotated[
        list[int] | None,
        typer.Option(help="Hypotheses followed at one time; 1, greedy search, unless given; may be given again."),
    ] = None,
    length_penalty: LengthPenalty = 1.0,
    against: Annotated[
        str | None, typer.Option(help="A file of translations, a folder OUTPUT/SYSTEM of --output, or a model.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the translations: SYSTEM/SET.en-de.txt.")] = None,
    placeholder: Annotated[
        list[str] | None,
        typer.Option(help="Put it, such as %s, in place of numbers and names first; may be given again."),
    ] = None,
) -> None:
    """BLEU and chrF by origin, by length and in total, in each direction: a JSON line a set, then Markdown tables."""
    require("sacrebleu", "train")
    if precision:
        require("onnx", "export")
    from export.bundle import ParityError
    from model.evaluation_sets import read_sets
    from model.significance import compare
    from serving.opponents import opponent
    from serving.scoring import Task, compared_line, in_precision, possible, scored

    searches = [options_of(beam_size=size, length_penalty=length_penalty) for size in dict.fromkeys(beam_size or [1])]
    for unknown in set(precision or ()) - {"int8", "fp32"}:
        fail(f"--precision is {unknown!r}; it takes int8 or fp32")
    if placeholder and not all(map(str.strip, placeholder)):
        fail("--placeholder is blank: give it one such as %s")
    precisions: list[str | None] = [*dict.fromkeys(precision)] if precision else [None]
    results: list[Scored] = []
    comparisons: list[tuple[Scored, Comparison]] = []
    try:
        sets = read_sets(data, lambda path: _read(path, limit, placeholder))
        if output:
            output.mkdir(parents=True, exist_ok=True)
        other = None
        for kind in precisions:
            with in_precision(model, kind, errors) as ready:
                task = Task(sets, tuple(languages.split("-")), possible(ready.pairs, languages, pair))
                for options in searches:
                    ready.check(options)
                if against and not other:
                    other = opponent(against, searches, task, errors)
                for options in searches:
                    for result in scored(ready, options, task, placeholder or ()):
                        results.append(result)
                        print(result.line(), flush=True)
                        if output:
                            _write(output, result)
                        if other:
                            compared = compare(result.texts, other(result), result.references)
                            comparisons += [(result, comparison) for comparison in compared]
                            print(compared_line(result, compared, str(against)), flush=True)
    except (OSError, ValueError, ParityError) as error:
        _show(results, comparisons, against)
        fail(str(error))
    except KeyboardInterrupt:
        _show(results, comparisons, against)
        fail("stopped")
    _show(results, comparisons, against)


def _show(results: "list[Scored]", comparisons: "list[tuple[Scored, Comparison]]", against: str | None) -> None:
    """The tables of what was done, all of it or not."""
    from serving.commands import tables

    tables.show_scores(results)
    if against and comparisons:
        tables.show_comparisons(comparisons, against)


def _write(output: Path, result: "Scored") -> None:
    """The translations, one a line, in ``output``/SYSTEM/SET.en-de.txt."""
    from serving.scoring import translations_file

    path = output / result.system / translations_file(result.set, result.direction)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(" ".join(text.splitlines()) + "\n" for text in result.texts), encoding="utf-8")


def _read(path: Path, limit: int | None, placeholders: list[str] | None) -> "list[Pair]":
    """The first ``limit`` pairs of a file; with ``placeholders``, copies of those that have a value to replace."""
    from model.pairs import read_pairs
    from model.placeholders import with_placeholders

    pairs = read_pairs(path)[:limit]
    if placeholders:
        pairs = with_placeholders(pairs, placeholders, seed=0)
        if not pairs:
            fail(f"{path}: no pairs to translate that have a number or a name")
    return pairs
