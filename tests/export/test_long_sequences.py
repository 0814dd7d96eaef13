"""The gate at the model's limits: what only shows in long sequences is found there, and nothing else is."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export import verify
from export.exporter import Precision, calibration
from export.long_sequences import ROWS, sequences
from export.parity import LongBounds, LongCase, ParityReport
from export.quantize import calibrate, quantized
from export.verify import LOG_PROBABILITY_BOUND, LONG_BOUNDS, _within, check, gate_sources
from model import checkpoint
from model.checkpoint import Checkpoint
from model.tokenizer import END, START
from model.transformer import Transformer

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def loaded(lively_checkpoint: Path) -> Checkpoint:
    return checkpoint.load(lively_checkpoint)


@pytest.fixture(scope="module")
def references(loaded: Checkpoint) -> dict[str, Transformer]:
    rounded = quantized(loaded.model, calibrate(loaded.model, calibration(loaded)))
    return {"fp32": loaded.model, "fp16": loaded.model, "int8": rounded}


@pytest.fixture
def gate(
    lively_bundle: Callable[[Precision], Path],
    loaded: Checkpoint,
    references: dict[str, Transformer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., ParityReport]:
    monkeypatch.setattr(verify, "BATCH_SIZES", (2,))  # enough to see what short sentences can tell

    def gate(precision: Precision, graph: str = "decoder", change: Change = lambda model: None) -> ParityReport:
        """The report on the lively bundle, one graph of which has been changed."""
        folder = Path(shutil.copytree(lively_bundle(precision), tmp_path / "bundle"))
        model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
        change(model)
        (folder / f"{graph}.onnx").write_bytes(model.SerializeToString())
        return check(folder, references[precision], loaded.model, gate_sources(loaded), precision)

    return gate


def test_sequences_are_as_long_as_the_model_allows_and_unlike_one_another() -> None:
    parts = [[4, *range(10 * row, 10 * row + 9), END] for row in range(1, 8)]
    found = sequences(parts, [part[1:] for part in parts], 64)
    for rows, first in zip(found, (4, START), strict=True):
        assert [len(ids) for ids in rows] == [64, 63, 64 - 21]
        assert all(ids[0] == first for ids in rows)
        assert len({tuple(ids[:20]) for ids in rows}) == ROWS
    assert all(ids[-1] == END not in ids[:-1] for ids in found[0])
    assert not any(END in ids for ids in found[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_long_sequences_pass_and_reach_the_models_limits(
    gate: Callable[..., ParityReport], precision: Precision
) -> None:
    report = gate(precision)
    assert report.long_bounds == LONG_BOUNDS[precision]
    long = report.long
    assert long is not None
    assert _within(long, LONG_BOUNDS[precision])
    assert (long.rows, long.lengths, long.steps) == (3, (128 - 128 // 3, 128), 128)
    assert long.tokens == 128 + 127 + 128 - 128 // 3
    assert long.tokens_equal >= 0.99 * long.tokens
    assert long.typical_error <= (1e-2 if precision == "fp16" else 1e-5)
    assert long.typical_cache_error <= (5e-3 if precision == "fp16" else 1e-5)
    assert (long.near_ties is None) == (long.tokens_exempt is None) == (precision != "fp16")
    if precision == "fp16":
        assert long.tokens_equal + long.tokens_exempt == long.tokens


def reroute(model: onnx.ModelProto, node: str, index: int, *nodes: onnx.NodeProto) -> None:
    """Let ``nodes``, whose first input "?" is what ``node`` reads there, stand before its input ``index``."""
    place, reader = next((place, each) for place, each in enumerate(model.graph.node) if each.name == node)
    nodes[0].input[0] = reader.input[index]
    reader.input[index] = nodes[-1].output[0]
    for each in reversed(nodes):
        model.graph.node.insert(place, each)


def constant(model: onnx.ModelProto, name: str, values: Any, dtype: type) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def another_row(model: onnx.ModelProto) -> None:
    """Each row sees the keys of the next one."""
    shape = helper.make_node("Shape", ["?"], ["planted.count"], start=0, end=1)
    cache = next(node for node in model.graph.node if node.name == "decoder.0.self").input[3]
    zero, one = constant(model, "planted.zero", 0, np.int64), constant(model, "planted.one", 1, np.int64)
    flat = constant(model, "planted.axis", [0], np.int64)
    nodes = [
        shape,
        helper.make_node("Squeeze", ["planted.count", flat], ["planted.n"]),
        helper.make_node("Range", [zero, "planted.n", one], ["planted.range"]),
        helper.make_node("Add", ["planted.range", one], ["planted.next"]),
        helper.make_node("Mod", ["planted.next", "planted.n"], ["planted.order"]),
        helper.make_node("Gather", [cache, "planted.order"], ["planted.keys"], axis=0),
    ]
    reroute(model, "decoder.0.self", 3, *nodes)


def another_position(model: onnx.ModelProto) -> None:
    """The decoder takes each position for the next one."""
    one, last = constant(model, "planted.one", 1, np.int32), constant(model, "planted.last", 127, np.int32)
    nodes = [
        helper.make_node("Add", ["?", one], ["planted.next"]),
        helper.make_node("Min", ["planted.next", last], ["planted.position"]),
    ]
    reroute(model, "target.positions", 1, *nodes)


def stale_beyond_64(model: onnx.ModelProto) -> None:
    """Keys beyond 64 are written to one place, so that older ones are lost and none is where it is looked for."""
    limit = constant(model, "planted.limit", 64, np.int32)
    reroute(model, "decoder.1.self", 5, helper.make_node("Min", ["?", limit], ["planted.position"]))


def source_ends_at_64(model: onnx.ModelProto) -> None:
    """Encoder-decoder attention does not see what stands behind."""
    limit = constant(model, "planted.limit", 64, np.int32)
    reroute(model, "decoder.0.cross", 5, helper.make_node("Min", ["?", limit], ["planted.lengths"]))


def swapped_heads(model: onnx.ModelProto) -> None:
    """Two heads have each other's values."""
    order = constant(model, "planted.order", [1, 0, 2, 3], np.int64)
    reroute(model, "decoder.1.cross", 4, helper.make_node("Gather", ["?", order], ["planted.values"], axis=1))


def positions_end_at_64(model: onnx.ModelProto) -> None:
    """The encoder takes every position beyond 64 for 64."""
    limit = constant(model, "planted.limit", 64, np.int64)
    node = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == "source_positions")
    reroute(model, node.name, 1, helper.make_node("Min", ["?", limit], ["planted.columns"]))


def last_position_is_the_first(model: onnx.ModelProto) -> None:
    """The encoder takes one position of its 128, the last, for another one."""
    count = constant(model, "planted.count", 127, np.int64)
    node = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == "source_positions")
    reroute(model, node.name, 1, helper.make_node("Mod", ["?", count], ["planted.columns"]))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("graph", "fault"),
    [
        ("decoder", another_row),
        ("decoder", another_position),
        ("decoder", stale_beyond_64),
        ("decoder", source_ends_at_64),
        ("decoder", swapped_heads),
        ("encoder", positions_end_at_64),
        ("encoder", last_position_is_the_first),
    ],
)
def test_a_planted_fault_is_found_in_long_sequences(
    gate: Callable[..., ParityReport], precision: Precision, graph: str, fault: Change
) -> None:
    report = gate(precision, graph, fault)
    assert not report.passed
    assert report.long is not None
    assert not _within(report.long, LONG_BOUNDS[precision])
    if fault not in (another_row, another_position, swapped_heads):
        # Sentences of 64 tokens cannot tell.
        assert all(case.log_probability_error <= LOG_PROBABILITY_BOUND[precision] for case in report.cases)


def test_every_bound_for_long_sequences_decides() -> None:
    numbers = dict.fromkeys(LongBounds.model_fields, 1.0)
    bounds = LongBounds(**numbers)
    good = {name: 1.0 for name in numbers if name != "equal_share"}
    size = {"rows": 3, "lengths": (1, 2), "steps": 2, "tokens": 5, "tokens_equal": 5}
    assert _within(LongCase(**size, **good), bounds)
    for name in good:
        for wrong in (1.1, float("nan")):
            assert not _within(LongCase(**size, **good | {name: wrong}), bounds)
    assert not _within(LongCase(**size | {"tokens_equal": 4}, **good), bounds)
    assert _within(LongCase(**size | {"tokens_equal": 4, "tokens_exempt": 1}, **good), bounds)
    assert not _within(LongCase(**size | {"tokens_equal": 3, "tokens_exempt": 1}, **good), bounds)


def test_a_reference_that_differs_at_one_late_position_does_not_pass(
    lively_bundle: Callable[[Precision], Path], loaded: Checkpoint
) -> None:
    reference = copy.deepcopy(loaded.model)
    with torch.no_grad():
        reference.target_positions[100:] = reference.target_positions[:28]
    assert not check(lively_bundle("fp32"), reference, reference, gate_sources(loaded), "fp32").passed
