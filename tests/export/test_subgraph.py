from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export.bundle import read_manifest
from export.ort import onnxruntime
from export.subgraph import attention_nodes, cut_out
from tests.export.formula import attention, by_head

Array = NDArray[Any]
KINDS = ("encoder.0.self", "decoder.1.self", "decoder.1.cross")
CACHE = "[rows, 2, {}, 8]"


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def normal(seed: int, *shape: int, dtype: type = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def states_of(bundle: Path) -> tuple[type, float]:
    """The type of a bundle's states, and how far what is computed of about 1 may be from the formula."""
    return (np.float16, 3e-3) if read_manifest(bundle).precision == "fp16" else (np.float32, 5e-6)


def caches(bundle: Path) -> tuple[dict[str, Array], dict[str, Array], tuple[Array, Array]]:
    """Caches as ``bundle`` has them, the units they are in, and what the two mean as numbers."""
    if read_manifest(bundle).precision != "int8":
        dtype, _ = states_of(bundle)
        floats = normal(3, 3, 2, 8, 8, dtype=dtype), normal(4, 3, 2, 8, 8, dtype=dtype)
        return {"key_cache": floats[0], "value_cache": floats[1]}, {}, floats
    random = np.random.default_rng(3)
    found = {part: random.integers(-128, 128, (3, 2, 8, 8)).astype(np.int8) for part in ("key_cache", "value_cache")}
    units = {
        part: np.exp2(random.integers(-8, -5, (2, 1, 8))).astype(np.float32) for part in ("key_unit", "value_unit")
    }
    return found, units, (found["key_cache"] * units["key_unit"], found["value_cache"] * units["value_unit"])


def test_every_attention_of_every_graph_is_listed(each_bundle: Path) -> None:
    nodes = attention_nodes(each_bundle)
    stepping = [f"decoder.{layer}.{use}" for layer in (0, 1) for use in ("self", "cross")]
    assert [(node.graph, node.name) for node in nodes] == [
        ("encoder", "encoder.0.self"),
        *(("decoder", name) for name in stepping),
        *(("attention", name) for name in ("encoder.0.self", *stepping)),
    ]
    assert {node.heads for node in nodes} == {2}
    functions = {
        "encoder.self": "SelfAttention",
        "decoder.self": "MaskedSelfAttention",
        "decoder.cross": "CrossAttention",
    }
    for node in nodes:
        stack, layer, use = node.name.split(".")
        assert node.function == functions[f"{stack}.{use}"]
        assert node.layer == int(layer)


def test_nodes_carry_the_shapes_of_their_parameters(each_bundle: Path) -> None:
    shapes = {(node.graph, node.name): (node.inputs, node.outputs) for node in attention_nodes(each_bundle)}
    int8 = read_manifest(each_bundle).precision == "int8"
    units = {"key_unit": "[2, 1, 8]", "value_unit": "[2, 1, 8]"} if int8 else {}
    source, step, target = "[rows, source, 16]", "[rows, 1, 16]", "[rows, target, 16]"
    self_cache, cross_cache = CACHE.format("capacity"), CACHE.format("source")
    packed = "[tokens, 16]"
    assert shapes["encoder", "encoder.0.self"] == (
        {
            "query": packed,
            "key": packed,
            "value": packed,
            "lengths": "[rows]",
            "places": "[tokens, 2]",
            "spread": "[rows, source]",
        },
        {"output": packed},
    )
    assert shapes["decoder", "decoder.1.self"] == (
        {
            "query": step,
            "key": step,
            "value": step,
            "key_cache": self_cache,
            "value_cache": self_cache,
            "position": "[rows]",
            **units,
        },
        {"output": step, "keys": self_cache, "values": self_cache},
    )
    assert shapes["decoder", "decoder.1.cross"] == (
        {
            "query": step,
            "last_key": step,
            "last_value": step,
            "key_cache": cross_cache,
            "value_cache": cross_cache,
            "lengths": "[rows]",
            **units,
        },
        {"output": step, "keys": cross_cache, "values": cross_cache},
    )
    seen = "[rows, 2, target, source]"
    assert shapes["attention", "decoder.1.cross"] == (
        {"query": target, "key": source, "value": source, "visible": "[rows, 1, 1, source]"},
        {"output": target, "weights": seen, "scores": seen},
    )


def test_encoder_self_attention_cut_out_computes_the_formula(each_bundle: Path) -> None:
    """Rows of 8, 3 and 1 tokens side by side; behind them stands their last token again."""
    lengths = np.array([8, 3, 1], np.int32)
    visible = np.arange(8) < lengths[:, None]
    packing = {"lengths": lengths, "places": np.argwhere(visible), "spread": np.cumsum(visible).reshape(3, 8) - 1}
    dtype, tolerance = states_of(each_bundle)
    feeds = {part: normal(seed, 12, 16, dtype=dtype) for seed, part in enumerate(("query", "key", "value"))}
    found = run(cut_out(each_bundle, "encoder.0.self"), feeds | packing)
    padded = (by_head(states[packing["spread"]], 2) for states in feeds.values())
    expected = attention(*padded, visible[:, None, None])[0]
    assert found["output"].dtype == dtype
    np.testing.assert_allclose(found["output"], expected[visible], atol=tolerance)


def test_decoder_self_attention_cut_out_computes_the_formula(each_bundle: Path) -> None:
    position = np.array([0, 7, 4], np.int32)
    dtype, tolerance = states_of(each_bundle)
    feeds = {part: normal(seed, 3, 1, 16, dtype=dtype) for seed, part in enumerate(("query", "key", "value"))}
    cached, units, seen = caches(each_bundle)
    found = run(cut_out(each_bundle, "decoder.1.self"), feeds | cached | units | {"position": position})
    for part, numbers in zip(("key", "value"), seen, strict=True):
        unit = units.get(f"{part}_unit", np.ones((2, 1, 8), np.float32))
        for row, end in enumerate(position):
            states = feeds[part][row].reshape(2, 8)
            if units:
                states = np.clip(np.rint(states / unit[:, 0]), -128, 127) * unit[:, 0]
            numbers[row, :, end] = states
            assert np.array_equal((found[f"{part}s"] * unit)[row, :, : end + 1], numbers[row, :, : end + 1])
        assert found[f"{part}s"].dtype == cached[f"{part}_cache"].dtype
    visible = np.arange(8) <= position[:, None, None, None]
    expected = attention(by_head(feeds["query"], 2), *seen, visible)[0]
    assert found["output"].dtype == dtype
    np.testing.assert_allclose(found["output"], expected, atol=tolerance)


def test_cross_attention_cut_out_computes_the_formula(each_bundle: Path) -> None:
    lengths = np.array([8, 3, 1], np.int32)
    cached, units, seen = caches(each_bundle)
    dtype, tolerance = states_of(each_bundle)
    query, keys, values = normal(0, 3, 1, 16, dtype=dtype), cached["key_cache"], cached["value_cache"]
    last_key, last_value = (array[range(3), :, lengths - 1].reshape(3, 1, 16) for array in (keys, values))
    feeds = {"query": query, "last_key": last_key, "last_value": last_value, **cached, **units}
    found = run(cut_out(each_bundle, "decoder.1.cross"), feeds | {"lengths": lengths})
    for row, length in enumerate(lengths):
        assert np.array_equal(found["keys"][row, :, :length], keys[row, :, :length])
        assert np.array_equal(found["values"][row, :, :length], values[row, :, :length])
    expected = attention(by_head(query, 2), *seen, np.arange(8) < lengths[:, None, None, None])[0]
    assert found["output"].dtype == dtype
    np.testing.assert_allclose(found["output"], expected, atol=tolerance)


@pytest.mark.parametrize("name", KINDS)
def test_a_node_of_the_attention_graph_cut_out_shows_weights_and_scores(each_bundle: Path, name: str) -> None:
    queries, keys = (5, 7) if name.endswith("cross") else (6, 6)
    dtype, tolerance = states_of(each_bundle)
    lengths = {"query": queries, "key": keys, "value": keys}
    feeds = {part: normal(seed, 2, length, 16, dtype=dtype) for seed, (part, length) in enumerate(lengths.items())}
    visible = np.arange(keys) < np.array([keys, 3])[:, None, None, None]
    if name == "decoder.1.self":
        visible = np.tri(keys, dtype=bool)
    found = run(cut_out(each_bundle, name, "attention"), feeds | {"visible": visible})
    expected = attention(*(by_head(states, 2) for states in feeds.values()), visible)
    for part, values in zip(("output", "weights", "scores"), expected, strict=True):
        # Weights and scores are fp32 in every bundle.
        assert found[part].dtype == (dtype if part == "output" else np.float32)
        np.testing.assert_allclose(found[part], values, atol=tolerance if part == "output" else 5e-6)


@pytest.mark.parametrize(
    ("name", "graph"), [("encoder.1.self", None), ("decoder.0.cross", "encoder"), ("encoder.0.self.query", None)]
)
def test_a_name_that_is_no_attention_is_a_key_error(
    bundle_of: Callable[[str, str], Path], name: str, graph: str | None
) -> None:
    with pytest.raises(KeyError, match=name):
        cut_out(bundle_of("fp32", "fused"), name, graph)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", KINDS)
def test_a_standard_node_cut_out_can_be_read_outside_onnx_runtime(
    bundle_of: Callable[[str, str], Path], precision: str, name: str
) -> None:
    ReferenceEvaluator(cut_out(bundle_of(precision, "standard"), name))
