import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.transformer import Transformer
from serving.bench.work import multiply_adds


def test_the_base_shape_counted_by_hand() -> None:
    config = ModelConfig(vocabulary=32_000)
    # Per source token: 6 layers of 4 * 512 * 512 and 2 * 512 * 2048, and 6 * 2 projections to cross-attention.
    read = 6 * (1_048_576 + 2_097_152) + 6 * 524_288
    # Per target token: 6 layers of 6 * 512 * 512 and 2 * 512 * 2048, and 512 * 32,000.
    written = 6 * (1_572_864 + 2_097_152) + 16_384_000
    assert (read, written) == (22_020_096, 38_404_096)
    assert multiply_adds(config, 24, 24) == 24 * (read + written)
    assert multiply_adds(config, 10, 7, beam_size=4) == 10 * read + 28 * written


def test_is_what_the_models_linear_layers_do(tiny_config: ModelConfig) -> None:
    model = Transformer(tiny_config).eval()
    done = 0

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal done
        assert isinstance(module, nn.Linear)
        done += inputs[0].numel() * module.out_features

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(count)
    with torch.inference_mode():
        model(torch.full((1, 9), 5), torch.tensor([9]), torch.full((1, 5), 5))
    assert multiply_adds(tiny_config, 9, 5) == done
