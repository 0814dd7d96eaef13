"""What becomes of the timings: plain numbers in, plain numbers out."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from model.config import ModelConfig
from serving.bench import rounds
from serving.bench.booth import Batch, BoothError, Timed
from serving.bench.contestants import Entrant, Seat
from serving.bench.machine import Ceiling, Machine
from serving.bench.rounds import Cell, Plan, Result, Skipped, Variant, against_peers, measure, summarise, variants
from serving.bench.subjects import Subject
from serving.bench.work import multiply_adds

OURS, PEER = Entrant("dragoman", "int8"), Entrant("ctranslate2", "int8")
FAILS = "it fails at two rows"
MACHINE = Machine("cpu", 2, (), 1, 0.0, "system", {}, (Ceiling("int8", 2, 100.0),))


def passes(*seconds: float, setting: str = "") -> list[Timed]:
    return [Timed(each, 100, setting) for each in seconds]


def test_medians_and_ratios_round_by_round(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    timings = {
        Variant(OURS, False): passes(0.5, 0.25, 1.0),
        # Between the second round and the third everything became slower; the ratio of a round does not mind.
        Variant(PEER, False): passes(1.0, 1.0, 4.0),
    }
    ours, peer = summarise(Cell("any", 1, 8, 2), timings, 4, subject, 50, MACHINE)
    assert ours.rounds == (200, 400, 100)
    assert ours.tokens_per_second == 200
    assert ours.latency_ms == 125
    assert ours.tokens == 100
    assert ours.times_peer == 4
    assert peer.times_peer == 1
    assert (ours.engine, ours.precision, ours.search, ours.rows, ours.threads) == ("dragoman", "int8", "greedy", 8, 2)
    assert ours.ceiling_share == pytest.approx(multiply_adds(tiny_config, 50, 100) / 0.5 / 100e9, abs=1e-4)


def test_of_two_ways_to_use_threads_the_better_is_reported(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    timings = {Variant(PEER, False): passes(1.0, 1.0), Variant(PEER, True): passes(0.5, 0.5, setting="cut")}
    [result] = summarise(Cell("any", 4, 8, 2), timings, 1, subject, 50, MACHINE)
    assert result.tokens_per_second == 200
    assert result.setting == "cut"
    assert result.search == "beam 4"


def test_without_the_peer_there_is_no_ratio_and_without_a_ceiling_no_share(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    [result] = summarise(Cell("any", 1, 8, 1), {Variant(OURS, False): passes(1.0)}, 1, subject, 50, MACHINE)
    assert result.times_peer is None
    assert result.ceiling_share is None


def test_only_ctranslate2_cuts_batches_and_only_where_there_is_something_to_cut() -> None:
    def split(entrant: Entrant, rows: int, threads: int, device: str = "cpu") -> list[bool]:
        return [variant.split for variant in variants(entrant, Cell("any", 1, rows, threads, device))]

    assert split(PEER, 8, 2) == [False, True]
    assert split(PEER, 1, 2) == split(PEER, 8, 1) == split(OURS, 8, 2) == split(PEER, 8, 2, "cuda") == [False]


def gpu_cell(rows: int) -> Cell:
    return Cell("any", 1, rows, 1, "cuda")


def test_on_a_gpu_the_peer_is_the_faster_of_two(tiny_config: ModelConfig) -> None:
    subject = Subject("any", Path(), tiny_config, [])
    ours, standard = Variant(Entrant("dragoman", "fp16"), False), Variant(Entrant("dragoman", "fp16-standard"), False)
    slower, faster = Variant(Entrant("ctranslate2", "fp16"), False), Variant(Entrant("pytorch", "fp16"), False)
    timings = {ours: passes(1.0), standard: passes(2.0), slower: passes(4.0), faster: passes(3.0)}
    results = summarise(gpu_cell(256), timings, 1, subject, 50, MACHINE)
    assert [result.times_peer for result in results] == [3, 1.5, 0.75, 1]
    assert {(result.peer, result.device, result.where) for result in results} == {("pytorch fp16", "cuda", "cuda")}
    [alone, *_] = summarise(gpu_cell(256), {ours: passes(1.0), slower: passes(4.0)}, 1, subject, 50, MACHINE)
    assert (alone.peer, alone.times_peer) == ("ctranslate2 fp16", 4)
    fewer = summarise(gpu_cell(32), {ours: passes(0.1), faster: passes(3.0)}, 1, subject, 50, MACHINE)
    assert against_peers([*fewer, *results]) == [results[0]]
    assert against_peers([result for result in results if result.engine != "dragoman"]) == []


class Scripted:
    """A booth whose engine does what is said of it; the others of its kind are in `asked`."""

    asked: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, entrant: Entrant, seat: Seat) -> None:
        self.entrant = entrant
        if entrant.precision == "missing":
            raise BoothError("it cannot start")

    def measure(self, batches: Sequence[Batch]) -> Timed:
        if self.entrant.precision == "failing" and len(batches[0][0]) == 2:
            raise BoothError(FAILS)
        self.asked.append((self.entrant.precision, len(batches)))
        return Timed(1.0, 10)

    def close(self) -> None:
        pass


def test_who_fails_is_left_out_from_there_on_and_the_others_go_on(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "Booth", Scripted)
    subject = Subject("any", Path(), tiny_config, [[5, 3]] * 4)
    entrants = [Entrant("pytorch", name) for name in ("missing", "failing", "fp16")]
    plan = Plan("cuda", entrants, [1], [1, 2, 4], [1], 2)
    found = list(measure(subject, plan, MACHINE, lambda *_: None))
    results = [(one.precision, one.rows, one.times_peer) for one in found if isinstance(one, Result)]
    assert results == [("failing", 1, 1), ("fp16", 1, 1), ("fp16", 2, 1), ("fp16", 4, 1)]
    skipped = [(one.entrant.precision, one.cell.rows, one.reason) for one in found if isinstance(one, Skipped)]
    assert skipped == [
        ("missing", 1, "it cannot start"),
        *(each for rows in (2, 4) for each in [("missing", rows, "it cannot start"), ("failing", rows, FAILS)]),
    ]
    # On a GPU all batches are warmed up, and then the largest again.
    assert [count for precision, count in Scripted.asked if precision == "fp16"] == [4, 1, 4, 4, 2, 1, 2, 2, 1, 1, 1, 1]
