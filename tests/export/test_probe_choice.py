"""Which sentences become probes: the surest, of every language, that notice a fault, and a long one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import BUNDLES, read_manifest
from export.probe_choice import COUNT, LEAST, LONG, SHORT, choose
from export.probes import LAST, PAST, TOLERANCES
from export.stepper import Stepper
from model.tokenizer import END, START, Tokenizer
from tests.conftest import BASE, SMALL

VOCABULARY = 40


class Sure:
    """Stands in for a bundle whose next token is the next of the source, as sure as the source's second token says.

    With ``deaf`` its probabilities do not depend on how much of the source is seen.
    """

    def __init__(self, deaf: bool = False) -> None:
        self.deaf = deaf
        self.lengths = np.zeros(0, np.int32)

    def encode(self, source: Any, lengths: Any) -> Any:
        self.source, self.true, self.lengths = source, lengths, lengths.astype(np.int32)

    def step(self, token: Any, position: int) -> Any:
        scores = np.zeros((len(token), VOCABULARY))
        for row, source in enumerate(self.source):
            words = int(self.true[row])
            scores[row, source[1 + position] if position + 1 < words else END] = source[1] * 1.0
            if not self.deaf:
                scores[row, 19] = 0.8 * source[1] + 3 * abs(self.lengths[row] - words)
        return (scores - np.log(np.exp(scores).sum(1, keepdims=True))).astype(np.float32)


def sentence(language: int, sureness: int, words: int) -> list[int]:
    return [language, sureness, *[20 + (sureness + word) % 20 for word in range(words)], END]


def choose_from(sources: list[list[int]], stepper: Any = None, precision: str = "int8", longest: int = 256) -> Any:
    return choose(stepper or Sure(), sources, precision, longest)


def test_the_surest_are_chosen_of_every_language_alike_and_a_long_one() -> None:
    sources = [sentence(4 + sureness % 2, sureness, words=4) for sureness in range(2, 19)]
    probes = choose_from(sources)
    short, long = probes.probes[:-1], probes.probes[-1]
    assert len(short) == COUNT
    assert [probe.source[0] for probe in short].count(4) == COUNT / 2
    assert sorted(probe.source[1] for probe in short) == list(range(11, 19))
    assert all(probe.tokens == probe.source[1:] for probe in short)
    assert all(probe.margin >= probes.margin == TOLERANCES["int8"].margin for probe in probes.probes)
    assert probes.longest == len(long.tokens) == LONG - 1 >= PAST
    assert long.source[2:7] == long.source[7:12]


def test_a_sentence_that_gets_unsure_is_cut_before_it_does_and_comes_after_whole_ones() -> None:
    class Tiring(Sure):
        def step(self, token: Any, position: int) -> Any:
            likely = super().step(token, position)
            tired = [row for row, source in enumerate(self.source) if source[1] == 19 and position == 5]
            likely[tired] = -np.log(VOCABULARY)
            return likely

    probes = choose_from([sentence(4, 19, 8), sentence(4, 9, 8)], Tiring())
    whole, cut, *_ = probes.probes
    assert whole.source[1] == 9
    assert whole.tokens[-1] == END
    assert cut.tokens == cut.source[1:6]


def test_what_does_not_notice_an_unseen_key_is_left_out_but_for_the_long_one() -> None:
    sources = [sentence(4, sureness, 4) for sureness in range(5, 19)]
    assert len(choose_from(sources).probes) == COUNT + 1
    [long] = choose_from(sources, Sure(deaf=True)).probes
    assert len(long.tokens) >= PAST


def test_short_ones_come_last_and_long_ones_are_no_short_probes() -> None:
    sources = [sentence(4, 18, 0), sentence(4, 9, LEAST), sentence(4, 17, SHORT)]
    first, second, *_ = choose_from(sources).probes
    assert first.source[1] == 9
    assert second.source[1] == 18


def test_a_model_that_reads_little_has_as_long_a_probe_as_there_is() -> None:
    probes = choose_from([sentence(4, sureness, 4) for sureness in range(5, 9)], longest=24)
    assert probes.longest == 23 < PAST


def test_a_model_that_is_sure_of_nothing_has_no_probes() -> None:
    class Unsure(Sure):
        def step(self, token: Any, position: int) -> Any:
            return np.full((len(token), VOCABULARY), -np.log(VOCABULARY), np.float32)

    probes = choose_from([sentence(4, 9, 4)], Unsure())
    assert (probes.probes, probes.longest) == ((), 0)


@pytest.mark.parametrize("name", [SMALL, BASE])
def test_shipped_bundles_have_probes_of_both_languages_and_a_long_one(name: str) -> None:
    """They are written by the slow stepper; that they come out of the engine is in `tests/serving`."""
    manifest = read_manifest(BUNDLES / name)
    probes = manifest.probes
    assert probes
    assert (probes.margin, probes.tolerance) == TOLERANCES["int8"]
    assert probes.longest >= PAST
    assert len(probes.probes) == COUNT + 1
    assert {probe.source[0] for probe in probes.probes[:-1]} == set(manifest.languages.values())
    tokenizer = Tokenizer.load(BUNDLES / name / "tokenizer.model")
    assert all(tokenizer.decode(list(probe.tokens)) for probe in probes.probes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_probes_are_what_the_bundle_writes(bundle_of: Callable[..., Path], precision: str) -> None:
    folder = bundle_of(precision, "fused")
    manifest = read_manifest(folder)
    assert manifest.probes
    assert manifest.probes.probes
    stepper = Stepper(folder, manifest.model.max_positions)
    for probe in manifest.probes.probes:
        lengths = np.array([len(probe.source)])
        stepper.encode(np.array([probe.source]), lengths)
        token, log_probabilities = START, []
        for position, expected in enumerate(probe.tokens):
            likely = stepper.step(np.array([token]), position)[0]
            token = int(likely.argmax())
            log_probabilities.append(float(likely[token]))
            assert token == expected
            assert np.sort(likely)[-2] < likely[token] - manifest.probes.margin
        assert np.mean(log_probabilities) == pytest.approx(probe.mean_log_probability, abs=2e-3)
        assert np.mean(log_probabilities[-LAST:]) == pytest.approx(probe.last_log_probability, abs=2e-3)
