"""The ONNX functions that stand around attention: linear layers, and keys and values into a cache of int8 and back."""

LINEAR = """
Linear(input, weight, bias) => (output)
{
    product = MatMul(input, weight)
    output = Add(product, bias)
}"""

# input [..., in] uint8, already rounded: (input - zero) · step is the activation. weight [in, out] int8 in ±63, of
# which one is worth unit [out]. The integer product is exact, so no row's numbers depend on another's.
LINEAR_INT8 = {
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

# Keys or values as whole numbers of ``unit``, in -128 ... 127, and back; unit broadcasts to their shape. Times the
# reciprocal, because the fused operator does so when it writes to a cache.
QUANTIZE_CACHE = """
QuantizeCache(states, unit) => (integers)
{
    per_unit = Reciprocal(unit)
    units = Mul(states, per_unit)
    one = Constant<value_float: float = 1.0>()
    zero = Constant<value = int8 {0}>()
    integers = QuantizeLinear(units, one, zero)
}"""
DEQUANTIZE_CACHE = """
DequantizeCache(integers, unit) => (states)
{
    whole = Cast<to: int = 1>(integers)
    states = Mul(whole, unit)
}"""
