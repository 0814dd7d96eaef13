"""Steps of the decoder graph in rows, with one thread and with several."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import MANIFEST, Manifest
from export.exporter import Precision
from export.quantize import calibrate, quantized
from model.config import ModelConfig
from model.tokenizer import END
from model.transformer import Transformer
from serving.bench.subjects import write_bundle
from serving.runtime.cpu import CpuRuntime
from serving.runtime.cpu_decoder import TRIALS
from serving.runtime.rows import Slot
from serving.runtime.step_result import Ask, StepResult
from serving.runtime.threading_strategy import Strategy
from tests.serving.runtime.batches import SOURCES, begin, decoder_of, runtime_of, write


@pytest.fixture(params=["fp32", "int8"])
def runtime(request: pytest.FixtureRequest, lively_bundle: Callable[[Precision], Path]) -> CpuRuntime:
    return runtime_of(lively_bundle(request.param))


def test_the_cache_has_the_decoders_names_and_nothing_in_it(runtime: CpuRuntime) -> None:
    memory: Any = runtime.batch(5)._cache
    inputs = {spec.name for spec in runtime.manifest.graphs["decoder"].inputs}
    assert set(memory.arrays) == inputs - {"token", "position", "lengths", "k", "given"}
    assert not any(array.any() for array in memory.arrays.values())


def test_the_k_best_are_best_first_and_log_probabilities(runtime: CpuRuntime) -> None:
    vocabulary = runtime.manifest.model.vocabulary
    batch = begin(runtime, SOURCES)
    batch._state.given[:3] = [0, vocabulary - 1, 77]
    step = batch._decoder.step
    tokens, likely, given = (array.copy() for array in step(3, vocabulary, False)[:3])
    assert (np.diff(likely, axis=1) <= 0).all()
    np.testing.assert_allclose(np.exp(likely).sum(axis=1), 1, atol=1e-4)
    for row in range(3):
        assert sorted(tokens[row].tolist()) == list(range(vocabulary))
        assert given[row] == likely[row][tokens[row] == batch._state.given[row]]
    few = step(3, 2, False)
    assert np.array_equal(few[0], tokens[:, :2])
    assert np.array_equal(few[1], likely[:, :2])
    assert np.array_equal(few[2], given)


def test_each_row_is_at_its_own_position(runtime: CpuRuntime) -> None:
    """One row steps alone, and then beside others that have written more or less."""
    whole = [write(begin(runtime, [source]), 1, 12) for source in SOURCES]
    batch = begin(runtime, SOURCES)
    write(batch, 3, 4)
    write(batch, 2, 3)
    write(batch, 1, 2)
    assert batch._state.position[:3].tolist() == [9, 7, 4]
    following = write(batch, 3, 3)
    for row, begins in enumerate((9, 7, 4)):
        assert [[step[row], step[3 + row]] for step in following] == whole[row][begins : begins + 3]


@pytest.mark.parametrize("strategy", ["single", "shared", "lanes"])
def test_all_log_probabilities_lead_to_the_tokens_that_the_graph_finds(
    lively_bundle: Callable[[Precision], Path], strategy: Strategy
) -> None:
    runtime = runtime_of(lively_bundle("int8"), 3)
    vocabulary = runtime.manifest.model.vocabulary
    decoder = decoder_of(begin(runtime, SOURCES), lambda *_: strategy)
    tokens, likely, given = (array.copy() for array in decoder.step(3, vocabulary, False)[:3])
    step = StepResult(decoder.step(3, 2, True), [])
    for row in range(3):
        for k in (2, 3, 100, vocabulary, vocabulary + 9):
            assert step.candidates(Ask(Slot(row), k)) == (
                tokens[row, :k].tolist(),
                likely[row, :k].tolist(),
                given[row],
            )


def test_all_bindings_share_the_room_for_all_log_probabilities(lively_bundle: Callable[[Precision], Path]) -> None:
    """Each with a room of its own would take a gigabyte for a hundred rows of a large vocabulary."""
    decoder = decoder_of(begin(runtime_of(lively_bundle("int8")), SOURCES * 3, 9))
    rooms = [decoder.step(rows, k, True).log_softmax for rows in (9, 2, 5) for k in (2, 4)]
    assert all(room is not None and np.shares_memory(room, rooms[0]) for room in rooms)
    assert [len(room) for room in rooms if room is not None] == [9, 9, 2, 2, 5, 5]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("strategy", ["single", "shared", "lanes"])
def test_rows_get_the_same_bits_with_every_strategy(
    lively_bundle: Callable[[Precision], Path], precision: Precision, threads: int, strategy: Strategy
) -> None:
    bundle = lively_bundle(precision)
    sources = [[*SOURCES[row % 3][:-1], 30 + row, END] for row in range(20)]
    written = []
    for runtime in (runtime_of(bundle), runtime_of(bundle, threads)):
        batch = begin(runtime, sources, len(sources))
        decoder = decoder_of(batch, (lambda *_: strategy) if runtime.encoder_cost.lanes > 1 else None)
        written.append([write(batch, rows, 3) for rows in (threads, 20, 11)])
    assert written[0] == written[1]
    assert len(decoder._bindings.kept[11, 2, False, strategy][0]) == (threads if strategy == "lanes" else 1)


def test_the_strategies_are_timed_in_turns_at_the_start(
    lively_bundle: Callable[[Precision], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(begin(runtime_of(lively_bundle("int8"), 3), SOURCES, 10))
    timed: list[tuple[int, Strategy]] = []

    def seconds(rows: int, k: int, whole: bool, strategy: Strategy) -> tuple[Any, float, bool]:
        timed.append((rows, strategy))
        return None, {"single": 1.0, "shared": 0.8 if rows < 8 else 1.2, "lanes": 2.0}[strategy], False

    monkeypatch.setattr(decoder, "_timed", seconds)
    decoder.tune()
    assert timed[:4] == [(1, "single"), (1, "shared")] * 2
    assert timed[-6:] == [(8, "single"), (8, "shared"), (8, "lanes")] * 2
    assert timed.count((8, "lanes")) == TRIALS + 1
    assert [decoder.strategy.chosen(rows) for rows in (1, 2, 7, 8, 10)] == ["shared"] * 3 + ["single"] * 2


def test_the_trials_at_the_start_leave_what_follows_as_it_was(
    runtime: CpuRuntime, lively_bundle: Callable[[Precision], Path]
) -> None:
    plain = write(begin(runtime, SOURCES), 3, 6)
    tuned = runtime_of(lively_bundle("int8" if runtime.manifest.precision == "int8" else "fp32"), 2)
    assert write(begin(tuned, SOURCES), 3, 6) == plain


@pytest.mark.parametrize("row", [0, 16])
def test_a_fault_in_one_lane_reaches_the_caller_when_all_lanes_have_ended(
    lively_bundle: Callable[[Precision], Path], row: int
) -> None:
    runtime = runtime_of(lively_bundle("int8"), 2)
    batch = begin(runtime, SOURCES * 6, 18)
    decoder = decoder_of(batch, lambda *_: "lanes")
    batch._state.token[row] = runtime.manifest.model.vocabulary
    with pytest.raises(Exception, match="out of"):
        decoder.step(18, 2, False)
    before = {name: array.copy() for name, array in decoder._cache.arrays.items()}
    time.sleep(0.05)
    assert all(np.array_equal(array, before[name]) for name, array in decoder._cache.arrays.items())


@pytest.mark.parametrize("threads", [2, 3])
def test_rows_and_k_and_strategy_may_change_from_step_to_step(
    lively_bundle: Callable[[Precision], Path], threads: int
) -> None:
    bundle, choices = lively_bundle("int8"), random.Random(threads)
    sources = [[*SOURCES[row % 3][:-1], 30 + row, END] for row in range(40)]
    one, several = (begin(runtime_of(bundle, count), sources, 40) for count in (1, threads))
    strategies = decoder_of(several).strategy
    decoder_of(several, lambda rows, kind: choices.choice(strategies.possible(rows)))
    for _ in range(60):
        rows, k, whole = choices.randint(1, 40), choices.randint(1, 4), choices.choice([False, True])
        outputs = []
        for batch in (one, several):
            arrays = [array.copy() for array in batch._decoder.step(rows, k, whole) if array is not None]
            batch._state.token[:rows] = arrays[0][:, -1]
            batch._state.position[:rows] = (batch._state.position[:rows] + 1) % 18
            outputs.append(arrays)
        assert all(np.array_equal(first, second) for first, second in zip(*outputs, strict=True))


def test_only_what_was_bound_last_is_kept(runtime: CpuRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.runtime.bindings.MOST_BOUND", 2)
    decoder = decoder_of(begin(runtime, SOURCES, 8))
    for rows in (1, 2, 3, 2, 1):
        decoder.step(rows, 2, False)
    assert list(decoder._bindings.kept) == [(2, 2, False, "single"), (1, 2, False, "single")]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_long_rows_get_the_same_bits_on_any_number_of_threads(precision: Precision, tmp_path: Path) -> None:
    """Beyond 256 keys, and with fewer heads than threads, where kernels like to cut the keys in blocks."""
    shape = {"vocabulary": 60, "width": 64, "heads": 2, "feed_forward": 32, "encoder_layers": 1, "decoder_layers": 1}
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**shape, max_positions=768)).eval()
    random_ids = np.random.default_rng(0)
    sources = random_ids.integers(4, 60, (3, 700)).tolist()
    if precision == "int8":
        model = quantized(model, calibrate(model, [(sources[0], sources[1][:600])]))
    write_bundle(model, tmp_path / "long", precision)
    manifest = Manifest.model_validate_json((tmp_path / "long" / MANIFEST).read_bytes())
    written = []
    for threads in (1, 8):
        for rows in (1, 3):
            batch = begin(CpuRuntime(tmp_path / "long", manifest, threads), sources[:rows], rows)
            # The caches of a row that has written much: any finite numbers do.
            for name, array in decoder_of(batch)._cache.arrays.items():
                if name.startswith("self"):
                    for row in range(rows):
                        numbers = np.random.default_rng(row).integers(-100, 100, array[row].shape)
                        array[row] = numbers if precision == "int8" else numbers / 100
            batch._state.position[:rows] = 600
            written.append([(step[0], step[rows]) for step in write(batch, rows, 4)])
    assert written == [written[0]] * 4
