"""What becomes of the timings: plain numbers in, plain numbers out."""

from pathlib import Path

import pytest

from model.config import ModelConfig
from serving.bench.booth import Timed
from serving.bench.machine import Ceiling, Machine
from serving.bench.rounds import Cell, Entrant, Variant, excuse, summarise, variants
from serving.bench.subjects import Subject
from serving.bench.work import multiply_adds

OURS, PEER, TORCH = Entrant("dragoman", "int8"), Entrant("ctranslate2", "int8"), Entrant("pytorch", "fp32")
MACHINE = Machine("cpu", 2, (), 1, 0.0, "system", {}, (Ceiling("int8", 2, 100.0),))


def passes(*seconds: float, tokens: int = 100) -> list[Timed]:
    return [Timed(each, tokens) for each in seconds]


def test_medians_and_ratios_round_by_round(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    timings = {
        Variant(OURS, False, 2): passes(0.5, 0.25, 1.0),
        # Between the second round and the third everything became slower; the ratio of a round does not mind.
        Variant(PEER, False, 2): passes(1.0, 1.0, 4.0),
    }
    ours, peer = summarise(Cell("any", 1, 8, 2), timings, 4, subject, 50, MACHINE)
    assert ours.rounds == (200, 400, 100)
    assert ours.tokens_per_second == 200
    assert ours.latency_ms == 125
    assert ours.times_ctranslate2_int8 == 4
    assert peer.times_ctranslate2_int8 == 1
    assert (ours.engine, ours.precision, ours.search, ours.rows, ours.threads) == ("dragoman", "int8", "greedy", 8, 2)
    assert ours.ceiling_share == pytest.approx(multiply_adds(tiny_config, 50, 100) / 0.5 / 100e9, abs=1e-4)


def test_of_two_ways_to_use_threads_the_better_is_reported(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    timings = {Variant(PEER, False, 2): passes(1.0, 1.0), Variant(PEER, True, 2): passes(0.5, 0.5)}
    [result] = summarise(Cell("any", 4, 8, 2), timings, 1, subject, 50, MACHINE)
    assert result.tokens_per_second == 200
    assert result.setting == "inter_threads=2, intra_threads=1"
    assert result.search == "beam 4"


def test_without_the_peer_there_is_no_ratio_and_without_a_ceiling_no_share(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    [result] = summarise(Cell("any", 1, 8, 1), {Variant(OURS, False, 1): passes(1.0)}, 1, subject, 50, MACHINE)
    assert result.times_ctranslate2_int8 is None
    assert result.ceiling_share is None


def test_only_ctranslate2_cuts_batches_and_only_where_there_is_something_to_cut() -> None:
    assert [variant.split for variant in variants(PEER, 2, 8)] == [False, True]
    assert [variant.split for variant in variants(PEER, 2, 1)] == [False]
    assert [variant.split for variant in variants(PEER, 1, 8)] == [False]
    assert [variant.split for variant in variants(OURS, 2, 8)] == [False]


def test_pytorch_is_excused_from_beams() -> None:
    assert excuse(TORCH, 1) is None
    assert excuse(TORCH, 4)
    assert excuse(OURS, 4) is None
