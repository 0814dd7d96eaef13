"""A run: attempts in batches, and after each an ordinary request."""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tests.fuzz.attempt import Attempt, Outcome
from tests.fuzz.client import perform
from tests.fuzz.described import Described, document
from tests.fuzz.kinds import KINDS, raw
from tests.fuzz.oracle import judge
from tests.fuzz.report import Report
from tests.fuzz.target import Target
from tests.fuzz.valid import ORDINARY
from tests.service import fetch

__all__ = ["BATCH", "campaign"]

BATCH = 200
CLIENTS = 32
"""Attempts at one time."""
SHARE = 0.5
"""Of the attempts that are made from the description; the others are raw."""
LOST = "an ordinary request is no longer answered with 200"


def attempts(seed: int, count: int, described: Described, batch: int = BATCH) -> Iterator[list[Attempt]]:
    """``count`` attempts in batches, the same for the same seed."""
    number = 0
    for turn, begin in enumerate(range(0, count, batch)):
        size = min(batch, count - begin)
        share = int(size * SHARE)
        found = list(islice(described.attempts(seed * 1_000_003 + turn, share), share))
        while len(found) < size:
            found.append(raw(seed, number))
            number += 1
        yield found


def campaign(
    target: Target,
    report: Report,
    seed: int,
    count: int,
    kinds: Collection[str] = (),
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Make ``count`` attempts and tell ``report`` how they ended; only those of ``kinds``, if any, which are raw.
    After each ``batch`` an ordinary request is made.

    ``progress`` is told how many have been made. It stops early when an ordinary request is no longer answered.
    """
    described = None if kinds else Described(document(fetch(f"{target.url}/openapi.json").content))
    batches = _some(seed, count, kinds, batch) if kinds else attempts(seed, count, described, batch)
    target.watch.begin()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for made in batches:
            outcomes = clients.map(lambda each: one(target, each), made)
            for attempt, outcome in zip(made, outcomes, strict=True):
                report.add(attempt, outcome, _faults(target, attempt, outcome))
                progress(1)
            if not _ordinary(target):
                report.add_faults([LOST, *target.watch.said()])
                return
            target.watch.note()
    report.add_faults(target.watch.faults())


def one(target: Target, attempt: Attempt) -> Outcome:
    return perform(("127.0.0.1", target.port), attempt, target.limits.hang)


def _faults(target: Target, attempt: Attempt, outcome: Outcome) -> list[str]:
    found = judge(attempt, outcome, target.limits)
    if attempt.case is not None and not found:
        for answer in outcome.answers:
            found += Described.faults(attempt, answer)
    return found


def _some(seed: int, count: int, kinds: Collection[str], batch: int) -> Iterator[list[Attempt]]:
    chosen = {name: kind for name, kind in KINDS.items() if name in kinds}
    assert chosen, f"there are no such kinds; there are {', '.join(KINDS)}"
    for begin in range(0, count, batch):
        yield [raw(seed, number, chosen) for number in range(begin, min(count, begin + batch))]


def _ordinary(target: Target) -> bool:
    outcome = one(target, ORDINARY.attempt())
    return [each.status for each in outcome.answers] == [200]
