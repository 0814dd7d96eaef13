"""How much there is to compute, counted from a model's shape alone."""

from model.config import ModelConfig


def multiply_adds(config: ModelConfig, source_tokens: int, target_tokens: int, beam_size: int = 1) -> int:
    """Multiply-adds of the matrix products with weights that a translation takes when nothing is computed twice.

    Every source token goes through the encoder and the projections to the decoder's cross-attention keys and values;
    every target token, times ``beam_size``, through the decoder and the projection to the vocabulary. The products
    of attention itself (queries with keys, weights with values) are left out: they grow with the lengths, and are a few
    hundredths of the rest at the lengths of sentences.
    """
    square, feed_forward = config.width**2, 2 * config.width * config.feed_forward
    encoder = config.encoder_layers * (4 * square + feed_forward)
    cross = config.decoder_layers * 2 * square
    decoder = config.decoder_layers * (4 * square + 2 * square + feed_forward)
    projection = config.width * config.vocabulary
    return source_tokens * (encoder + cross) + target_tokens * beam_size * (decoder + projection)
