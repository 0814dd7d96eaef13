"""The int8 model step by step: PyTorch's quantised layers, with the runtime's own LayerNormalization and attention.

An activation between two int8 steps rounds by its last bit, so two implementations whose LayerNormalization or softmax
differ in that bit drift apart by as much as quantisation itself does. To compare tokens exactly, this reference takes
those two from ONNX Runtime, one small model each (the attention subgraphs cut out of the bundle), and everything else
from PyTorch: the quantised projections, residual sums, embeddings, the order of it all, and greedy search with its own
caches. That the two kernels are right is the fp32 comparison's business.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor, nn

from export.quantize import quantized
from export.subgraph import attention_nodes, cut_out
from model.layers import DecoderLayer, EncoderLayer, FeedForward, Residual
from model.tokenizer import END, START
from model.transformer import Transformer
from serving.runtime import pad


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class RuntimeNorm(nn.Module):
    """LayerNormalization by ONNX Runtime."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        shape = ["rows", "length", norm.normalized_shape[0]]
        node = helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], axis=-1, epsilon=norm.eps)
        graph = helper.make_graph(
            [node],
            "norm",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
            [
                onnx.numpy_helper.from_array(norm.weight.detach().numpy(), "scale"),
                onnx.numpy_helper.from_array(norm.bias.detach().numpy(), "bias"),
            ],
        )
        self.session = session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10))

    def forward(self, states: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"x": states.numpy()})[0])


class Reference:
    """Greedy translation of one sentence at a time."""

    def __init__(self, bundle: Path, model: Transformer) -> None:
        self.model = quantized(model)
        for parent in list(self.model.modules()):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.LayerNorm):
                    setattr(parent, name, RuntimeNorm(module))
        nodes = {node.name: node.graph for node in attention_nodes(bundle) if node.graph != "attention"}
        self.attention = {name: session(cut_out(bundle, name, graph)) for name, graph in nodes.items()}

    def _attend(self, name: str, **inputs: Any) -> tuple[Tensor, list[Any]]:
        arrays = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in inputs.items()}
        output, *caches = self.attention[name].run(None, arrays)
        return torch.from_numpy(output), caches

    def _feed_forward(self, states: Tensor, module: FeedForward, residual: Residual) -> Tensor:
        return residual.leave(states, module(residual.enter(states)))

    @torch.inference_mode()
    def greedy(self, source: list[int], limit: int) -> tuple[list[int], list[float]]:
        model, heads = self.model, self.model.config.heads
        padded, lengths = pad([source])
        states = model.source_embedding(torch.from_numpy(padded)) * model.config.width**0.5
        states = states + model.source_positions[: padded.shape[1]]
        for index, layer in enumerate(model.encoder):
            assert isinstance(layer, EncoderLayer)
            read, use = layer.self_residual.enter(states), layer.self_attention
            query, key, value = use.query(read), use.key(read), use.value(read)
            output, _ = self._attend(f"encoder.{index}.self", query=query, key=key, value=value, lengths=lengths)
            states = layer.self_residual.leave(states, use.output(output))
            states = self._feed_forward(states, layer.feed_forward, layer.feed_forward_residual)
        memory = model.encoder_norm(states)
        cross = [
            [
                projection(memory).unflatten(-1, (heads, -1)).transpose(1, 2).numpy().copy()
                for projection in (layer.cross_attention.key, layer.cross_attention.value)  # type: ignore[union-attr]
            ]
            for layer in model.decoder
        ]
        empty = np.zeros((1, heads, model.config.max_positions, model.config.head_width), np.float32)
        own: list[Any] = [[empty, empty] for _ in model.decoder]
        tokens, scores = [START], []
        while len(tokens) <= limit and tokens[-1] != END:
            position = len(tokens) - 1
            states = model.target_embedding(torch.tensor([[tokens[-1]]])) * model.config.width**0.5
            states = states + model.target_positions[position]
            for index, layer in enumerate(model.decoder):
                assert isinstance(layer, DecoderLayer)
                read, use = layer.self_residual.enter(states), layer.self_attention
                output, own[index] = self._attend(
                    f"decoder.{index}.self",
                    query=use.query(read),
                    key=use.key(read),
                    value=use.value(read),
                    key_cache=own[index][0],
                    value_cache=own[index][1],
                    position=np.array([position], np.int32),
                )
                states = layer.self_residual.leave(states, use.output(output))
                read = layer.cross_residual.enter(states)
                output, _ = self._attend(
                    f"decoder.{index}.cross",
                    query=layer.cross_attention.query(read),
                    key_cache=cross[index][0],
                    value_cache=cross[index][1],
                    lengths=lengths,
                )
                states = layer.cross_residual.leave(states, layer.cross_attention.output(output))
                states = self._feed_forward(states, layer.feed_forward, layer.feed_forward_residual)
            likely, token = model.projection(model.decoder_norm(states))[0, 0].log_softmax(-1).max(-1)
            tokens.append(int(token))
            scores.append(float(likely))
        return tokens[1:], scores
