"""Sets of pairs to evaluate on, each under the name of its file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from model.pairs import Pair


class EvaluationSet(NamedTuple):
    """Pairs to evaluate on."""

    name: str
    """The file's, without its endings."""
    pairs: list[Pair]


def read_sets(files: Sequence[Path], read: Callable[[Path], list[Pair]]) -> list[EvaluationSet]:
    """A set a file, named by it; ValueError when two are called alike or one is empty."""
    sets: dict[str, EvaluationSet] = {}
    for path in files:
        name = path.name.removesuffix(".gz").removesuffix(".tsv")
        if name in sets:
            raise ValueError(f"{path}: another set is called {name} as well; rename the file")
        pairs = read(path)
        if not pairs:
            raise ValueError(f"{path}: the file has no pairs; give one with a pair a line")
        sets[name] = EvaluationSet(name, pairs)
    return list(sets.values())
