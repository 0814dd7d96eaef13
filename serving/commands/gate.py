"""What the parity gate found, as a person reads it."""

from rich.console import Console
from rich.table import Table

from export.parity import ParityReport


def show(report: ParityReport, console: Console) -> None:
    """Print ``report``."""
    table = Table("rows", "source tokens", "steps", "tokens equal", "log-probability", "memory", "attention weights")
    for case in report.cases:
        table.add_row(
            str(case.rows),
            f"{case.lengths[0]} to {case.lengths[1]}",
            str(case.steps),
            f"{case.tokens_equal} of {case.tokens}",
            *(f"{error:.1e}" for error in (case.log_probability_error, case.memory_error, case.attention_error)),
        )
    console.print(f"ONNX Runtime against {report.reference}: largest differences", table)
    if long := report.long:
        console.print(
            f"sequences of {long.lengths[0]} to {long.lengths[1]} tokens, {long.steps} steps: {long.tokens_equal} of "
            f"{long.tokens} tokens equal, log-probability {long.log_probability_error:.1e}, at half of the tokens "
            f"{long.typical_error:.1e}"
        )
    console.print(f"at half of the tokens no log-probability differs by more than {report.typical_error:.1e}")
    if report.near_tie is not None:
        console.print(
            f"at half of the tokens the best one's log-probability differs by no more than {report.best_error:.1e}; "
            f"{report.tokens_differing} tokens differ, none outside the {report.near_ties} near-ties "
            f"within {report.near_tie}"
        )
    if report.vector_error is not None:
        console.print(f"no number of a sentence vector differs by more than {report.vector_error:.1e}")
