"""What stands in a bundle's graphs as one node and opens into a subgraph: ONNX functions of the domain ``dragoman``.

Attention functions take queries, keys and values that are already projected; the projections stand outside as
``Linear``. Each function has one signature and two bodies:

* ``standard``: operators of ONNX itself. What a reader opens, and what any runtime runs.
* ``fused``: operators of ONNX Runtime (domain ``com.microsoft``). What ships, for speed.

Where keys and values are cached as int8, MaskedSelfAttention and CrossAttention take the size of each channel's unit
too. In the inspection graph (``attention.onnx``) the attention functions spell out every product and return the scores
and weights as well, which are fp32 in every precision. Shapes: b rows, h heads, d head width, w = h·d width, s source,
t target tokens, c cache capacity.

The texts are ONNX's own notation (``onnx.parser``).
"""

from collections.abc import Iterable
from typing import Literal

import onnx
import onnx.parser

from export.linear_functions import DEQUANTIZE_CACHE, LINEAR, LINEAR_INT8, QUANTIZE_CACHE

DOMAIN = "dragoman"
OPSET = 24
VENDOR = "com.microsoft"

ATTENTION = ("SelfAttention", "MaskedSelfAttention", "CrossAttention")

Bodies = Literal["standard", "fused"]

_LOWEST = {"fp32": "-3.4028235e38", "fp16": "-65504.0"}
"""The lowest finite numbers."""

_HEADER = f'<opset_import: ["" : {OPSET}, "{VENDOR}" : 1, "{DOMAIN}" : 1], domain: "{DOMAIN}">'

# Everything but attention over whole sentences sees tokens side by side; attention spreads them out to padded rows.
_SPREAD = """
    query_rows = Gather<axis: int = 0>(query, spread)
    key_rows = Gather<axis: int = 0>(key, spread)
    value_rows = Gather<axis: int = 0>(value, spread)"""
_SELF_ATTENTION = {
    # query, key, value [n, w], the tokens of all rows side by side; lengths [b] int32; places [n, 2] int64, row and
    # column of each token in the padded rows; spread [b, s] int64, the number of the token at each -> output [n, w]
    "standard": f"""
SelfAttention<heads>(query, key, value, lengths, places, spread) => (output)
{{{_SPREAD}
    valid = Cast<to: int = 7>(lengths)
    output_rows = Attention<q_num_heads: int = @heads, kv_num_heads: int = @heads>
        (query_rows, key_rows, value_rows, "", "", "", valid)
    output = GatherND(output_rows, places)
}}""",
    # The operator adds mask_filter_value to the scores of padding; its default, -10000, would let large ones through.
    # In fp16 the lowest finite number takes its place, for a lower one would be an infinity. It is low enough: behind a
    # row's tokens stand copies of the last one (``spread``), whose scores are no larger than that token's own.
    "fused": f"""
SelfAttention<heads>(query, key, value, lengths, places, spread) => (output)
{{{_SPREAD}
    output_rows = com.microsoft.MultiHeadAttention<num_heads: int = @heads, mask_filter_value: float = LOWEST>
        (query_rows, key_rows, value_rows, "", lengths)
    output = GatherND(output_rows, places)
}}""",
}

# Shapes of one step: by_head [b, h, 1, d] and split [b, 1, w].
_SHAPES = """
    split = Constant<value_ints: ints = [0, 1, -1]>()
    heads = Constant<value_int: int = @heads>()
    axis = Constant<value_ints: ints = [0]>()
    count = Unsqueeze(heads, axis)
    tail = Constant<value_ints: ints = [1, -1]>()
    row = Constant<value_ints: ints = [0]>()
    by_head = Concat<axis: int = 0>(row, count, tail)"""

# What GroupQueryAttention is told of a cache: how many keys it has room for and, of the source's, where the last is.
_TOTAL = """
    capacity = Shape<start: int = 2, end: int = 3>(key_cache)
    axis = Constant<value_ints: ints = [0]>()
    capacity_scalar = Squeeze(capacity, axis)
    total = Cast<to: int = 6>(capacity_scalar)"""
_LAST = """
    one = Constant<value_int: int = 1>()
    one_int32 = Cast<to: int = 6>(one)
    last = Sub(lengths, one_int32)"""

_MASKED_SELF_ATTENTION = {
    # One step: query, key, value [b, 1, w]; caches [b, h, c, d]; position [b] int32, where this step's key belongs.
    # A row sees the keys at 0 to its position: its future is not there yet, which is the mask.
    "standard": f"""
MaskedSelfAttention<heads>(query, key, value, key_cache, value_cache, position) => (output, keys, values)
{{{_SHAPES}
    query_by_head = Reshape(query, by_head)
    key_by_head = Reshape(key, by_head)
    value_by_head = Reshape(value, by_head)
    at = Cast<to: int = 7>(position)
    keys = TensorScatter<axis: int = 2>(key_cache, key_by_head, at)
    values = TensorScatter<axis: int = 2>(value_cache, value_by_head, at)
    one = Constant<value_int: int = 1>()
    valid = Add(at, one)
    output_by_head = Attention(query_by_head, keys, values, "", "", "", valid)
    output = Reshape(output_by_head, split)
}}""",
    "fused": f"""
MaskedSelfAttention<heads>(query, key, value, key_cache, value_cache, position) => (output, keys, values)
{{{_TOTAL}
    output, keys, values = com.microsoft.GroupQueryAttention<num_heads: int = @heads, kv_num_heads: int = @heads>
        (query, key, value, key_cache, value_cache, position, total)
}}""",
}

_CROSS_ATTENTION = {
    # One step: query [b, 1, w]; the source's key_cache, value_cache [b, h, s, d]; lengths [b] int32. last_key and
    # last_value [b, 1, w] are those of the source's last token once more, for the fused body.
    # keys and values come out as they went in, so that both bodies can work on one buffer in place.
    "standard": f"""
CrossAttention<heads>(query, last_key, last_value, key_cache, value_cache, lengths) => (output, keys, values)
{{{_SHAPES}
    query_by_head = Reshape(query, by_head)
    valid = Cast<to: int = 7>(lengths)
    output_by_head = Attention(query_by_head, key_cache, value_cache, "", "", "", valid)
    output = Reshape(output_by_head, split)
    keys = Identity(key_cache)
    values = Identity(value_cache)
}}""",
    # GroupQueryAttention appends a key before it attends: give it the source's last one, which it writes over itself.
    "fused": f"""
CrossAttention<heads>(query, last_key, last_value, key_cache, value_cache, lengths) => (output, keys, values)
{{{_LAST}{_TOTAL}
    output, keys, values = com.microsoft.GroupQueryAttention<num_heads: int = @heads, kv_num_heads: int = @heads>
        (query, last_key, last_value, key_cache, value_cache, last, total)
}}""",
}

_PER_CHANNEL = """num_heads: int = @heads, kv_num_heads: int = @heads, k_quant_type: string = "PER_CHANNEL",
         v_quant_type: string = "PER_CHANNEL", kv_cache_bit_width: int = 8"""

# As above with caches of int8; key_unit, value_unit [h, 1, d]. This step's own key and value are seen as the cache
# gives them back.
_MASKED_SELF_ATTENTION_INT8 = {
    "standard": f"""
MaskedSelfAttention<heads>(query, key, value, key_cache, value_cache, position, key_unit, value_unit)
    => (output, keys, values)
{{{_SHAPES}
    query_by_head = Reshape(query, by_head)
    key_by_head = Reshape(key, by_head)
    value_by_head = Reshape(value, by_head)
    key_int8 = {DOMAIN}.QuantizeCache(key_by_head, key_unit)
    value_int8 = {DOMAIN}.QuantizeCache(value_by_head, value_unit)
    at = Cast<to: int = 7>(position)
    keys = TensorScatter<axis: int = 2>(key_cache, key_int8, at)
    values = TensorScatter<axis: int = 2>(value_cache, value_int8, at)
    keys_fp32 = {DOMAIN}.DequantizeCache(keys, key_unit)
    values_fp32 = {DOMAIN}.DequantizeCache(values, value_unit)
    one = Constant<value_int: int = 1>()
    valid = Add(at, one)
    output_by_head = Attention(query_by_head, keys_fp32, values_fp32, "", "", "", valid)
    output = Reshape(output_by_head, split)
}}""",
    "fused": f"""
MaskedSelfAttention<heads>(query, key, value, key_cache, value_cache, position, key_unit, value_unit)
    => (output, keys, values)
{{{_TOTAL}
    output, keys, values = com.microsoft.GroupQueryAttention<{_PER_CHANNEL}>
        (query, key, value, key_cache, value_cache, position, total, "", "", "", "", "", key_unit, value_unit)
}}""",
}

# last_key and last_value [b, 1, w] are int8 as well.
_CROSS_ATTENTION_INT8 = {
    "standard": f"""
CrossAttention<heads>(query, last_key, last_value, key_cache, value_cache, lengths, key_unit, value_unit)
    => (output, keys, values)
{{{_SHAPES}
    query_by_head = Reshape(query, by_head)
    keys_fp32 = {DOMAIN}.DequantizeCache(key_cache, key_unit)
    values_fp32 = {DOMAIN}.DequantizeCache(value_cache, value_unit)
    valid = Cast<to: int = 7>(lengths)
    output_by_head = Attention(query_by_head, keys_fp32, values_fp32, "", "", "", valid)
    output = Reshape(output_by_head, split)
    keys = Identity(key_cache)
    values = Identity(value_cache)
}}""",
    "fused": f"""
CrossAttention<heads>(query, last_key, last_value, key_cache, value_cache, lengths, key_unit, value_unit)
    => (output, keys, values)
{{
    flat = Constant<value_ints: ints = [-1]>()
    key_unit_flat = Reshape(key_unit, flat)
    value_unit_flat = Reshape(value_unit, flat)
    last_key_fp32 = {DOMAIN}.DequantizeCache(last_key, key_unit_flat)
    last_value_fp32 = {DOMAIN}.DequantizeCache(last_value, value_unit_flat){_LAST}{_TOTAL}
    output, keys, values = com.microsoft.GroupQueryAttention<{_PER_CHANNEL}>
        (query, last_key_fp32, last_value_fp32, key_cache, value_cache, last, total, "", "", "", "", "",
         key_unit, value_unit)
}}""",
}

_INSPECTED = """
{name}<heads>(query, key, value, visible) => (output, weights, scores)
{{{widened}
    heads = Constant<value_int: int = @heads>()
    axis = Constant<value_ints: ints = [0]>()
    count = Unsqueeze(heads, axis)
    keep = Constant<value_ints: ints = [0, 0]>()
    rest = Constant<value_ints: ints = [-1]>()
    split = Concat<axis: int = 0>(keep, count, rest)
    query_split = Reshape(query{fp32}, split)
    key_split = Reshape(key{fp32}, split)
    value_split = Reshape(value{fp32}, split)
    query_by_head = Transpose<perm: ints = [0, 2, 1, 3]>(query_split)
    key_by_head = Transpose<perm: ints = [0, 2, 3, 1]>(key_split)
    value_by_head = Transpose<perm: ints = [0, 2, 1, 3]>(value_split)

    products = MatMul(query_by_head, key_by_head)
    head_width_int = Shape<start: int = 3, end: int = 4>(query_by_head)
    head_width = CastLike(head_width_int, products)
    root = Sqrt(head_width)
    scores = Div(products, root)

    hidden = Constant<value_float: float = -3.4028235e38>()
    masked = Where(visible, scores, hidden)
    weights = Softmax<axis: int = -1>(masked)

    sums = MatMul(weights, value_by_head)
    sums_split = Transpose<perm: ints = [0, 2, 1, 3]>(sums)
    joined = Concat<axis: int = 0>(keep, rest)
    output{fp32} = Reshape(sums_split, joined){narrowed}
}}"""
_INSPECTED_IN = {
    "fp32": {"fp32": "", "widened": "", "narrowed": ""},
    "fp16": {
        "fp32": "_fp32",
        "widened": """
    query_fp32 = Cast<to: int = 1>(query)
    key_fp32 = Cast<to: int = 1>(key)
    value_fp32 = Cast<to: int = 1>(value)""",
        "narrowed": """
    output = CastLike(output_fp32, query)""",
    },
}


def stepping(bodies: Bodies, quantised: bool, half: bool = False) -> list[onnx.FunctionProto]:
    """The functions of the encoder and of one decoding step; ``half``: for states of fp16."""
    masked, cross = (
        (_MASKED_SELF_ATTENTION_INT8, _CROSS_ATTENTION_INT8)
        if quantised
        else (_MASKED_SELF_ATTENTION, _CROSS_ATTENTION)
    )
    own = _SELF_ATTENTION[bodies].replace("LOWEST", _LOWEST["fp16" if half else "fp32"])
    return _with_linear([own, masked[bodies], cross[bodies]], bodies, quantised)


def inspecting(bodies: Bodies, quantised: bool, half: bool = False) -> list[onnx.FunctionProto]:
    """The functions of the inspection graph, as `stepping`.

    ``visible`` is boolean and broadcasts to ``[b, h, queries, keys]``.
    """
    parts = _INSPECTED_IN["fp16" if half else "fp32"]
    return _with_linear([_INSPECTED.format(name=name, **parts) for name in ATTENTION], bodies, quantised)


def _with_linear(attention: list[str], bodies: Bodies, quantised: bool) -> list[onnx.FunctionProto]:
    """The functions ``attention``, and those that stand around them: Linear and, in int8, into a cache and back."""
    others = [LINEAR_INT8[bodies], QUANTIZE_CACHE, DEQUANTIZE_CACHE] if quantised else [LINEAR]
    return [onnx.parser.parse_function(_HEADER + text) for text in [*attention, *others]]


def called(nodes: Iterable[onnx.NodeProto], known: Iterable[onnx.FunctionProto]) -> list[onnx.FunctionProto]:
    """Those of ``known`` that ``nodes`` call, after those that these call in turn: some readers want that order."""
    known = list(known)
    names = {node.op_type for node in nodes if node.domain == DOMAIN}
    found = [function for function in known if function.name in names]
    inner = [node for function in found for node in function.node if node.domain == DOMAIN]
    first = called(inner, known) if inner else []
    return first + [function for function in found if function not in first]
