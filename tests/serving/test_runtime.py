import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.bundle import MANIFEST, BundleError, Manifest, read_manifest
from export.exporter import Precision
from export.quantize import calibrate, quantized
from model.config import ModelConfig
from model.tokenizer import END, START
from model.transformer import Transformer
from serving.bench.subjects import write_bundle
from serving.cache import KeyValueCache
from serving.found import k_best
from serving.runtime import Runtime, StepState, Way, pad

SOURCES = [[4, 9, END], [4, 9, 9, 9, END], [4, *range(20, 50), END]]


@pytest.fixture(params=["fp32", "int8"])
def runtime(request: pytest.FixtureRequest, lively_bundle: Callable[[Precision], Path]) -> Runtime:
    bundle = lively_bundle(request.param)
    return Runtime(bundle, read_manifest(bundle), 1)


def begin(runtime: Runtime, sources: list[list[int]], rows: int = 8) -> tuple[KeyValueCache, StepState]:
    """A cache that holds ``sources``, and the state before their first step."""
    cache, state = runtime.cache(rows), StepState(rows)
    [encoded] = runtime.encode([sources])
    for row, source in enumerate(sources):
        cache.store(row, encoded.caches, row, len(source))
        state.token[row], state.lengths[row] = START, len(source)
    return cache, state


def write(runtime: Runtime, cache: KeyValueCache, state: StepState, rows: int, steps: int) -> list[list[float]]:
    """Greedy tokens and their log-probabilities, step by step."""
    found = []
    for _ in range(steps):
        tokens, likely, *_ = runtime.step(cache, state, rows, 2)
        found.append([*tokens[:, 0].tolist(), *likely[:, 0].tolist()])
        state.token[:rows] = tokens[:, 0]
        state.position[:rows] += 1
    return found


def test_padding_rounds_up_and_keeps_the_tokens() -> None:
    padded, lengths = pad([[5, 6, 7], [8] * 9])
    assert padded.shape == (2, 16)
    assert lengths.tolist() == [3, 9]
    assert padded[0].tolist() == [5, 6, 7] + [0] * 13


def test_a_device_that_is_not_there_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no CUDAExecutionProvider"):
        Runtime(tiny_bundle, read_manifest(tiny_bundle), 1, "cuda")


def test_int8_on_a_gpu_is_refused(lively_bundle: Callable[[Precision], Path]) -> None:
    bundle = lively_bundle("int8")
    with pytest.raises(BundleError, match="int8 is for the CPU"):
        Runtime(bundle, read_manifest(bundle), 1, "cuda")


def test_the_cache_has_the_decoders_names_and_nothing_in_it(runtime: Runtime) -> None:
    cache = runtime.cache(5)
    parts = [f"{part}_{layer}" for part in ("key", "value") for layer in (0, 1)]
    assert set(cache.arrays) == {f"{kind}_{part}" for kind in ("self", "cross", "last") for part in parts}
    assert cache.rows == 5
    assert not any(array.any() for array in cache.arrays.values())


def test_the_k_best_are_best_first_and_log_probabilities(runtime: Runtime) -> None:
    vocabulary = runtime.manifest.model.vocabulary
    cache, state = begin(runtime, SOURCES)
    state.given[:3] = [0, vocabulary - 1, 77]
    tokens, likely, given = (array.copy() for array in runtime.step(cache, state, 3, vocabulary)[:3])
    assert (np.diff(likely, axis=1) <= 0).all()
    np.testing.assert_allclose(np.exp(likely).sum(axis=1), 1, atol=1e-4)
    for row in range(3):
        assert sorted(tokens[row].tolist()) == list(range(vocabulary))
        assert given[row] == likely[row][tokens[row] == state.given[row]]
    few = runtime.step(cache, state, 3, 2)
    assert np.array_equal(few[0], tokens[:, :2])
    assert np.array_equal(few[1], likely[:, :2])
    assert np.array_equal(few[2], given)


def test_each_row_is_at_its_own_position(runtime: Runtime) -> None:
    """One row steps alone, and then beside others that have written more or less."""
    whole = [write(runtime, *begin(runtime, [source]), 1, 12) for source in SOURCES]
    cache, state = begin(runtime, SOURCES)
    write(runtime, cache, state, 3, 4)
    write(runtime, cache, state, 2, 3)
    write(runtime, cache, state, 1, 2)
    assert state.position[:3].tolist() == [9, 7, 4]
    following = write(runtime, cache, state, 3, 3)
    for row, begins in enumerate((9, 7, 4)):
        assert [[step[row], step[3 + row]] for step in following] == whole[row][begins : begins + 3]


@pytest.mark.parametrize("way", ["alone", "shared", "lanes"])
def test_all_log_probabilities_lead_to_the_tokens_that_the_graph_finds(
    lively_bundle: Callable[[Precision], Path], way: Way
) -> None:
    bundle = lively_bundle("int8")
    runtime = Runtime(bundle, read_manifest(bundle), 3)
    runtime._ways = {0: way}
    cache, state = begin(runtime, SOURCES)
    vocabulary = runtime.manifest.model.vocabulary
    asked = [each.copy() for each in runtime.step(cache, state, 3, vocabulary)[:3]]
    found = runtime.step(cache, state, 3, 2, whole=True)
    assert np.array_equal(found.given, asked[2])
    for row in range(3):
        for k in (3, 100, vocabulary, vocabulary + 9):
            assert found.best(row, k) == (asked[0][row, :k].tolist(), asked[1][row, :k].tolist())
        assert found.best(row, 2) == (asked[0][row, :2].tolist(), asked[1][row, :2].tolist())


def test_all_bindings_share_the_room_for_all_log_probabilities(lively_bundle: Callable[[Precision], Path]) -> None:
    """Each with a room of its own would take a gigabyte for a hundred rows of a large vocabulary."""
    bundle = lively_bundle("int8")
    runtime = Runtime(bundle, read_manifest(bundle), 1)
    cache, state = begin(runtime, SOURCES * 3, 9)
    rooms = [runtime.step(cache, state, rows, k, whole=True).log_softmax for rows in (9, 2, 5) for k in (2, 4)]
    assert all(room is not None and np.shares_memory(room, rooms[0]) for room in rooms)
    assert [len(room) for room in rooms if room is not None] == [9, 9, 2, 2, 5, 5]


@given(st.lists(st.sampled_from([-9.0, -2.5, -1.0, -0.0, 0.0, 3.0]), min_size=1, max_size=40), st.integers(1, 50))
def test_of_tokens_that_are_equally_likely_the_first_is_the_best(likely: list[float], k: int) -> None:
    expected = sorted(range(len(likely)), key=lambda token: (-likely[token], token))[:k]
    assert k_best(np.array(likely, np.float32), k) == (expected, [likely[token] for token in expected])


def test_a_step_works_on_the_cache_and_the_state_it_is_given(runtime: Runtime) -> None:
    """Though what is bound is kept from step to step: another with the same shape is not mistaken for it."""
    alone = {}
    for name, sources in (("first", SOURCES[:2]), ("second", SOURCES[1:])):
        alone[name] = write(runtime, *begin(runtime, sources), 2, 8)
    first, second = begin(runtime, SOURCES[:2]), begin(runtime, SOURCES[1:])
    turns: dict[str, list[list[float]]] = {"first": [], "second": []}
    for _ in range(4):
        turns["first"] += write(runtime, *first, 2, 2)
        turns["second"] += write(runtime, *second, 2, 2)
    assert turns == alone
    cache, state = begin(runtime, SOURCES[:2])
    moved = write(runtime, cache, state, 2, 4)
    other = StepState(8)
    other.copy([], [])
    for name, array in state.inputs.items():
        other.inputs[name][:] = array
        array[:] = 1
    assert moved + write(runtime, cache, other, 2, 4) == alone["first"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("way", ["alone", "shared", "lanes"])
def test_rows_get_the_same_bits_in_every_way(
    lively_bundle: Callable[[Precision], Path], precision: Precision, threads: int, way: Way
) -> None:
    bundle = lively_bundle(precision)
    one, several = (Runtime(bundle, read_manifest(bundle), count) for count in (1, threads))
    several._ways = {0: way}
    sources = [[*SOURCES[row % 3][:-1], 30 + row, END] for row in range(20)]
    found = []
    for runtime in (one, several):
        cache, state = begin(runtime, sources, len(sources))
        found.append([write(runtime, cache, state, rows, 3) for rows in (threads, 20, 11)])
    assert found[0] == found[1]
    assert len(several._bound[11, 2, False][0]) == (threads if way == "lanes" else 1)


def test_the_fastest_way_is_found_by_trying(lively_bundle: Callable[[Precision], Path]) -> None:
    bundle = lively_bundle("int8")
    runtime = Runtime(bundle, read_manifest(bundle), 3)
    asked: list[tuple[int, Way]] = []

    def seconds(cache: KeyValueCache, state: StepState, rows: int, way: Way) -> float:
        asked.append((rows, way))
        return {"alone": 1.0, "shared": 0.95 if rows < 4 else 0.6, "lanes": 0.5 if rows > 8 else 2.0}[way]

    runtime._seconds = seconds  # type: ignore[method-assign]
    runtime.tune(50)
    # Two rows are too few for three lanes; 0.95 of the time is not clearly less.
    assert asked[:5] == [(1, "alone"), (1, "shared"), (2, "alone"), (2, "shared"), (4, "alone")]
    ways = {rows: way for rows, way in runtime._ways.items() if rows}
    assert ways == {1: "alone", 2: "alone", 4: "shared", 8: "shared", 16: "lanes", 32: "lanes"}
    cache, state = begin(runtime, SOURCES * 5, 15)
    for rows, lanes in ((15, 1), (14, 1), (3, 1)):
        runtime.step(cache, state, rows, 2)
        assert len(runtime._bound[rows, 2, False][0]) == lanes


def test_tuning_leaves_what_follows_as_it_was(runtime: Runtime, lively_bundle: Callable[[Precision], Path]) -> None:
    plain = write(runtime, *begin(runtime, SOURCES), 3, 6)
    bundle = lively_bundle("int8" if runtime.manifest.precision == "int8" else "fp32")
    tuned = Runtime(bundle, runtime.manifest, 2)
    tuned.tune(8)
    assert set(tuned._ways) == {0, 1, 2, 4, 8}
    assert write(tuned, *begin(tuned, SOURCES), 3, 6) == plain


@pytest.mark.parametrize("batches", range(6))
def test_batches_are_encoded_in_their_order_by_any_number_of_threads(
    lively_bundle: Callable[[Precision], Path], batches: int
) -> None:
    bundle = lively_bundle("int8")
    one, several = (Runtime(bundle, read_manifest(bundle), threads) for threads in (1, 2))
    asked = [[[4, *range(20 + batch, 30 + 3 * batch), END], [4, 9, END]] for batch in range(batches)]
    expected = [next(one.encode([batch])) for batch in asked]
    found = list(several.encode(asked))
    assert len(found) == batches
    for each, alone in zip(found, expected, strict=True):
        assert np.array_equal(each.memory, alone.memory)
        assert all(np.array_equal(array, alone.caches[name]) for name, array in each.caches.items())


@pytest.mark.parametrize("row", [0, 16])
def test_a_fault_in_one_lane_reaches_the_caller_when_all_lanes_have_ended(
    lively_bundle: Callable[[Precision], Path], row: int
) -> None:
    bundle = lively_bundle("int8")
    runtime = Runtime(bundle, read_manifest(bundle), 2)
    runtime._ways = {0: "lanes"}
    cache, state = begin(runtime, SOURCES * 6, 18)
    state.token[row] = runtime.manifest.model.vocabulary
    with pytest.raises(Exception, match="out of"):
        runtime.step(cache, state, 18, 2)
    before = {name: array.copy() for name, array in cache.arrays.items()}
    time.sleep(0.05)
    assert all(np.array_equal(array, before[name]) for name, array in cache.arrays.items())


def test_a_batch_that_cannot_be_encoded_is_no_matter_to_the_others(lively_bundle: Callable[[Precision], Path]) -> None:
    bundle = lively_bundle("int8")
    runtime = Runtime(bundle, read_manifest(bundle), 2)
    [expected] = runtime.encode([SOURCES])
    bad = [[4, 10**6, END]]
    for batches in ([SOURCES, bad], [bad, SOURCES], [bad], [bad, bad, SOURCES]):
        for batch, found in zip(batches, runtime.encode(batches), strict=True):
            if batch is bad:
                assert isinstance(found, Exception)
                assert "out of" in str(found)
            else:
                assert np.array_equal(found.memory, expected.memory)


@pytest.mark.parametrize("threads", [2, 3])
def test_rows_and_k_may_change_from_step_to_step(lively_bundle: Callable[[Precision], Path], threads: int) -> None:
    bundle = lively_bundle("int8")
    one, several = (Runtime(bundle, read_manifest(bundle), count) for count in (1, threads))
    several._ways = {0: "alone", 3: "shared", 10: "lanes"}
    sources = [[*SOURCES[row % 3][:-1], 30 + row, END] for row in range(40)]
    states = [(runtime, *begin(runtime, sources, 40)) for runtime in (one, several)]
    choices = random.Random(threads)
    for _ in range(60):
        rows, k, whole = choices.randint(1, 40), choices.randint(1, 4), choices.choice([False, True])
        found = []
        for runtime, cache, state in states:
            outputs = [array.copy() for array in runtime.step(cache, state, rows, k, whole) if array is not None]
            state.token[:rows] = outputs[0][:, -1]
            state.position[:rows] = (state.position[:rows] + 1) % 18
            found.append(outputs)
        assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_only_what_was_bound_last_is_kept(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.runtime.MOST_BOUND", 2)
    cache, state = begin(runtime, SOURCES, 8)
    for rows in (1, 2, 3, 2, 1):
        runtime.step(cache, state, rows, 2)
    assert list(runtime._bound) == [(2, 2, False), (1, 2, False)]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_long_rows_get_the_same_bits_on_any_number_of_threads(precision: Precision, tmp_path: Path) -> None:
    """Beyond 256 keys, and with fewer heads than threads, where kernels like to cut the keys in blocks."""
    shape = {"vocabulary": 60, "width": 64, "heads": 2, "feed_forward": 32, "encoder_layers": 1, "decoder_layers": 1}
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**shape, max_positions=768)).eval()
    random = np.random.default_rng(0)
    sources = random.integers(4, 60, (3, 700)).tolist()
    if precision == "int8":
        model = quantized(model, calibrate(model, [(sources[0], sources[1][:600])]))
    write_bundle(model, tmp_path / "long", precision)
    manifest = Manifest.model_validate_json((tmp_path / "long" / MANIFEST).read_bytes())
    found = []
    for threads in (1, 8):
        for rows in (1, 3):
            runtime = Runtime(tmp_path / "long", manifest, threads)
            cache, state = begin(runtime, sources[:rows], rows)
            # The caches of a row that has written much: any finite numbers do.
            for name, array in cache.arrays.items():
                if name.startswith("self"):
                    for row in range(rows):
                        numbers = np.random.default_rng(row).integers(-100, 100, array[row].shape)
                        array[row] = numbers if precision == "int8" else numbers / 100
            state.position[:rows] = 600
            found.append([(step[0], step[rows]) for step in write(runtime, cache, state, rows, 4)])
    assert found == [found[0]] * 4


def test_a_states_rows_are_copied_all_at_once() -> None:
    state = StepState(4)
    state.token[:], state.position[:], state.given[:], state.lengths[:] = range(4), range(10, 14), range(5, 9), 7
    state.copy([0, 1, 2], [1, 2, 3])
    assert state.token.tolist() == [0, 0, 1, 2]
    assert state.position.tolist() == [10, 10, 11, 12]
    assert state.given.tolist() == [5, 5, 6, 7]


def test_a_source_gets_the_same_bits_alone_and_among_others(runtime: Runtime) -> None:
    [together] = runtime.encode([SOURCES])
    for row, source in enumerate(SOURCES):
        [alone] = runtime.encode([[source]])
        assert np.array_equal(alone.memory[0, : len(source)], together.memory[row, : len(source)])
        for name, array in alone.caches.items():
            assert np.array_equal(array[0, :, : len(source)], together.caches[name][row, :, : len(source)])
