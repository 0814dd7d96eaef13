"""Sentences on a device, greedy and with a beam, alone and in company, against the CPU's fp32.

    python -m tests.gpu.sentences BUNDLE --reference FP32BUNDLE --device cuda

Greedy: where a device writes another token than fp32, the two have read the same so far, so fp32 is asked how likely it
finds the device's token. Within `NEAR_TIE` of its own it is a near-tie, and what comes after it means nothing; else
the translation is wrong. Beam: see `tests.gpu.mirror` and `tests.gpu.beams`. It ends in one line of JSON, with 1 when
something is wrong.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.engine.search import Hypothesis
from tests.gpu.beams import unexplained
from tests.gpu.devices import DEVICES, runtime
from tests.gpu.mirror import Comparison, MirroredRuntime
from tests.gpu.work import NEAR_TIE, Translator, sources

Scores = Callable[[Sequence[int], Sequence[tuple[int, ...]]], list[float]]
"""Log-probabilities, by fp32, of the last token of each prefix, for the sentences of these numbers."""


@dataclass(frozen=True)
class Verdict:
    """What was found of some sentences."""

    sentences: int
    equal: int
    """Token by token."""
    near_ties: int
    """Sentences that part from the reference at a near-tie."""
    wrong: int
    farthest: float
    """Nats: of the tokens at which sentences part, the most by which one is less likely than the reference's."""
    largest: float
    """Nats: the largest difference of a token's log-probability, in the sentences that are equal."""


def judge(found: Sequence[Hypothesis], expected: Sequence[Hypothesis], score: Scores, bound: float) -> Verdict:
    """Compare greedy translations; equal tokens with log-probabilities farther than ``bound`` apart are wrong too."""
    parting: dict[int, int] = {}
    wrong, largest = set(), 0.0
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if list(one.tokens) == list(other.tokens):
            errors = [abs(a - b) for a, b in zip(one.log_probabilities, other.log_probabilities, strict=True)]
            if not all(error <= bound for error in errors):
                wrong.add(number)
            largest = max([largest, *errors])
            continue
        same = [a == b for a, b in zip(one.tokens, other.tokens, strict=False)]
        if all(same):  # one is the beginning of the other, though both have the same limit
            wrong.add(number)
        else:
            parting[number] = same.index(False)
    numbers = list(parting)
    likely = score(numbers, [tuple(found[number].tokens[: parting[number] + 1]) for number in numbers])
    behind = {
        number: expected[number].log_probabilities[parting[number]] - each
        for number, each in zip(numbers, likely, strict=True)
    }
    wrong |= {number for number, each in behind.items() if not each <= NEAR_TIE}
    equal = sum(list(one.tokens) == list(other.tokens) for one, other in zip(found, expected, strict=True))
    return Verdict(
        sentences=len(found),
        equal=equal,
        near_ties=len(numbers) - len(wrong & set(numbers)),
        wrong=len(wrong),
        farthest=max(behind.values(), default=0.0),
        largest=largest,
    )


def differing(some: Sequence[Hypothesis], others: Sequence[Hypothesis]) -> list[int]:
    """The numbers of the sentences that are translated otherwise, token by token."""
    return [
        number
        for number, (one, other) in enumerate(zip(some, others, strict=True))
        if list(one.tokens) != list(other.tokens)
    ]


def check(
    bundle: Path, reference: Path, device: str, count: int, alone: int, rows: int, beam: int
) -> dict[str, object]:
    """Everything that is said above, of ``count`` sentences in company and of ``alone`` of them alone."""
    on_device, on_cpu = runtime(bundle, device), runtime(reference, "cpu")
    parity = on_device.manifest.parity
    assert parity  # a bundle is not written without
    work = sources(bundle, on_device.manifest, count)
    bound = parity.log_probability_bound
    translations = len(work) + len(work[:alone])
    result = {"bundle": bundle.name, "sentences": len(work), "translations": translations, "bound": bound}

    ours, theirs = Translator(on_device, rows), Translator(on_cpu, rows, device="cpu")
    expected = theirs.company(work)

    def score(numbers: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> list[float]:
        read = theirs.company([work[number] for number in numbers], prefixes) if numbers else []
        # Of a last token that the model cannot read nothing is known.
        whole = [len(each.tokens) == len(prefix) for each, prefix in zip(read, prefixes, strict=True)]
        return [each.log_probabilities[-1] if known else math.nan for each, known in zip(read, whole, strict=True)]

    together = ours.company(work)
    single = ours.alone(work[:alone])
    company, apart = judge(together, expected, score, bound), judge(single, expected[: len(single)], score, bound)
    greedy = {
        "wrong": company.wrong + apart.wrong,
        "company": asdict(company),
        "alone": asdict(apart),
        "alone_differs_from_company": len(differing(single, together[: len(single)])),
    }
    ours.close()
    theirs.close()

    comparison = Comparison(bound)
    ours, theirs = Translator(on_device, rows, beam), Translator(on_cpu, rows, beam, "cpu")
    mirror = Translator(MirroredRuntime(on_device, on_cpu, comparison), rows, beam)
    expected, together, single = theirs.company(work), ours.company(work), ours.alone(work[:alone])
    # Everybody in company, and alone whoever is then translated otherwise.
    followed = mirror.company(work)
    astray = differing(single, together[: len(single)])
    again = dict(zip(astray, mirror.alone([work[number] for number in astray]), strict=True))

    def read(numbers: Sequence[int], tokens: Sequence[tuple[int, ...]]) -> list[Hypothesis]:
        return theirs.company([work[number] for number in numbers], tokens) if numbers else []

    proven = [[hypothesis] for hypothesis in followed]
    lost = unexplained(together, expected, proven, read, bound)
    proven = [[followed[number], again.get(number, followed[number])] for number in range(len(single))]
    lost_alone = unexplained(single, expected[: len(single)], proven, read, bound)
    searched = {
        "wrong": len(lost) + len(lost_alone) + comparison.outside,
        "beam": beam,
        "equal": len(work) - len(differing(together, expected)),
        "alone_differs_from_company": len(astray),
        "unexplained": lost,
        "unexplained_alone": lost_alone,
        "again_differs_from_company": len(differing(followed, together)),
        "decisions": comparison.decisions,
        "outside": comparison.outside,
        "largest": comparison.largest,
    }
    for each in (ours, theirs, mirror):
        each.close()
    wrong = company.wrong + apart.wrong + len(lost) + len(lost_alone) + comparison.outside
    return {**result, "wrong": wrong, "greedy": greedy, "search": searched, "passed": not wrong}


def main(arguments: Sequence[str]) -> int:
    """Run the check with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="The same checkpoint's bundle in fp32.")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--alone", type=int, default=500, help="Sentences that are translated alone, too.")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--beam", type=int, default=4)
    options = parser.parse_args(arguments)
    result = check(**vars(options))
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
