import re
from pathlib import Path

import pytest
import torch

from export.graphs import graphs
from export.lowering import Lowering
from export.quantize import Rounding, calibrate, quantized
from model import checkpoint
from model.transformer import Transformer

PAIRS = [([4, 9, 8, 3], [7, 9, 3])]


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize(
    ("place", "extra"),
    [("encoder.0", torch.nn.Linear(16, 16)), ("decoder", torch.nn.Embedding(3, 16)), ("decoder.1", Scale())],
)
def test_a_model_with_a_layer_it_does_not_know_is_refused(
    small_checkpoint: Path, place: str, extra: torch.nn.Module, quantise: bool
) -> None:
    model = checkpoint.load(small_checkpoint).model
    calibrated = calibrate(model, PAIRS)
    calibrated.inputs[f"{place}.extra"] = Rounding(1.0, 128)
    model.get_submodule(place).add_module("extra", extra)
    with pytest.raises(ValueError, match=re.escape(f"{place}.extra")):
        graphs(Lowering(quantized(model, calibrated) if quantise else model, "fused"))


def test_a_model_with_a_parameter_of_its_own_is_refused(small_checkpoint: Path) -> None:
    model: Transformer = checkpoint.load(small_checkpoint).model
    model.temperature = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="no place in the exported graphs"):
        graphs(Lowering(model, "fused"))


def test_a_model_quantised_without_cache_units_is_refused(small_checkpoint: Path) -> None:
    model = checkpoint.load(small_checkpoint).model
    with pytest.raises(ValueError, match="no cache unit"):
        graphs(Lowering(quantized(model, calibrate(model, PAIRS)._replace(caches={})), "fused"))
