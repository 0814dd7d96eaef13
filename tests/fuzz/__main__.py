"""``python -m tests.fuzz``: generated requests against the real service."""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loadtest.servers import end_on_sigterm
from tests.fuzz.attempt import load
from tests.fuzz.campaign import campaign, one
from tests.fuzz.kinds import KINDS
from tests.fuzz.oracle import judge
from tests.fuzz.report import Report
from tests.fuzz.target import target


def main() -> int:
    """1 when a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="how many attempts are made (default: 10000)")
    parser.add_argument("--seed", type=int, default=None, help="which they are; a random one unless given")
    parser.add_argument("--kind", action="append", help="make raw requests of this kind only; can be given again")
    parser.add_argument("--kinds", action="store_true", help="list the kinds of raw requests")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send again what a file of a failing run holds")
    options = parser.parse_args()
    if options.kinds:
        print("\n".join(KINDS))
        return 0
    unknown = set(options.kind or []) - set(KINDS)
    if unknown:
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; --kinds lists them")
    end_on_sigterm()
    folder = Path(tempfile.mkdtemp(prefix="dragoman-fuzz-"))
    if options.replay:
        return _replay(options.replay, folder)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    console = Console()
    console.print(f"seed {seed}; what the service says: {folder}/log", highlight=False, soft_wrap=True)
    report = Report(folder)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with target(folder / "log") as service, Progress(*columns, console=console) as bar:
        task = bar.add_task("attempts", total=options.requests)

        def progress(made: int) -> None:
            bar.update(task, advance=made, description=f"attempts ({report.faults.total()} faults)")

        campaign(service, report, seed, options.requests, options.kind or (), progress=progress)
        grown = service.watch.grown / 2**20
    report.show(console)
    console.print(f"seed {seed}; memory has grown by {grown:+.1f} MiB", highlight=False)
    if report.faults:
        return 1
    shutil.rmtree(folder)
    return 0


def _replay(file: Path, folder: Path) -> int:
    """Send one attempt again, and print what comes back."""
    attempt = load(file)
    with target(folder / "log") as service:
        outcome = one(service, attempt)
        faults = judge(attempt, outcome, service.limits)
    print(
        f"{attempt.kind}\nsent:     {attempt.parts!r}\nreceived: {outcome.received!r}\n{outcome.end}, {outcome.seconds:.2f} s"
    )
    print("\n".join([*faults, *service.watch.said()]) or "no fault")
    shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
