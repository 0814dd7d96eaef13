"""What a run has found, told on the terminal."""

from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.attempt import Attempt, Outcome, save

__all__ = ["Report"]

EXAMPLES = 3
"""Attempts that are written for each kind of fault."""


class Report:
    """Attempts, how they ended, and faults."""

    def __init__(self, folder: Path) -> None:
        """Failing attempts are written into ``folder``."""
        self._folder = folder
        self.ends: dict[str, Counter[str]] = defaultdict(Counter)
        """By kind: statuses, and ends without one."""
        self.faults: Counter[str] = Counter()
        """How often each was met."""
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        """By fault: the kinds of attempts that met it."""
        self.files: dict[str, list[Path]] = defaultdict(list)
        """By fault: attempts to send again."""
        self.attempts = 0

    def add(self, attempt: Attempt, outcome: Outcome, faults: list[str]) -> None:
        self.attempts += 1
        self.ends[attempt.kind].update([str(each.status) for each in outcome.answers] or [outcome.end])
        file = None
        for fault in faults:
            self.faults[fault] += 1
            self.kinds[fault][attempt.kind] += 1
            if len(self.files[fault]) < EXAMPLES:
                file = file or _save(attempt, faults, outcome, self._folder)
                self.files[fault].append(file)

    def add_faults(self, faults: list[str]) -> None:
        """Those of the service as a whole."""
        self.faults.update(faults)

    def table(self) -> Table:
        """Kinds against statuses."""
        total: Counter[str] = Counter()
        table = Table(title=f"{self.attempts:,} attempts")
        table.add_column("kind", no_wrap=True)
        table.add_column("answers by status, and ends without any")
        for kind, ends in sorted(self.ends.items()):
            total.update(ends)
            table.add_row(kind, _counted(ends))
        table.add_section()
        table.add_row("all", _counted(total))
        return table

    def text(self) -> str:
        """The faults, most frequent first, each with what sends it again."""
        lines = []
        for fault, count in self.faults.most_common():
            kinds = ", ".join(f"{kind} ({number})" for kind, number in self.kinds[fault].most_common(6))
            lines.append(f"{count} × {fault}")
            lines += [f"    by {kinds}"] if kinds else []
            lines += [f"    python -m tests.fuzz --replay {file}" for file in self.files[fault]]
        return "\n".join(lines)

    def show(self, console: Console) -> None:
        console.print(self.table())
        console.print(self.text() or "no fault", markup=False, highlight=False, soft_wrap=True)


def _counted(ends: Counter[str]) -> str:
    return ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))


def _save(attempt: Attempt, faults: list[str], outcome: Outcome, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return save(attempt, faults, outcome, folder)
