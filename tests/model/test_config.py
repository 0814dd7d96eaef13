from typing import Any

import pytest
from pydantic import ValidationError

from model.config import ModelConfig


def test_defaults_are_the_base_model_of_the_paper() -> None:
    config = ModelConfig()
    assert (config.encoder_layers, config.decoder_layers) == (6, 6)
    assert (config.width, config.feed_forward, config.heads, config.head_width) == (512, 2048, 8, 64)
    assert (config.norm, config.activation, config.positions) == ("post", "relu", "sinusoidal")
    assert (config.vocabulary, config.tied_embeddings, config.dropout) == (37_000, True, 0.1)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"width": 30, "heads": 4}, "not a multiple"),
        ({"width": 9, "heads": 3}, "odd"),
        ({"max_positions": 100}, "max_positions 100 is not a multiple of 8"),
        ({"heads": 0}, "greater than 0"),
        ({"vocabulary": -1}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"norm": "both"}, "'pre' or 'post'"),
        ({"activation": "tanh"}, "'relu' or 'gelu'"),
        ({"depth": 6}, "Extra inputs"),
    ],
)
def test_impossible_shapes_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ModelConfig(**values)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().width = 8  # type: ignore[misc]


@pytest.mark.parametrize(("source", "limit"), [(1, 12), (5, 20), (47, 104), (48, 104), (104, 104)])
def test_default_limit_is_twice_the_source_and_ten_within_the_model(source: int, limit: int) -> None:
    assert ModelConfig(max_positions=104).default_limit(source) == limit
