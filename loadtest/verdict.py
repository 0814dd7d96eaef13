"""Whether a service held, said at the end."""

from collections.abc import Sequence

from rich.console import Console


def tell(console: Console, faults: Sequence[str]) -> None:
    """Print each of ``faults``, or that there are none."""
    for fault in faults:
        console.print(fault, style="red", markup=False, soft_wrap=True)
    if not faults:
        console.print("held", style="green")
