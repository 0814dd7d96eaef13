"""Two versions of this service side by side: how long a request takes when the engine computes nothing, or whether
both answer alike.

"New" is the version that this command belongs to, "old" is the checkout that --against names. Both services run at the
same time, and only one is asked at a time, one request after another. They take turns of 10 requests. For every round
both are started anew, since the same code is faster or slower from start to start; who starts first starts second in
the next round. The last line of the output is JSON.

Run: python -m serving.bench.front_door --against CHECKOUT
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from loadtest.payloads import SENTENCES, read_sentences
from loadtest.servers import StartFailed, end_on_sigterm
from loadtest.timings import percentile
from serving.bench.answers import Difference, ask, compare
from serving.bench.client import AnswerError, Client
from serving.bench.idle.sitecustomize import LOG_PROBABILITIES
from serving.bench.machine import describe
from serving.bench.questions import Question, acceptance
from serving.bench.versions import Version

console = Console(stderr=True, highlight=False)
ROUTE, BODY = "/v1/translate", b'{"text": "The file could not be opened."}'
WARM_UP = 300
"""Requests to each service before a round."""
BLOCK = 10
"""Requests to one service before the other is asked: both must meet it alike when the machine becomes slower."""
SHOWN = 5
"""Differences that are printed."""
PACKAGES = ("fastapi", "starlette", "uvicorn", "httptools", "pydantic")


@dataclass(frozen=True)
class Round:
    """The requests to one service in one round, in microseconds."""

    p50_us: float
    p90_us: float
    p99_us: float
    cpu_us: float
    """The processor time of the service's process for a request."""


@dataclass(frozen=True)
class Pair:
    """One round of both."""

    old: Round
    new: Round

    @property
    def ratio(self) -> float:
        """The new version's p50 over the old one's."""
        return self.new.p50_us / self.old.p50_us


@dataclass(frozen=True)
class Asked:
    """A service whose engine computes nothing, and who asks it."""

    client: Client
    process: psutil.Process

    def ask(self, times: list[float], requests: int) -> None:
        """Add to ``times`` the microseconds of so many requests, one after another."""
        clock = time.perf_counter_ns
        for _ in range(requests):
            begin = clock()
            self.client.ask()
            times.append((clock() - begin) / 1e3)

    @property
    def cpu_us(self) -> float:
        """The processor time of the service's process up to now."""
        used = self.process.cpu_times()
        return (used.user + used.system) * 1e6


def measure(old: Asked, new: Asked, requests: int, backwards: bool) -> Pair:
    """One round: ``requests`` to each, a `BLOCK` at a time: old, new, new, old, …, or ``backwards`` new, old, old, …"""
    both = {old: list[float](), new: list[float]()}
    before = {each: each.cpu_us for each in both}
    for number, begin in enumerate(range(0, requests, BLOCK)):
        for each in (new, old) if (number % 2 == 1) != backwards else (old, new):
            each.ask(both[each], min(BLOCK, requests - begin))
    rounds = [_round(times, each.cpu_us - before[each]) for each, times in both.items()]
    return Pair(old=rounds[0], new=rounds[1])


def _round(times: list[float], cpu_us: float) -> Round:
    p50, p90, p99 = (round(percentile(times, share), 1) for share in (0.5, 0.9, 0.99))
    return Round(p50, p90, p99, round(cpu_us / len(times), 1))


@contextmanager
def idling(version: Version, keep: bool) -> Iterator[Asked]:
    """The service of ``version``, whose engine computes nothing any more."""
    with version.serving(idle=True) as running, Client(running.port, ROUTE, BODY, keep) as client:
        client.ask()  # while the engine still computes
        assert running.begin_idling
        running.begin_idling.touch()
        score = json.loads(client.ask())["translations"][0]["score"]
        if score != sum(LOG_PROBABILITIES):
            raise StartFailed(f"the engine of {version.checkout} still computes: its jobs are submitted another way")
        yield Asked(client, psutil.Process(running.server.process.pid))


def measure_anew(old: Version, new: Version, requests: int, keep: bool, backwards: bool) -> Pair:
    """One round of services that are started for it; ``backwards``, the new one first."""
    with ExitStack() as stack:
        order = (new, old) if backwards else (old, new)
        services = {version: stack.enter_context(idling(version, keep)) for version in order}
        both = services[old], services[new]
        measure(*both, WARM_UP, backwards)
        return measure(*both, requests, backwards)


def speed(old: Version, new: Version, options: argparse.Namespace) -> int:
    """Measure and print how long a request takes; returns the exit status."""
    machine = describe([], PACKAGES)
    console.print(f"{machine.cpu}, {machine.cores} cores; load before: {machine.load_average:.2f}", markup=False)
    pairs = list[Pair]()
    # Redrawn between rounds only: a thread that draws would be measured with them.
    with Progress(console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("rounds", total=options.rounds)
        progress.refresh()
        for number in range(options.rounds):
            pairs.append(measure_anew(old, new, options.requests, not options.new_connection, number % 2 == 1))
            progress.update(task, advance=1, refresh=True)
    ratio = round(median(pair.ratio for pair in pairs), 3)
    console.print(_table(pairs, old, new, "a new connection each" if options.new_connection else "one connection"))
    console.print(f"p50, new over old: {ratio:.3f} (median of {len(pairs)} rounds of {options.requests} requests)")
    report = {
        "machine": asdict(machine),
        "old": old.commit,
        "new": new.commit,
        "requests": options.requests,
        "new_connection": options.new_connection,
        "rounds": [asdict(pair) | {"ratio": round(pair.ratio, 3)} for pair in pairs],
        "ratio": ratio,
    }
    print(json.dumps(report))
    return 0


def _table(pairs: Sequence[Pair], old: Version, new: Version, how: str) -> Table:
    title = f"microseconds a request, {how}; old: {old.commit or old.checkout}, new: {new.commit or new.checkout}"
    table = Table("round", "version", title=title, title_justify="left")
    for name in ("p50", "p90", "p99", "server's CPU", "new / old"):
        table.add_column(name, justify="right")
    for number, pair in enumerate(pairs, 1):
        for version, each in ((old, pair.old), (new, pair.new)):
            figures = [f"{value:,.0f}" for value in (each.p50_us, each.p90_us, each.p99_us, each.cpu_us)]
            first = version is old
            table.add_row(str(number) if first else "", version.name, *figures, "" if first else f"{pair.ratio:.3f}")
        table.add_section()
    return table


def answers(old: Version, new: Version, questions: Sequence[Question]) -> int:
    """Compare and print how both answer ``questions``; returns the exit status, 1 when any answer differs."""
    with old.serving(idle=False) as one, new.serving(idle=False) as other:

        def different(question: Question) -> Difference | None:
            return compare(question, *(ask(running.port, question) for running in (one, other)))

        compared = [different(each) for each in track(questions, "questions", console=console, transient=True)]
    differences = [each for each in compared if each]
    for each in differences[:SHOWN]:
        console.print(str(each), markup=False, soft_wrap=True)
    identical = len(questions) - len(differences)
    console.print(f"{identical} of {len(questions)} answers are identical; old: {old.commit}, new: {new.commit}")
    report: dict[str, Any] = {"old": old.commit, "new": new.commit, "asked": len(questions), "identical": identical}
    print(json.dumps(report | {"differences": [str(each) for each in differences]}))
    return 1 if differences else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; returns the exit status."""
    options = _parse(arguments)
    old = Version("old", options.against.resolve(), options.python)
    new = Version("new", Path(__file__).resolve().parents[2], sys.executable)
    try:
        if options.answers:
            return answers(old, new, acceptance(read_sentences(SENTENCES)))
        return speed(old, new, options)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (AnswerError, OSError, StartFailed) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m serving.bench.front_door",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--against", type=_checkout, required=True, help="the other version: a checkout, such as git worktree makes one"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="runs the other version, if it needs other packages (this Python)"
    )
    parser.add_argument(
        "--answers", action="store_true", help="compare answers in place of times; exit status 1 if any differs"
    )
    parser.add_argument("--new-connection", action="store_true", help="open a connection for every request")
    parser.add_argument("--requests", type=_count, default=1000, help="requests to each version in a round (1000)")
    parser.add_argument("--rounds", type=_count, default=5, help="rounds (5)")
    return parser.parse_args(arguments)


def _checkout(text: str) -> Path:
    if not (Path(text) / "serving" / "cli.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no checkout of this repository: it has no serving/cli.py")
    return Path(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main(sys.argv[1:]))
