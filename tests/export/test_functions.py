"""Every function as a model of one node in ONNX Runtime, against the formula in float64 numpy."""

import functools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export import functions
from export.functions import DOMAIN, OPSET, VENDOR, Bodies
from export.ort import onnxruntime
from export.quantize import WEIGHT_LIMIT, QuantizedLinear, Rounding
from tests.export.formula import attention, by_head

Array = NDArray[Any]
Feeds = dict[str, Array]
BODIES: tuple[Bodies, ...] = ("standard", "fused")
ATTENTION = ("SelfAttention", "MaskedSelfAttention", "CrossAttention")
CACHES = {"keys": "key_cache", "values": "value_cache"}
CACHE_LAYERS = ("QuantizeCache", "DequantizeCache")
RANKS = {
    "lengths": 1,
    "position": 1,
    "step": 0,
    "zero": 0,
    "unit": 1,
    "bias": 1,
    "weight": 2,
    "key_cache": 4,
    "value_cache": 4,
    "visible": 4,
    "places": 2,
    "spread": 2,
}
RANKS |= dict.fromkeys(("keys", "values", "weights", "scores"), 4)
TYPES = {"lengths": TensorProto.INT32, "position": TensorProto.INT32, "visible": TensorProto.BOOL}
TYPES |= {"places": TensorProto.INT64, "spread": TensorProto.INT64}
INT8_TYPES = {"input": TensorProto.UINT8, "zero": TensorProto.UINT8, "weight": TensorProto.INT8}
INT8_TYPES |= dict.fromkeys((*CACHES, *CACHES.values(), "last_key", "last_value", "integers"), TensorProto.INT8)

FP16_TOLERANCE = 3e-3
"""Of attention over values of about 1."""

every_attention = pytest.mark.parametrize(
    ("name", "quantised"),
    [*((name, False) for name in ATTENTION), ("MaskedSelfAttention", True), ("CrossAttention", True)],
    ids=lambda part: part if isinstance(part, str) else "int8" if part else "float32",
)
every_cache = pytest.mark.parametrize("quantised", [False, True], ids=["float32", "int8"])
every_body = pytest.mark.parametrize("bodies", BODIES)


@functools.cache
def one_node(
    name: str, bodies: Bodies, heads: int = 0, inspected: bool = False, quantised: bool = False, half: bool = False
) -> onnx.ModelProto:
    """A model that is one node of ``name``, the function it stands for and those it may call."""
    found = (functions.inspecting if inspected else functions.stepping)(bodies, quantised, half)
    function = next(function for function in found if function.name == name)
    types = TYPES | (INT8_TYPES if quantised else {})
    states = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    if half:
        types = types | dict.fromkeys(("weights", "scores"), TensorProto.FLOAT)

    def value(parameter: str) -> onnx.ValueInfoProto:
        packed = name == "Linear" or (name == "SelfAttention" and not inspected)
        rank = RANKS.get(parameter, 2 if packed else 3)
        shape = None if name in CACHE_LAYERS else [f"{parameter}_{axis}" for axis in range(rank)]
        return helper.make_tensor_value_info(parameter, types.get(parameter, states), shape)

    node = helper.make_node(name, function.input, function.output, domain=DOMAIN, **({"heads": heads} if heads else {}))
    graph = helper.make_graph(
        [node], name, *([value(part) for part in parts] for parts in (function.input, function.output))
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", OPSET), (DOMAIN, 1), (VENDOR, 1))]
    # Those that are called first: ONNX's reference evaluator knows only what it has read.
    found = sorted(found, key=lambda function: function.name not in CACHE_LAYERS)
    model = helper.make_model(graph, functions=found, opset_imports=imports, ir_version=11)
    if name not in CACHE_LAYERS:  # Their shapes are free, which the checker does not know.
        onnx.checker.check_model(model)
    return model


@functools.cache
def session(
    name: str,
    bodies: Bodies,
    heads: int = 0,
    inspected: bool = False,
    quantised: bool = False,
    threads: int = 1,
    half: bool = False,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    model = one_node(name, bodies, heads, inspected, quantised, half)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(function: onnxruntime.InferenceSession, feeds: Feeds) -> Feeds:
    """Outputs by name; a cache that goes in and out is one buffer, as the bundle's manifest demands."""
    feeds = {parameter: np.array(array, order="C") for parameter, array in feeds.items()}
    binding = function.io_binding()
    for parameter, array in feeds.items():
        binding.bind_input(parameter, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    names = [output.name for output in function.get_outputs()]
    for output in names:
        if CACHES.get(output) in feeds:
            array = feeds[CACHES[output]]
            binding.bind_output(output, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        else:
            binding.bind_output(output, "cpu")
    function.run_with_iobinding(binding)
    return {output: value.numpy().copy() for output, value in zip(names, binding.get_outputs(), strict=True)}


def packed(feeds: Feeds) -> Feeds:
    """Padded rows ``[b, s, w]`` as SelfAttention takes them: side by side, with what stands behind their lengths."""
    rows, extent, width = feeds["query"].shape
    flat = {part: feeds[part].reshape(-1, width) for part in ("query", "key", "value")}
    places = np.argwhere(np.arange(extent) < feeds["lengths"][:, None])
    return {**flat, "lengths": feeds["lengths"], "places": places, "spread": np.arange(rows * extent).reshape(rows, -1)}


def unpacked(output: Array, feeds: Feeds) -> Array:
    """SelfAttention's ``output`` ``[n, w]`` for `packed` ``feeds`` as padded rows, zero behind their lengths."""
    padded = np.zeros(feeds["query"].shape, output.dtype)
    padded[np.arange(padded.shape[1]) < feeds["lengths"][:, None]] = output
    return padded


def attend(name: str, bodies: Bodies, heads: int, feeds: Feeds, threads: int = 1) -> Feeds:
    half = feeds["query"].dtype == np.float16
    if name == "SelfAttention":
        found = run(session(name, bodies, heads, threads=threads, half=half), packed(feeds))
        return {"output": unpacked(found["output"], feeds)}
    return run(session(name, bodies, heads, quantised="key_unit" in feeds, threads=threads, half=half), feeds)


def example(
    name: str,
    seed: int,
    quantised: bool = False,
    *,
    rows: int = 5,
    heads: int = 2,
    head_width: int = 8,
    extent: int = 24,
) -> Feeds:
    """Random inputs with a ragged ``lengths`` or ``position`` within ``extent`` keys; the first row's is the longest.

    Units of int8 caches are powers of two, so that what is written is exact, and half of that is halves of a unit.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    lengths = random.integers(1, extent + 1, rows).astype(np.int32)
    lengths[0] = extent
    whole, step, cache = (
        (rows, extent, heads * head_width),
        (rows, 1, heads * head_width),
        (rows, heads, extent, head_width),
    )
    if name == "SelfAttention":
        return {"query": normal(*whole), "key": normal(*whole), "value": normal(*whole), "lengths": lengths}
    caches = {"key_cache": normal(*cache), "value_cache": normal(*cache)}
    units: Feeds = {}
    if quantised:
        caches = {part: random.integers(-128, 128, cache).astype(np.int8) for part in caches}
        units = {part: np.exp2(random.integers(-8, -5, (heads, 1, head_width))) for part in ("key_unit", "value_unit")}
        units = {part: unit.astype(np.float32) for part, unit in units.items()}
    if name == "CrossAttention":
        last = {
            part: caches[f"{part.removeprefix('last_')}_cache"][range(rows), :, lengths - 1].reshape(step)
            for part in ("last_key", "last_value")
        }
        return {"query": normal(*step), **last, **caches, "lengths": lengths, **units}
    fresh = {"key": normal(*step), "value": normal(*step)}
    for part, states in fresh.items() if quantised else ():
        halves = (random.integers(-140, 140, step) + 0.5) * units[f"{part}_unit"].ravel()
        fresh[part] = np.where(random.random(step) < 0.5, halves, states).astype(np.float32)
    return {"query": normal(*step), **fresh, **caches, "position": lengths - 1, **units}


def valid(feeds: Feeds) -> Array:
    """``[b]``: how many keys each row may see."""
    return feeds["lengths"] if "lengths" in feeds else feeds["position"] + 1


def written(feeds: Feeds) -> tuple[Array, Array]:
    """The caches with each row's key and value at its position."""
    caches = []
    for part in ("key", "value"):
        cache = feeds[f"{part}_cache"].copy()
        for row, position in enumerate(feeds["position"]):
            states = feeds[part][row].reshape(cache.shape[1], -1)
            if cache.dtype == np.int8:
                states = np.clip(np.rint(states * (1 / feeds[f"{part}_unit"][:, 0])), -128, 127)
            cache[row, :, position] = states
        caches.append(cache)
    return caches[0], caches[1]


def seen(feeds: Feeds) -> tuple[Array, Array]:
    """The keys and values ``[b, h, c, d]`` in float64 that a step has in its caches."""
    keys, values = written(feeds) if "position" in feeds else (feeds["key_cache"], feeds["value_cache"])
    key_unit, value_unit = (np.float64(feeds.get(part, 1)) for part in ("key_unit", "value_unit"))
    return keys * key_unit, values * value_unit


@every_attention
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]),
    head_width=st.sampled_from([8, 16, 64]),
    extent=st.integers(1, 40),
)
def test_both_bodies_compute_the_formula(
    name: str, quantised: bool, seed: int, rows: int, heads: int, head_width: int, extent: int
) -> None:
    feeds = example(name, seed, quantised, rows=rows, heads=heads, head_width=head_width, extent=extent)
    if name == "SelfAttention":
        keys, values = by_head(feeds["key"], heads), by_head(feeds["value"], heads)
    else:
        keys, values = seen(feeds)
    visible = np.arange(extent) < valid(feeds)[:, None, None, None]
    expected = attention(by_head(feeds["query"], heads), keys, values, visible)[0]
    if name == "SelfAttention":
        expected[~visible[:, 0, 0]] = 0
    standard, fused = (attend(name, bodies, heads, feeds)["output"] for bodies in BODIES)
    np.testing.assert_allclose(standard, expected, atol=5e-6)
    np.testing.assert_allclose(fused, expected, atol=5e-6)
    np.testing.assert_allclose(standard, fused, atol=5e-6)


def in_fp16(feeds: Feeds) -> Feeds:
    return {part: array.astype(np.float16) if array.dtype == np.float32 else array for part, array in feeds.items()}


@pytest.mark.parametrize("name", ATTENTION)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    heads=st.sampled_from([1, 4]),
    head_width=st.sampled_from([8, 64]),
    extent=st.integers(1, 40),
)
def test_both_bodies_compute_the_formula_in_fp16(
    name: str, seed: int, rows: int, heads: int, head_width: int, extent: int
) -> None:
    feeds = in_fp16(example(name, seed, rows=rows, heads=heads, head_width=head_width, extent=extent))
    if name == "SelfAttention":
        keys, values = by_head(feeds["key"], heads), by_head(feeds["value"], heads)
    else:
        keys, values = seen(feeds)
    visible = np.arange(extent) < valid(feeds)[:, None, None, None]
    expected = attention(by_head(feeds["query"], heads), keys, values, visible)[0]
    if name == "SelfAttention":
        expected[~visible[:, 0, 0]] = 0
    for bodies in BODIES:
        output = attend(name, bodies, heads, feeds)["output"]
        assert output.dtype == np.float16
        np.testing.assert_allclose(output, expected, atol=FP16_TOLERANCE)


@every_body
@pytest.mark.parametrize(
    ("name", "size"),
    # In the bundle's graphs the encoder's padding is its tokens again: scores there are no larger than elsewhere.
    [("SelfAttention", 1.0), ("SelfAttention", 100.0), ("MaskedSelfAttention", 3e4), ("CrossAttention", 3e4)],
)
def test_what_lies_behind_a_rows_valid_length_changes_nothing_in_fp16(name: str, size: float, bodies: Bodies) -> None:
    for seed in range(5):
        feeds = in_fp16(example(name, seed))
        changed = {parameter: array.copy() for parameter, array in feeds.items()}
        random = np.random.default_rng(seed)
        for parameter in ("key", "value") if name == "SelfAttention" else ("key_cache", "value_cache"):
            for row, length in enumerate(valid(feeds)):
                behind = changed[parameter][row, ..., length:, :]
                behind[:] = size * random.choice([-1, 1], behind.shape) * random.uniform(1, 2, behind.shape)
        before, after = (attend(name, bodies, 2, given)["output"] for given in (feeds, changed))
        assert np.array_equal(before, after)


@pytest.mark.parametrize("half", [False, True])
def test_padding_is_masked_with_the_lowest_number_of_the_scores(half: bool) -> None:
    [function] = (function for function in functions.stepping("fused", False, half) if function.name == "SelfAttention")
    [node] = (node for node in function.node if node.op_type == "MultiHeadAttention")
    [mask] = (attribute.f for attribute in node.attribute if attribute.name == "mask_filter_value")
    assert mask == np.finfo(np.float16 if half else np.float32).min


@every_body
def test_fp16_caches_are_written_at_the_position_and_nowhere_else(bodies: Bodies) -> None:
    for seed in range(5):
        feeds = in_fp16(example("MaskedSelfAttention", seed))
        outputs = attend("MaskedSelfAttention", bodies, 2, feeds)
        for output, expected in zip(("keys", "values"), written(feeds), strict=True):
            assert outputs[output].dtype == np.float16
            assert np.array_equal(outputs[output], expected)
        feeds = in_fp16(example("CrossAttention", seed))
        outputs = attend("CrossAttention", bodies, 2, feeds)
        for output, part in CACHES.items():
            assert np.array_equal(outputs[output], feeds[part])


@every_attention
@every_body
@pytest.mark.parametrize("size", [1.0, 100.0, 1e6, 1e12])
def test_what_lies_behind_a_rows_valid_length_changes_nothing(
    name: str, quantised: bool, bodies: Bodies, size: float
) -> None:
    for seed in range(5):
        feeds = example(name, seed, quantised)
        changed = {parameter: array.copy() for parameter, array in feeds.items()}
        random = np.random.default_rng(seed)
        for parameter in ("key", "value") if name == "SelfAttention" else ("key_cache", "value_cache"):
            for row, length in enumerate(valid(feeds)):
                behind = changed[parameter][row, ..., length:, :]
                junk = size * random.choice([-1, 1], behind.shape) * random.uniform(1, 2, behind.shape)
                behind[:] = np.clip(junk, -128, 127) if quantised else junk
        before, after = (attend(name, bodies, 2, given)["output"] for given in (feeds, changed))
        assert np.array_equal(before, after)


@every_attention
@every_body
def test_a_row_gets_the_same_bits_alone_and_among_others(name: str, quantised: bool, bodies: Bodies) -> None:
    for seed in range(8):
        feeds = example(name, seed, quantised, rows=9, heads=4, head_width=16, extent=8 * (seed + 1))
        together = attend(name, bodies, 4, feeds)
        for row in range(9):
            part = slice(row, row + 1)
            own = {parameter: array if "unit" in parameter else array[part] for parameter, array in feeds.items()}
            alone = attend(name, bodies, 4, own)
            for output, array in together.items():
                assert np.array_equal(alone[output], array[part])


@every_attention
@every_body
def test_another_number_of_threads_gives_the_same_bits(name: str, quantised: bool, bodies: Bodies) -> None:
    for seed, rows in enumerate((1, 2, 9, 33)):
        feeds = example(name, seed, quantised, rows=rows, heads=4, head_width=16, extent=40)
        one, two = (attend(name, bodies, 4, feeds, threads) for threads in (1, 2))
        for output, array in one.items():
            assert np.array_equal(two[output], array)


@every_attention
@every_body
def test_a_row_gets_the_same_bits_whatever_the_room_behind_it(name: str, quantised: bool, bodies: Bodies) -> None:
    for seed in range(8):
        feeds = example(name, seed, quantised, extent=16)
        roomy = dict(feeds)
        for parameter in ("query", "key", "value") if name == "SelfAttention" else ("key_cache", "value_cache"):
            room = [(0, 0)] * feeds[parameter].ndim
            room[-2] = (0, 24)
            roomy[parameter] = np.pad(feeds[parameter], room)
        tight, wide = (attend(name, bodies, 2, given)["output"] for given in (feeds, roomy))
        assert np.array_equal(tight, wide[:, : tight.shape[1]])


@every_cache
@every_body
def test_masked_self_attention_writes_key_and_value_at_the_position_and_nothing_else(
    bodies: Bodies, quantised: bool
) -> None:
    for seed in range(5):
        feeds = example("MaskedSelfAttention", seed, quantised)
        outputs = attend("MaskedSelfAttention", bodies, 2, feeds)
        keys, values = written(feeds)
        assert np.array_equal(outputs["keys"], keys)
        assert np.array_equal(outputs["values"], values)


def test_both_bodies_write_the_same_to_an_int8_cache_whatever_the_unit() -> None:
    """Also where a number is a half but for its last bit."""
    for seed in range(5):
        feeds = example("MaskedSelfAttention", seed, True, rows=50)
        random = np.random.default_rng(seed)
        for part in ("key", "value"):
            unit = feeds[f"{part}_unit"]
            unit[:] = random.integers(512, 1025, unit.shape) / 2**16  # as calibrated: of 10 bits
            feeds[part][::2] = (random.integers(-140, 140, feeds[part][::2].shape) + 0.5) * unit.ravel()
        expected = written(feeds)
        for bodies in BODIES:
            outputs = attend("MaskedSelfAttention", bodies, 2, feeds)
            assert np.array_equal(outputs["keys"], expected[0])
            assert np.array_equal(outputs["values"], expected[1])


@every_cache
@every_body
def test_cross_attention_leaves_its_caches_as_they_were(bodies: Bodies, quantised: bool) -> None:
    for seed in range(5):
        feeds = example("CrossAttention", seed, quantised)
        outputs = attend("CrossAttention", bodies, 2, feeds)
        assert np.array_equal(outputs["keys"], feeds["key_cache"])
        assert np.array_equal(outputs["values"], feeds["value_cache"])


@every_attention
def test_standard_bodies_run_outside_onnx_runtime(name: str, quantised: bool) -> None:
    feeds = example(name, 3, quantised)
    model = one_node(name, "standard", 2, quantised=quantised)
    given = packed(feeds) if name == "SelfAttention" else feeds
    elsewhere = ReferenceEvaluator(model).run(["output"], given)[0]
    if name == "SelfAttention":
        elsewhere = unpacked(elsewhere, feeds)
    np.testing.assert_allclose(elsewhere, attend(name, "standard", 2, feeds)["output"], atol=5e-6)


@pytest.mark.parametrize("quantised", [False, True])
def test_a_functions_bodies_share_one_signature(quantised: bool) -> None:
    signatures = [
        [(function.name, list(function.input), list(function.output), list(function.attribute)) for function in found]
        for found in (
            functions.stepping("standard", quantised),
            functions.stepping("fused", quantised),
            *(functions.stepping(bodies, False, half=True) for bodies in BODIES if not quantised),
        )
    ]
    assert all(signature == signatures[0] for signature in signatures)
    assert [name for name, *_ in signatures[0]] == [*ATTENTION, "Linear", *(CACHE_LAYERS if quantised else ())]


@pytest.mark.parametrize("quantised", [False, True])
def test_standard_bodies_hold_only_operators_of_onnx_and_one_another(quantised: bool) -> None:
    for found in (functions.stepping("standard", quantised), functions.inspecting("standard", quantised)):
        own = {(DOMAIN, function.name) for function in found if function.name in CACHE_LAYERS}
        for node in (node for function in found for node in function.node):
            assert node.domain == "" or (node.domain, node.op_type) in own


@pytest.mark.parametrize(
    ("name", "bodies", "expected"),
    [
        ("SelfAttention", "standard", ["SelfAttention"]),
        ("Linear", "standard", ["Linear"]),
        ("MaskedSelfAttention", "standard", ["MaskedSelfAttention", *CACHE_LAYERS]),
        ("CrossAttention", "standard", ["CrossAttention", "DequantizeCache"]),
        ("MaskedSelfAttention", "fused", ["MaskedSelfAttention"]),
        ("CrossAttention", "fused", ["CrossAttention", "DequantizeCache"]),
    ],
)
def test_what_a_node_calls_is_found_with_what_that_calls_in_turn(
    name: str, bodies: Bodies, expected: list[str]
) -> None:
    known = functions.stepping(bodies, True)
    nodes = [helper.make_node(name, [], [], domain=DOMAIN), helper.make_node("Linear", [], [], domain="other")]
    assert sorted(function.name for function in functions.called(nodes, iter(known))) == sorted(expected)
    assert sorted(function.name for function in functions.called([*nodes, *nodes], known)) == sorted(expected)


@pytest.mark.parametrize("name", ATTENTION)
def test_inspected_attention_shows_the_weights_and_scores_of_the_formula(name: str) -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        queries, keys = random.integers(1, 12, 2)
        feeds: Feeds = {
            "query": random.standard_normal((3, queries, 32)).astype(np.float32),
            **{part: random.standard_normal((3, keys, 32)).astype(np.float32) for part in ("key", "value")},
            "visible": random.random((3, 1, queries, keys)) < 0.5,
        }
        feeds["visible"][..., 0] = True
        hidden = ~feeds["visible"].any((1, 2))
        feeds["value"][hidden] = feeds["key"][hidden] = 1e12
        outputs = run(session(name, "fused", 4, inspected=True), feeds)
        split = [by_head(feeds[part], 4) for part in ("query", "key", "value")]
        output, weights, scores = attention(*split, feeds["visible"])
        np.testing.assert_allclose(outputs["output"], output, atol=5e-6)
        np.testing.assert_allclose(outputs["weights"], weights, atol=5e-6)
        near = np.broadcast_to(~hidden[:, None, None], scores.shape)
        np.testing.assert_allclose(outputs["scores"][near], scores[near], atol=1e-5)
        np.testing.assert_allclose(outputs["weights"].sum(-1), 1, atol=1e-6)
        assert not outputs["weights"][~np.broadcast_to(feeds["visible"], weights.shape)].any()


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_inspected_in_fp32_in_an_fp16_bundle(name: str) -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        queries, keys = random.integers(1, 12, 2)
        # Products beyond what fp16 holds.
        feeds: Feeds = {
            "query": (30 * random.standard_normal((3, queries, 512))).astype(np.float16),
            "key": (30 * random.standard_normal((3, keys, 512))).astype(np.float16),
            "value": random.standard_normal((3, keys, 512)).astype(np.float16),
            "visible": random.random((3, 1, queries, keys)) < 0.5,
        }
        feeds["visible"][..., 0] = True
        outputs = run(session(name, "fused", 1, inspected=True, half=True), feeds)
        split = [by_head(feeds[part], 1) for part in ("query", "key", "value")]
        output, weights, scores = attention(*split, feeds["visible"])
        assert {part: array.dtype for part, array in outputs.items()} == {
            "output": np.float16,
            "weights": np.float32,
            "scores": np.float32,
        }
        np.testing.assert_allclose(outputs["scores"], scores, rtol=1e-5, atol=1e-2)
        np.testing.assert_allclose(outputs["weights"], weights, atol=5e-3)
        np.testing.assert_allclose(outputs["output"], output, atol=2e-2)
        np.testing.assert_allclose(outputs["weights"].sum(-1), 1, atol=1e-6)


@every_body
@pytest.mark.parametrize(("states", "unit"), [((3, 5, 16), (16,)), ((3, 2, 5, 8), (2, 1, 8))], ids=["whole", "by head"])
def test_a_cache_holds_the_nearest_whole_number_of_units(
    bodies: Bodies, states: tuple[int, ...], unit: tuple[int, ...]
) -> None:
    """Halves to even, clamped at both ends."""
    for seed in range(5):
        random = np.random.default_rng(seed)
        units = random.uniform(0.005, 0.03, unit).astype(np.float32)
        units[..., ::2] = np.exp2(random.integers(-9, -4, unit))[..., ::2]
        values = np.where(
            random.random(states) < 0.5,
            random.integers(-140, 140, states) + 0.5,
            random.choice([0.3, 60, 1000, 1e30], states) * random.standard_normal(states),
        )
        feeds = {"states": (values * units).astype(np.float32), "unit": units}
        found = run(session("QuantizeCache", bodies, quantised=True), feeds)["integers"]
        expected = np.clip(np.rint(feeds["states"] * (np.float32(1) / units)), -128, 127)
        assert found.dtype == np.int8
        assert np.array_equal(found, expected)
        torch_rounds = torch.round(torch.from_numpy(feeds["states"]) * (1 / torch.from_numpy(units))).clamp(-128, 127)
        assert np.array_equal(found, torch_rounds.numpy())


@every_body
@pytest.mark.parametrize(
    ("states", "unit"), [((3, 256, 16), (16,)), ((3, 2, 256, 8), (2, 1, 8))], ids=["whole", "by head"]
)
def test_a_cache_gives_back_units_times_whole_numbers(
    bodies: Bodies, states: tuple[int, ...], unit: tuple[int, ...]
) -> None:
    units = np.random.default_rng(0).uniform(0.005, 0.03, unit).astype(np.float32)
    integers = np.broadcast_to(np.arange(-128, 128, dtype=np.int8)[:, None], states)
    found = run(session("DequantizeCache", bodies, quantised=True), {"integers": integers, "unit": units})["states"]
    assert found.dtype == np.float32
    assert np.array_equal(found, integers.astype(np.float32) * units)


@every_body
def test_linear_is_a_product_and_a_bias(bodies: Bodies) -> None:
    random = np.random.default_rng(0)
    feeds = {
        part: random.standard_normal(shape).astype(np.float32)
        for part, shape in (("input", (5, 24)), ("weight", (24, 7)), ("bias", (7,)))
    }
    expected = feeds["input"].astype(np.float64) @ feeds["weight"] + feeds["bias"]
    np.testing.assert_allclose(run(session("Linear", bodies), feeds)["output"], expected, atol=1e-5)
    feeds = in_fp16(feeds)
    exact = {part: array.astype(np.float64) for part, array in feeds.items()}
    output = run(session("Linear", bodies, half=True), feeds)["output"]
    assert output.dtype == np.float16
    np.testing.assert_allclose(output, exact["input"] @ exact["weight"] + exact["bias"], rtol=1e-3, atol=1e-2)


def quantised_linear(
    features: int, rows: int, seed: int, negative: bool = True
) -> tuple[QuantizedLinear, Array, Feeds]:
    """An int8 layer, an input of which some lies outside the calibrated range, and what the function reads of both."""
    random = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(features, 43)
    linear.weight.data.normal_(generator=random)
    linear.bias.data.normal_(generator=random)
    states = torch.randn(rows, features, generator=random)
    if not negative:
        states = states.relu()
    states[1:2] = 0
    module = QuantizedLinear(linear, Rounding.of(-2.5 if negative else 0.0, 2.5))
    step, zero = module.rounding
    return (
        module,
        states.numpy(),
        {
            "input": (torch.round(states / step) + zero).clamp(0, 255).to(torch.uint8).numpy(),
            "step": np.array(step, np.float32),
            "zero": np.array(zero, np.uint8),
            "weight": module.weight.T.numpy(),
            "unit": module.unit.numpy(),
            "bias": module.bias.detach().numpy(),
        },
    )


def prepacked(bodies: Bodies, feeds: Feeds) -> onnxruntime.InferenceSession:
    """int8 ``Linear`` with all but its input as constants, as in a bundle: the runtime lays them out anew."""
    model = onnx.ModelProto()
    model.CopyFrom(one_node("Linear", bodies, quantised=True))
    del model.graph.input[1:]
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), part)
        for part, array in feeds.items()
        if part != "input"
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("negative", [True, False], ids=["around 128", "from 0"])
@pytest.mark.parametrize("features", [24, 64, 1024, 2048])
def test_int8_linear_is_the_quantised_layer_bit_for_bit(features: int, negative: bool) -> None:
    """Product, then bias, each rounded for itself: neither body uses a fused multiply-add, and nor does PyTorch."""
    for seed, rows in enumerate((1, 2, 3, 7, 33)):
        module, states, feeds = quantised_linear(features, rows, seed, negative)
        expected = module(torch.from_numpy(states)).numpy()
        for bodies in BODIES:
            assert np.array_equal(run(session("Linear", bodies, quantised=True), feeds)["output"], expected)
            assert np.array_equal(prepacked(bodies, feeds).run(None, {"input": feeds["input"]})[0], expected)


@every_body
def test_int8_linear_computes_what_its_formula_says(bodies: Bodies) -> None:
    _, states, feeds = quantised_linear(256, 5, 0)
    exact = {part: array.astype(np.float64) for part, array in feeds.items()}
    expected = (exact["input"] - exact["zero"]) * exact["step"] @ (exact["weight"] * exact["unit"]) + exact["bias"]
    np.testing.assert_allclose(
        run(session("Linear", bodies, quantised=True), feeds)["output"], expected, rtol=1e-5, atol=1e-4
    )
    inside = np.abs(states) < 2.5
    step = float(feeds["step"])
    assert (np.abs((exact["input"] - exact["zero"]) * step - states)[inside] <= 0.5001 * step).all()


@every_body
@pytest.mark.parametrize("zero", [0, 128])
@pytest.mark.parametrize("end", [0, 255])
def test_the_largest_integer_product_there_can_be_is_exact(bodies: Bodies, zero: int, end: int) -> None:
    """Also on a processor that adds two products in 16 bits."""
    features = 2048
    feeds = {
        "input": np.full((3, features), end, np.uint8),
        "step": np.array(1, np.float32),
        "zero": np.array(zero, np.uint8),
        "weight": np.full((features, 32), WEIGHT_LIMIT, np.int8),
        "unit": np.ones(32, np.float32),
        "bias": np.zeros(32, np.float32),
    }
    feeds["weight"][:, ::2] *= -1
    found = run(session("Linear", bodies, quantised=True), feeds)["output"]
    size = (end - zero) * WEIGHT_LIMIT * features
    assert (found[:, 1::2] == size).all()
    assert (found[:, ::2] == -size).all()


@pytest.mark.parametrize("rounding", [Rounding.of(-2.5, 1), Rounding.of(0, 2.5)], ids=["around 128", "from 0"])
def test_onnx_rounds_as_the_quantised_layer_does(rounding: Rounding) -> None:
    """Halves to even, clamped at both ends: one more or less on the way here, and all that follows differs."""
    step, zero = rounding
    node = helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["y"])
    parts = {"x": TensorProto.FLOAT, "step": TensorProto.FLOAT, "zero": TensorProto.UINT8, "y": TensorProto.UINT8}
    values = {
        part: helper.make_tensor_value_info(part, kind, ["n"] if part in "xy" else []) for part, kind in parts.items()
    }
    graph = helper.make_graph([node], "rounding", [values["x"], values["step"], values["zero"]], [values["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    onnx_rounds = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0).uniform(-3, 3, 1_000_000)
    halves = (np.arange(-300, 300) + 0.5) * step
    states = np.concatenate([random, halves, np.nextafter(halves, 0), [0, -0.0, 1e30, -1e30]]).astype(np.float32)
    feeds = {"x": states, "step": np.array(step, np.float32), "zero": np.array(zero, np.uint8)}
    expected = (torch.round(torch.from_numpy(states) / step) + zero).clamp(0, 255)
    assert np.array_equal(onnx_rounds.run(None, feeds)[0], expected.numpy())


@every_body
@pytest.mark.parametrize("features", [64, 2048])
def test_int8_linear_gives_a_row_the_same_bits_whatever_its_company(bodies: Bodies, features: int) -> None:
    function = session("Linear", bodies, quantised=True)
    for seed in range(3):
        _, _, feeds = quantised_linear(features, 33, seed)
        together = run(function, feeds)["output"]
        for rows in (slice(0, 1), slice(1, 2), slice(5, 9), slice(32, 15, -1)):
            assert np.array_equal(run(function, feeds | {"input": feeds["input"][rows]})["output"], together[rows])
