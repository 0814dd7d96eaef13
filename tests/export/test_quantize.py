import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from export.functions import DOMAIN, OPSET, VENDOR, Bodies, stepping
from export.quantize import (
    ACTIVATION_LIMIT,
    WEIGHT_LIMIT,
    QuantizedEmbedding,
    QuantizedLinear,
    quantize_rows,
    quantized,
)
from model.config import ModelConfig
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
    assert (QuantizedLinear(linear)(states) - expected).norm() < 0.02 * expected.norm()


def test_only_seven_bits_of_weight_fit_the_sixteen_bit_sums_of_avx2() -> None:
    # vpmaddubsw adds two products of an unsigned and a signed byte into 16 signed bits.
    assert 2 * 255 * WEIGHT_LIMIT <= np.iinfo(np.int16).max < 2 * 255 * 127


@pytest.mark.parametrize("bodies", ["standard", "fused"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integer_product_there_can_be_is_exact(bodies: Bodies, sign: int) -> None:
    features = 2048
    function = stepping(bodies, quantised=True)[-1]
    types = {"weight": TensorProto.INT8}
    shapes = {
        "input": ["rows", "in"],
        "weight": ["in", "out"],
        "scale": ["out"],
        "bias": ["out"],
        "output": ["rows", "out"],
    }
    inputs, outputs = (
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shapes[name]) for name in names]
        for names in (function.input, function.output)
    )
    node = helper.make_node(function.name, function.input, function.output, domain=DOMAIN)
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", OPSET), (DOMAIN, 1), (VENDOR, 1))]
    model = helper.make_model(
        helper.make_graph([node], "largest", inputs, outputs),
        functions=[function],
        opset_imports=imports,
        ir_version=11,
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        "input": np.full((3, features), sign, np.float32),
        "weight": np.full((features, 32), WEIGHT_LIMIT, np.int8),
        "scale": np.ones(32, np.float32),
        "bias": np.zeros(32, np.float32),
    }
    assert (session.run(None, feeds)[0] == sign * ACTIVATION_LIMIT * WEIGHT_LIMIT * features).all()


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocabulary": 40, "width": 16, "heads": 2, "feed_forward": 24, "encoder_layers": 1, "decoder_layers": 1}
    return Transformer(ModelConfig(**shape, tied_embeddings=request.param, dropout=0.1))


def test_every_linear_layer_and_embedding_is_replaced(model: Transformer) -> None:
    result = quantized(model)
    assert not [module for module in result.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert sum(isinstance(module, QuantizedLinear) for module in result.modules()) == linears
    assert isinstance(result.source_embedding, QuantizedEmbedding)
    assert isinstance(result.target_embedding, QuantizedEmbedding)
    assert (result.source_embedding is result.target_embedding) == model.config.tied_embeddings
    shared = torch.equal(result.source_embedding.weight, result.projection.weight)
    assert shared == model.config.tied_embeddings


def test_quantising_leaves_the_original_as_it_was(model: Transformer) -> None:
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    result = quantized(model)
    for norm in (module for module in result.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.weight.data.zero_()
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training
    assert not result.training
