"""Systems over evaluation sets: a model that searches in some way, scored on each set in each direction."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Console

from export.bundle import MANIFEST, locate, read_manifest
from model import checkpoint
from model.evaluate import Score, confidence, score
from model.evaluation_sets import EvaluationSet
from model.pairs import Pair, directed
from model.placeholders import survival
from model.significance import Comparison
from serving.evaluate import Direction, Evaluated, evaluated
from serving.options import TranslateOptions


class Task(NamedTuple):
    """What systems translate to be compared: every set in every direction."""

    sets: Sequence[EvaluationSet]
    languages: tuple[str, ...]
    """Of the sets' first two columns."""
    directions: Sequence[Direction]

    def parts(self) -> Iterator[tuple[str, Direction, list[Pair]]]:
        """The name of each set, a direction, and the set's pairs in that direction."""
        for name, pairs in self.sets:
            for direction in self.directions:
                yield name, direction, directed(pairs, self.languages, direction)


@dataclass(frozen=True)
class Scored:
    """What a system made of one set in one direction."""

    model: str
    """What computed: int8, fp32 or pytorch."""
    search: str
    """How: greedy, beam4, …"""
    set: str
    direction: Direction
    texts: list[str]
    references: list[str]
    scores: list[Score]
    """By part; the last is the whole set."""
    further: dict[str, Any]
    """Figures of the whole that not every system or set has."""

    @property
    def system(self) -> str:
        """Model and search, such as ``int8-beam4``."""
        return f"{self.model}-{self.search}"

    def line(self) -> str:
        """Its figures as a line of JSON."""
        total = self.scores[-1]
        figures = {"pairs": total.pairs, "bleu": total.bleu, "chrf": total.chrf, "degenerate": total.degenerate}
        names = {"system": self.system, "set": self.set, "direction": "-".join(self.direction)}
        return json.dumps({**names, **figures, **self.further})


def compared_line(result: Scored, comparisons: Sequence[Comparison], against: str) -> str:
    """How ``result`` compares with ``against``, as a line of JSON."""
    names = {"system": result.system, "set": result.set, "direction": "-".join(result.direction), "against": against}
    return json.dumps({**names, **{comparison.metric: comparison._asdict() for comparison in comparisons}})


def search_of(options: TranslateOptions) -> str:
    """A short name of a search."""
    return "greedy" if options.beam_size == 1 else f"beam{options.beam_size}"


def translations_file(set_: str, direction: Direction) -> str:
    """The name of the file in which the translations of a set stand, one a line."""
    return f"{set_}.{'-'.join(direction)}.txt"


@contextmanager
def in_precision(model: str, precision: str | None, console: Console) -> Iterator[Evaluated]:
    """Open ``model``, a path or the name of one that ships.

    Without ``precision``: the bundle if one has that name, else the checkpoint in PyTorch. With it: the bundle if it
    has that precision, else a temporary one exported from the checkpoint. Raises OSError, ValueError, ParityError.
    """
    bundle, folder = locate(model), checkpoint.locate(model)
    manifest = read_manifest(bundle) if (bundle / MANIFEST).exists() else None
    if precision is None or (manifest and manifest.precision == precision):
        with evaluated(bundle if manifest else folder, console) as ready:
            yield ready
        return
    if manifest and not (folder / checkpoint.CONFIG).exists():
        raise ValueError(f"--precision {precision}: {model} is a bundle in {manifest.precision}; name its checkpoint")
    from export.exporter import export

    with TemporaryDirectory() as temporary:
        with console.status(f"exporting {model} in {precision}"):
            export(folder, Path(temporary) / precision, precision)  # type: ignore[arg-type]
        with evaluated(Path(temporary) / precision, console) as ready:
            yield ready


def scored(
    model: Evaluated, options: TranslateOptions, task: Task, placeholders: Sequence[str] = ()
) -> Iterator[Scored]:
    """Every part of ``task``, as soon as it is done; ValueError when a text cannot be translated.

    Of ``placeholders``, where there are any, is counted how many the translations have kept.
    """
    for name, direction, pairs in task.parts():
        sources = [pair.source for pair in pairs]
        texts, mean_scores = model.translate(sources, direction, options)
        further: dict[str, Any] = {}
        if mean_scores is not None:
            further["confidence"] = confidence(pairs, texts, mean_scores)
        if placeholders:
            further["placeholders_kept"] = round(survival(sources, texts, placeholders), 4)
        references = [pair.target for pair in pairs]
        scores = score(pairs, texts)
        yield Scored(model.label, search_of(options), name, direction, texts, references, scores, further)


def possible(known: Sequence[Direction], languages: str, wanted: Sequence[str] | None) -> list[Direction]:
    """Those of the ``known`` directions that text in ``languages`` has both sides of, and that are ``wanted``.

    All are unless some are named. ValueError when there is none, or one that is wanted is missing.
    """
    directions = [direction for direction in known if sorted(direction) == sorted(languages.split("-"))]
    unknown = set(wanted or ()) - {"-".join(direction) for direction in directions}
    if unknown or not directions:
        names = ", ".join("-".join(direction) for direction in known)
        asked = f"--pair {', '.join(sorted(unknown))}" if unknown else f"--languages {languages}"
        raise ValueError(f"{asked}: the model translates {names}; choose among these")
    return [direction for direction in directions if not wanted or "-".join(direction) in wanted]
