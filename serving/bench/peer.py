"""CTranslate2, the peer to be measured against: our weights in its format, and its translator as a contestant."""

from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerSpec, attention_spec, common_spec, transformer_spec
from numpy.typing import NDArray
from torch import Tensor, nn

from model.attention import CrossAttention, MultiHeadAttention
from model.layers import DecoderLayer, EncoderLayer, FeedForward, Residual
from model.tokenizer import END, START, UNKNOWN
from model.transformer import Transformer
from serving.engine.decoding import Decoding


def convert(model: Transformer, folder: Path) -> None:
    """Write ``model`` into ``folder`` (which must not exist) through the public TransformerSpec, in float32.

    The translator rounds the weights to int8 itself when it is asked for that.
    """
    config = model.config
    spec = TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.heads,
        pre_norm=config.norm == "pre",
        activation={"relu": common_spec.Activation.RELU, "gelu": common_spec.Activation.GELU}[config.activation],
    )
    encoder, decoder = spec.encoder, spec.decoder
    encoder.embeddings[0].weight = _array(model.source_embedding.weight)
    encoder.position_encodings.encodings = _array(model.source_positions)
    decoder.embeddings.weight = _array(model.target_embedding.weight)
    decoder.position_encodings.encodings = _array(model.target_positions)
    decoder.projection.weight = _array(model.projection.weight)
    if config.norm == "pre":
        _norm(encoder.layer_norm, model.encoder_norm)
        _norm(decoder.layer_norm, model.decoder_norm)
    for target, layer in zip(encoder.layer, model.encoder, strict=True):
        assert isinstance(layer, EncoderLayer)
        _attention(target.self_attention, layer.self_attention, layer.self_residual)
        _feed_forward(target.ffn, layer.feed_forward, layer.feed_forward_residual)
    for target, layer in zip(decoder.layer, model.decoder, strict=True):
        assert isinstance(layer, DecoderLayer)
        _attention(target.self_attention, layer.self_attention, layer.self_residual)
        _attention(target.attention, layer.cross_attention, layer.cross_residual)
        _feed_forward(target.ffn, layer.feed_forward, layer.feed_forward_residual)
    vocabulary = [_piece(token) for token in range(config.vocabulary)]
    spec.register_source_vocabulary(vocabulary)
    spec.register_target_vocabulary(vocabulary)
    spec.config.unk_token, spec.config.eos_token = _piece(UNKNOWN), _piece(END)
    spec.config.bos_token = spec.config.decoder_start_token = _piece(START)
    # Our sources are complete: they begin with a language's token and close with the end token.
    spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.validate()
    spec.optimize("float32")
    folder.mkdir(parents=True)
    spec.save(str(folder))


def _piece(token: int) -> str:
    """A name for a token: CTranslate2 speaks in pieces, whose spelling is nothing to it."""
    return str(token)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().numpy()


def _norm(spec: common_spec.LayerNormSpec, norm: nn.Module) -> None:
    assert isinstance(norm, nn.LayerNorm)
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _linear(spec: common_spec.LinearSpec, *linears: nn.Linear) -> None:
    """``linears`` side by side, as one product."""
    spec.weight = np.concatenate([_array(linear.weight) for linear in linears])
    spec.bias = np.concatenate([_array(linear.bias) for linear in linears])


def _attention(spec: attention_spec.MultiHeadAttentionSpec, attention: MultiHeadAttention, residual: Residual) -> None:
    _norm(spec.layer_norm, residual.norm)
    if isinstance(attention, CrossAttention):
        _linear(spec.linear[0], attention.query)
        _linear(spec.linear[1], attention.key, attention.value)
    else:
        _linear(spec.linear[0], attention.query, attention.key, attention.value)
    _linear(spec.linear[-1], attention.output)


def _feed_forward(spec: transformer_spec.FeedForwardSpec, module: FeedForward, residual: Residual) -> None:
    _norm(spec.layer_norm, residual.norm)
    _linear(spec.linear_0, module.inner)
    _linear(spec.linear_1, module.outer)


COMPUTE_TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


class CTranslate2:
    """A converted model in CTranslate2; with ``split``, each batch is cut in as many parts as there are threads."""

    def __init__(
        self, folder: Path, precision: str, device: str = "cpu", threads: int = 1, split: bool = False
    ) -> None:
        self._parts = threads if split else 1
        inter, intra = self._parts, threads // self._parts
        self.setting = f"inter_threads={inter}, intra_threads={intra}" if device == "cpu" else ""
        self._translator = ctranslate2.Translator(
            str(folder),
            device=device,
            compute_type=COMPUTE_TYPES[precision],
            inter_threads=inter,
            intra_threads=intra,
        )

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """The best hypothesis of each of ``sources``, end token included."""
        results = self._translator.translate_batch(
            [[_piece(token) for token in source] for source in sources],
            max_batch_size=-(-len(sources) // self._parts) if self._parts > 1 else 0,
            beam_size=decoding.beam_size,
            max_input_length=0,
            max_decoding_length=decoding.max_tokens,
            min_decoding_length=decoding.min_tokens,
            length_penalty=decoding.length_penalty,
            return_end_token=True,
        )
        return [[int(piece) for piece in result.hypotheses[0]] for result in results]
