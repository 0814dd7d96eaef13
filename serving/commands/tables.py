"""What an evaluation found, as tables: Markdown, so that they can go into a model's card as they are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import MARKDOWN
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from model.evaluate import Score
    from model.significance import Comparison
    from serving.scoring import Scored

WIDTH = 10_000
"""Characters of a line at most: a cell must not be folded or cut."""


def show_scores(results: "Sequence[Scored]") -> None:
    """A table a direction: a row each part of each set, BLEU and chrF of each system.

    A system that was stopped before a set was done has no figures there.
    """
    for direction in dict.fromkeys(result.direction for result in results):
        of_direction = [result for result in results if result.direction == direction]
        systems = list(dict.fromkeys(result.system for result in of_direction))
        names = list(dict.fromkeys(result.set for result in of_direction))
        title, rows = "-".join(direction), []
        if len(systems) == 1:
            columns = [f"{title}, {systems[0]}", "pairs", "BLEU", "chrF", "degenerate"]
        else:
            columns = [title, "pairs", *(f"{system}: BLEU / chrF" for system in systems)]
        for name in names:
            by_system = {result.system: result.scores for result in of_direction if result.set == name}
            shown = next(iter(by_system.values()))
            for number, part in enumerate(shown):
                if not telling(part, shown, alone=len(names) == 1):
                    continue
                if len(systems) == 1:
                    cells = [f"{part.bleu:.2f}", f"{part.chrf:.2f}", f"{part.degenerate:.2%}"]
                else:
                    cells = [_both(by_system[system][number]) if system in by_system else "–" for system in systems]
                rows.append([name if part is shown[-1] else f"{name}: {part.part}", f"{part.pairs:,}", *cells])
        show(columns, rows)


def telling(part: "Score", parts: "Sequence[Score]", alone: bool) -> bool:
    """Whether ``part`` is shown: the total, parts of a set of several origins, lengths of a set ``alone``."""
    origins = sum(other.by == "origin" for other in parts)
    return part.by == "total" or origins > 1 or (alone and part.by == "length")


def _both(part: "Score") -> str:
    return f"{part.bleu:.2f} / {part.chrf:.2f}"


def show_comparisons(rows: "Sequence[tuple[Scored, Comparison]]", against: str) -> None:
    """A row each metric of each system, set and direction that was compared."""
    columns = ["set", "direction", "system", "metric", "score", against, "difference", "p"]
    show(
        columns,
        [
            [
                *(result.set, "-".join(result.direction), result.system, comparison.metric),
                *(f"{comparison.score:.2f}", f"{comparison.other:.2f}"),
                *(f"{comparison.score - comparison.other:+.2f}", f"{comparison.p_value:.3f}"),
            ]
            for result, comparison in rows
        ],
    )


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table whose first column is text and whose others are figures."""
    table = Table(box=MARKDOWN, pad_edge=True)
    for number, column in enumerate(columns):
        table.add_column(_cell(column), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(width=WIDTH, highlight=False).print(table)


def _cell(text: str) -> str:
    return escape(text.replace("|", r"\|"))
