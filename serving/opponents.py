"""Translations to compare a system's with: from files, or of another model that searches the same way."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from export.bundle import MANIFEST, locate
from model import checkpoint
from serving.evaluate import Direction
from serving.options import TranslateOptions
from serving.scoring import Scored, Task, in_precision, search_of, translations_file

Opponent = Callable[[Scored], list[str]]
"""Gives the translations to compare a system's with."""


def opponent(against: str, searches: Sequence[TranslateOptions], task: Task, console: Console) -> Opponent:
    """Those of ``against``: a file, when there is one set and direction; a folder of such files; or a model.

    All are read, or translated, now: files may be written over later. Raises OSError, and ValueError when something is
    missing that would be compared with.
    """
    path = Path(against)
    if path.is_file():
        if (count := len(task.sets) * len(task.directions)) > 1:
            said = f"--against {path} is one file, and {count} are needed: name a folder OUTPUT/SYSTEM of --output"
            raise ValueError(f"{said}, or one set with --data and one direction with --pair")
        lines = _lines(path, len(task.sets[0].pairs))
        return lambda _: lines
    files = [(name, direction, path / translations_file(name, direction)) for name, direction, _ in task.parts()]
    if any(file.exists() for _, _, file in files):
        counts = {name: len(pairs) for name, pairs in task.sets}
        texts = {(name, direction): _lines(file, counts[name]) for name, direction, file in files}
        return lambda result: texts[result.set, result.direction]
    if not ((locate(against) / MANIFEST).exists() or (checkpoint.locate(against) / checkpoint.CONFIG).exists()):
        raise ValueError(
            f"--against {against}: there is no such file or model, and no folder that has {files[0][2].name}"
        )
    return _of_model(against, searches, task, console)


def _of_model(against: str, searches: Sequence[TranslateOptions], task: Task, console: Console) -> Opponent:
    texts: dict[tuple[str, str, Direction], list[str]] = {}
    with in_precision(against, None, console) as model:
        if unknown := set(task.directions) - set(model.pairs):
            missing = ", ".join("-".join(direction) for direction in sorted(unknown))
            raise ValueError(f"--against {against}: that model does not translate {missing}; leave it out with --pair")
        for options in searches:
            model.check(options)
        for options in searches:
            for name, direction, pairs in task.parts():
                written = model.translate([pair.source for pair in pairs], direction, options)
                texts[search_of(options), name, direction] = written.texts
    return lambda result: texts[result.search, result.set, result.direction]


def _lines(path: Path, count: int) -> list[str]:
    """A translation a line; ValueError when there are not ``count``, or they are not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if len(lines) != count:
        counts = f"has {len(lines)} lines, the set {count} pairs"
        raise ValueError(f"--against: {path} {counts}; give one translation a line, in the set's order")
    return lines
