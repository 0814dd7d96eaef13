"""What stands in a bundle's graphs as one node and opens into a subgraph: ONNX functions of the domain ``dragoman``.

Attention functions take queries, keys and values that are already projected; the projections stand outside as
``Linear``. Each function has one signature and two bodies:

* ``standard``: operators of ONNX itself. What a reader opens, and what any runtime runs.
* ``fused``: operators of ONNX Runtime (domain ``com.microsoft``). What ships, for speed.

In the inspection graph (``attention.onnx``) the attention functions spell out every product and return the scores and
weights as well. Shapes: b rows, h heads, d head width, w = h·d width, s source, t target tokens, c cache capacity.

The texts are ONNX's own notation (``onnx.parser``).
"""

from typing import Literal

import onnx
import onnx.parser

DOMAIN = "dragoman"
OPSET = 24
VENDOR = "com.microsoft"

Bodies = Literal["standard", "fused"]

_HEADER = f'<opset_import: ["" : {OPSET}, "{VENDOR}" : 1], domain: "{DOMAIN}">'

_SELF_ATTENTION = {
    # query, key, value [b, s, w]; lengths [b] int32 -> output [b, s, w]
    "standard": """
SelfAttention<heads>(query, key, value, lengths) => (output)
{
    valid = Cast<to: int = 7>(lengths)
    output = Attention<q_num_heads: int = @heads, kv_num_heads: int = @heads>(query, key, value, "", "", "", valid)
}""",
    # The operator adds mask_filter_value to the scores of padding; its default, -10000, would let large ones through.
    "fused": """
SelfAttention<heads>(query, key, value, lengths) => (output)
{
    output = com.microsoft.MultiHeadAttention<num_heads: int = @heads, mask_filter_value: float = -3.4028235e38>
        (query, key, value, "", lengths)
}""",
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
    "fused": """
MaskedSelfAttention<heads>(query, key, value, key_cache, value_cache, position) => (output, keys, values)
{
    capacity = Shape<start: int = 2, end: int = 3>(key_cache)
    axis = Constant<value_ints: ints = [0]>()
    capacity_scalar = Squeeze(capacity, axis)
    total = Cast<to: int = 6>(capacity_scalar)
    output, keys, values = com.microsoft.GroupQueryAttention<num_heads: int = @heads, kv_num_heads: int = @heads>
        (query, key, value, key_cache, value_cache, position, total)
}""",
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
    "fused": """
CrossAttention<heads>(query, last_key, last_value, key_cache, value_cache, lengths) => (output, keys, values)
{
    one = Constant<value_int: int = 1>()
    one_int32 = Cast<to: int = 6>(one)
    last = Sub(lengths, one_int32)
    capacity = Shape<start: int = 2, end: int = 3>(key_cache)
    axis = Constant<value_ints: ints = [0]>()
    capacity_scalar = Squeeze(capacity, axis)
    total = Cast<to: int = 6>(capacity_scalar)
    output, keys, values = com.microsoft.GroupQueryAttention<num_heads: int = @heads, kv_num_heads: int = @heads>
        (query, last_key, last_value, key_cache, value_cache, last, total)
}""",
}

_INSPECTED = """
{name}<heads>(query, key, value, visible) => (output, weights, scores)
{{
    heads = Constant<value_int: int = @heads>()
    axis = Constant<value_ints: ints = [0]>()
    count = Unsqueeze(heads, axis)
    keep = Constant<value_ints: ints = [0, 0]>()
    rest = Constant<value_ints: ints = [-1]>()
    split = Concat<axis: int = 0>(keep, count, rest)
    query_split = Reshape(query, split)
    key_split = Reshape(key, split)
    value_split = Reshape(value, split)
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
    output = Reshape(sums_split, joined)
}}"""

_LINEAR = """
Linear(input, weight, bias) => (output)
{
    product = MatMul(input, weight)
    output = Add(product, bias)
}"""

# input [..., in] uint8, already rounded: (input - zero) · step is the activation. weight [in, out] int8 in ±63, of
# which one is worth unit [out]. The integer product is exact, so no row's numbers depend on another's.
_LINEAR_INT8 = {
    "standard": """
Linear(input, step, zero, weight, unit, bias) => (output)
{
    weight_zero = Constant<value = int8 {0}>()
    integers = MatMulInteger(input, weight, zero, weight_zero)
    product = Cast<to: int = 1>(integers)
    scale = Mul(step, unit)
    scaled = Mul(product, scale)
    output = Add(scaled, bias)
}""",
    "fused": """
Linear(input, step, zero, weight, unit, bias) => (output)
{
    weight_zero = Constant<value = int8 {0}>()
    output = com.microsoft.MatMulIntegerToFloat(input, weight, step, unit, zero, weight_zero, bias)
}""",
}


def _parse(text: str) -> onnx.FunctionProto:
    return onnx.parser.parse_function(_HEADER + text)


def stepping(bodies: Bodies, quantised: bool) -> list[onnx.FunctionProto]:
    """The functions of the encoder and of one decoding step."""
    texts = [attention[bodies] for attention in (_SELF_ATTENTION, _MASKED_SELF_ATTENTION, _CROSS_ATTENTION)]
    return [_parse(text) for text in [*texts, _LINEAR_INT8[bodies] if quantised else _LINEAR]]


def inspecting(bodies: Bodies, quantised: bool) -> list[onnx.FunctionProto]:
    """The functions of the inspection graph; ``visible`` is boolean and broadcasts to ``[b, h, queries, keys]``."""
    names = ("SelfAttention", "MaskedSelfAttention", "CrossAttention")
    texts = [_INSPECTED.format(name=name) for name in names]
    return [_parse(text) for text in [*texts, _LINEAR_INT8[bodies] if quantised else _LINEAR]]
