import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.quantize import (
    CACHE_LIMIT,
    WEIGHT_LIMIT,
    QuantizedEmbedding,
    QuantizedLinear,
    Rounding,
    calibrate,
    quantize_rows,
    quantized,
)
from model.config import ModelConfig
from model.tokenizer import END
from model.transformer import Transformer


def random_rows() -> torch.Tensor:
    """Rows of sizes from 1e-20 to 1e20, and one of zeros."""
    rows = torch.randn(41, 96, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-20, 21)[:, None]
    return torch.cat((rows, torch.zeros(1, 96)))


def test_weights_use_seven_bits_and_are_off_by_at_most_half_a_unit() -> None:
    weight = random_rows()
    integers, unit = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert (integers[:-1].abs().amax(1) == 63).all()
    error = (integers.double() * unit.double()[:, None] - weight.double()).abs()
    assert (error <= unit.double()[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_zeros() -> None:
    integers, unit = quantize_rows(random_rows())
    assert not integers[-1].any()
    assert unit.isfinite().all()
    assert (unit > 0).all()


def test_an_embedding_is_off_by_at_most_half_a_unit() -> None:
    embedding = torch.nn.Embedding.from_pretrained(random_rows())
    found, ids = QuantizedEmbedding(embedding), torch.tensor([[0, 41], [20, 7]])
    half = embedding(ids).abs().amax(-1, keepdim=True) / WEIGHT_LIMIT / 2
    assert ((found(ids) - embedding(ids)).abs() <= half * 1.001).all()


def test_a_linear_layer_is_close_to_the_one_it_replaces() -> None:
    torch.manual_seed(0)
    linear, states = torch.nn.Linear(256, 64), torch.randn(9, 256)
    expected = linear(states)
    rounding = Rounding.of(float(states.min()), float(states.max()))
    assert (QuantizedLinear(linear, rounding)(states) - expected).norm() < 0.02 * expected.norm()


def test_a_wide_linear_layer_sums_without_an_error() -> None:
    """Its sums pass 2^24, up to which fp32 holds every whole number."""
    linear = torch.nn.Linear(4096, 1)
    linear.weight.data.fill_(1)
    linear.bias.data.zero_()
    layer = QuantizedLinear(linear, Rounding(1.0, 0))
    states = torch.full((1, 4096), 255.0)
    states[0, 0] = 254
    assert layer(states).item() == np.float32(63 * (255 * 4096 - 1)) * (layer.unit * 1.0).item()


WIDTHS = st.floats(1e-20, 1e20, allow_subnormal=False)


@given(WIDTHS, WIDTHS)
def test_a_rounding_around_128_just_holds_its_range(below: float, above: float) -> None:
    step, zero = Rounding.of(-below, above)
    limit = max(below, above)
    assert zero == 128
    assert limit <= 127 * step * (1 + 1e-12) <= limit * (1 + 2**-9 + 1e-11)
    assert (torch.round(torch.tensor([-limit, limit]) / step) + zero).tolist() == [1.0, 255.0]


@given(WIDTHS)
def test_a_range_without_negative_numbers_starts_at_0_and_has_finer_steps(above: float) -> None:
    step, zero = Rounding.of(0.0, above)
    assert zero == 0
    assert above <= 255 * step * (1 + 1e-12) <= above * (1 + 2**-9 + 1e-11)


def test_an_input_that_is_always_0_has_a_rounding_all_the_same() -> None:
    assert 0 < Rounding.of(0.0, 0.0).step < 1e-29


@given(st.floats(1e-6, 1e6))
def test_a_step_is_exact_in_fp32(limit: float) -> None:
    step = Rounding.of(-limit, limit).step
    assert step == np.float32(step)


def test_the_last_bits_of_a_range_hardly_ever_reach_the_step() -> None:
    """They differ between processors and numbers of threads, and a bundle's bytes must not."""
    limits = np.random.default_rng(0).uniform(0.01, 100, 2000).astype(np.float32)
    steps = [
        [Rounding.of(0.0, float(limit)).step for limit in (each, np.nextafter(each, np.float32(0)))] for each in limits
    ]
    assert sum(one != other for one, other in steps) <= 4


def test_what_lies_outside_the_range_is_clamped() -> None:
    linear = torch.nn.Linear(1, 1)
    linear.weight.data.fill_(1)
    linear.bias.data.zero_()
    around, above = (QuantizedLinear(linear, rounding) for rounding in (Rounding(1.0, 128), Rounding(1.0, 0)))
    states = torch.tensor([[-1e9], [-128.0], [-3.4], [0.0], [0.5], [1.5], [127.0], [128.0], [255.0], [1e9]])
    # Halves go to the even neighbour, as in ONNX.
    assert around(states).round().flatten().tolist() == [-128, -128, -3, 0, 0, 2, 127, 127, 127, 127]
    assert above(states).round().flatten().tolist() == [0, 0, 0, 0, 0, 2, 127, 128, 255, 255]


def test_a_linear_layer_with_a_cache_unit_gives_what_a_cache_gives_back() -> None:
    """Whole numbers of units, the nearest ones: halves to even, -128 to 127."""
    linear = torch.nn.Linear(1, 3)
    linear.bias.data.zero_()
    unit = torch.tensor([1.0, 0.25, 8.0])
    states = torch.tensor([[-1000.0], [-128.0], [-20.0], [-12.0], [-4.0], [0.0], [4.0], [12.0], [127.0], [1000.0]])
    layer = QuantizedLinear(linear, Rounding(1.0, 128), unit)
    layer.weight.fill_(1)
    layer.unit.fill_(1)
    assert (layer(states) / unit).T.tolist() == [
        [-128, -128, -20, -12, -4, 0, 4, 12, 127, 127],
        [-128, -128, -80, -48, -16, 0, 16, 48, 127, 127],
        [-16, -16, -2, -2, 0, 0, 0, 2, 16, 16],
    ]


def test_only_seven_bits_of_weight_fit_the_sixteen_bit_sums_of_avx2() -> None:
    # vpmaddubsw adds two products of an unsigned and a signed byte into 16 signed bits.
    assert 2 * 255 * WEIGHT_LIMIT <= np.iinfo(np.int16).max < 2 * 255 * 127


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocabulary": 40, "width": 16, "heads": 2, "feed_forward": 24, "encoder_layers": 1, "decoder_layers": 1}
    return Transformer(ModelConfig(**shape, tied_embeddings=request.param, dropout=0.1))


PAIRS = [([4, 9, 30, 7, END], [11, 12, END]), ([5, END], [8, 9, 10, 11, 12, END])]


def calibrated(model: Transformer) -> Transformer:
    return quantized(model, calibrate(copy.deepcopy(model).eval(), PAIRS))


def test_every_linear_layer_has_a_rounding_that_just_holds_what_it_reads(model: Transformer) -> None:
    model.eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
    roundings = calibrate(model, PAIRS).inputs
    assert set(roundings) == set(seen)
    for name, rounding in roundings.items():
        read = torch.cat([states.flatten() for states in seen[name]])
        assert rounding == Rounding.of(min(0.0, float(read.min())), float(read.max()))
        assert rounding.zero == (0 if name.endswith(".outer") else 128)  # after ReLU


def test_layers_that_read_the_same_states_get_the_same_rounding(model: Transformer) -> None:
    """The graphs round such states once."""
    found = calibrate(model.eval(), PAIRS).inputs
    for attention in ("encoder.0.self_attention", "decoder.0.self_attention"):
        assert found[f"{attention}.query"] == found[f"{attention}.key"] == found[f"{attention}.value"]
    assert found["decoder.0.cross_attention.key"] == found["decoder.0.cross_attention.value"]


def hooks(model: Transformer) -> list[object]:
    return [hook for module in model.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


def test_every_channel_of_the_decoders_keys_and_values_has_a_unit_that_just_holds_it(model: Transformer) -> None:
    """Its peak is 127 units, of ten bits: nothing the model was calibrated with is clipped."""
    model.eval()
    made: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *call, name=name: made.setdefault(name, []).append(call[2][0]))
    units = calibrate(model, PAIRS).caches
    assert set(units) == {f"decoder.0.{use}_attention.{part}" for use in ("self", "cross") for part in ("key", "value")}
    for name, unit in units.items():
        assert unit.dtype == torch.float32
        assert unit.shape == (16,)
        peaks = torch.cat(made[name]).abs().amax(0).double()
        assert (peaks / unit.double() <= CACHE_LIMIT).all()
        assert (peaks / unit.double() >= CACHE_LIMIT * (1 - 2**-9)).all()
        assert all(math.frexp(each)[0] * 2**10 % 1 == 0 for each in unit.tolist())


def test_a_channel_that_is_always_0_has_a_unit_all_the_same(model: Transformer) -> None:
    key = model.eval().decoder[0].self_attention.key
    with torch.no_grad():
        key.weight[3], key.bias[3] = 0, 0
    unit = calibrate(model, PAIRS).caches["decoder.0.self_attention.key"]
    assert 0 < unit[3] < 1e-29
    assert not calibrated(model).decoder[0].self_attention.key(torch.randn(9, 16))[:, 3].any()


def test_calibration_reads_each_pair_alone_and_leaves_no_trace(model: Transformer) -> None:
    """Alone there is no padding, whose states would widen the ranges."""
    model.eval()
    one, other = (calibrate(model, [pair]) for pair in PAIRS)
    both, reverse = calibrate(model, PAIRS), calibrate(model, reversed(PAIRS))
    assert one.inputs != both.inputs != other.inputs
    assert all(both.inputs[name].step == max(one.inputs[name].step, other.inputs[name].step) for name in both.inputs)
    assert reverse.inputs == both.inputs
    for name, unit in both.caches.items():
        assert torch.equal(unit, torch.maximum(one.caches[name], other.caches[name]))
        assert torch.equal(unit, reverse.caches[name])
    assert not hooks(model)


def test_calibration_that_fails_leaves_no_hook_behind(model: Transformer) -> None:
    with pytest.raises(IndexError):
        calibrate(model, [([4, 999], [5])])
    assert not hooks(model)


def test_gelu_gives_negative_numbers_and_so_a_rounding_around_128() -> None:
    torch.manual_seed(0)
    shape = {"vocabulary": 40, "width": 16, "heads": 2, "feed_forward": 24, "encoder_layers": 1, "decoder_layers": 1}
    found = calibrate(Transformer(ModelConfig(**shape, activation="gelu")).eval(), PAIRS)
    assert {rounding.zero for rounding in found.inputs.values()} == {128}


def test_every_linear_layer_and_embedding_is_replaced(model: Transformer) -> None:
    result = calibrated(model)
    assert not [module for module in result.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert sum(isinstance(module, QuantizedLinear) for module in result.modules()) == linears
    assert isinstance(result.source_embedding, QuantizedEmbedding)
    assert isinstance(result.target_embedding, QuantizedEmbedding)
    assert (result.source_embedding is result.target_embedding) == model.config.tied_embeddings
    shared = torch.equal(result.source_embedding.weight, result.projection.weight)
    assert shared == model.config.tied_embeddings


def test_the_layers_of_keys_and_values_round_to_their_own_units_and_no_other_layer_does(model: Transformer) -> None:
    calibration = calibrate(copy.deepcopy(model).eval(), PAIRS)
    found = {
        name: module.cache_unit
        for name, module in quantized(model, calibration).named_modules()
        if isinstance(module, QuantizedLinear) and module.cache_unit is not None
    }
    assert set(found) == set(calibration.caches)
    assert all(found[name] is unit for name, unit in calibration.caches.items())


def test_without_units_keys_and_values_are_not_rounded(model: Transformer) -> None:
    calibration = calibrate(copy.deepcopy(model).eval(), PAIRS)
    one = "decoder.0.cross_attention.value"
    some = quantized(model, calibration._replace(caches={one: calibration.caches[one]}))
    none, states = quantized(model, calibration._replace(caches={})), torch.randn(50, 16)
    for name, unit in calibration.caches.items():
        plain = none.get_submodule(name)(states)
        rounded = torch.round(plain / unit).clamp(-128, 127) * unit
        assert not torch.equal(plain, rounded)
        assert torch.equal(some.get_submodule(name)(states), rounded if name == one else plain)


def test_quantising_leaves_the_original_as_it_was(model: Transformer) -> None:
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    result = calibrated(model)
    for norm in (module for module in result.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.weight.data.zero_()
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training
    assert not result.training
