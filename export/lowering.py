"""The pieces that graphs are made of: a Transformer's modules as nodes.

The model's modules are walked in the order of their ``forward`` and each writes its nodes: one ``Linear``, one
attention function, one LayerNormalization. Walking instead of tracing keeps a node per concept and the files free of
paths and source lines, and writes the same bytes every time; the parity gate (`export.verify`) proves that the walk
computes what ``forward`` computes, and `Lowering.forgotten` names what a walk left out.
"""

import numpy as np
from onnx import helper
from torch import Tensor, nn

from export.functions import DOMAIN, Bodies
from export.graph import FLOAT, FLOAT16, INT8, Graph, Shape, Weights
from export.quantize import QuantizedEmbedding, QuantizedLinear
from model.attention import MultiHeadAttention
from model.layers import DecoderLayer, EncoderLayer, FeedForward, Residual
from model.transformer import Transformer


def cache_unit(module: nn.Module) -> Tensor:
    """Of a decoder's keys or values in int8; ValueError when they were quantised without one."""
    assert isinstance(module, QuantizedLinear)
    if module.cache_unit is None:
        raise ValueError("the decoder's keys and values have no cache unit; quantise with a whole calibration")
    return module.cache_unit


class Lowering:
    """Writes the modules of a Transformer as nodes of ONNX graphs, in the numbers that the model has.

    That is int8 when it has been quantised, fp16 when its weights are (``model.half()``), and fp32 else.
    """

    def __init__(self, model: Transformer, bodies: Bodies) -> None:
        self.model, self.config, self.bodies = model, model.config, bodies
        self.encoder = [layer for layer in model.encoder if isinstance(layer, EncoderLayer)]
        self.decoder = [layer for layer in model.decoder if isinstance(layer, DecoderLayer)]
        self.weights = Weights()
        self.quantised = isinstance(model.projection, QuantizedLinear)
        self.dtype: type = model.source_positions.detach().numpy().dtype.type
        """numpy's type of the states between layers and of the weights that are not quantised."""
        self.float_type: int = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        """ONNX's number for it."""
        self.half = self.float_type == FLOAT16
        self.cache_type = INT8 if self.quantised else self.float_type
        self._lowered: set[nn.Module] = set()

    def forgotten(self) -> list[str]:
        """Names of the modules that have weights and have not been written to any graph."""
        return [
            name or "the model itself"
            for name, module in self.model.named_modules()
            if module not in self._lowered
            and (
                isinstance(module, QuantizedLinear | QuantizedEmbedding)
                or {own for own, _ in module.named_parameters(recurse=False)}
                - ({"source_positions", "target_positions"} if module is self.model else set())
            )
        ]

    def linear(self, graph: Graph, states: str, module: nn.Module, name: str) -> str:
        """A linear layer of ``states`` ``[..., in]``: ``[..., out]``."""
        self._lowered.add(module)
        if isinstance(module, QuantizedLinear):
            inputs = self.rounded(graph, states, module)
            inputs += [graph.weight(f"{name}.weight", module.weight.T), graph.weight(f"{name}.unit", module.unit)]
            return graph.node("Linear", [*inputs, graph.weight(f"{name}.bias", module.bias)], name, DOMAIN)
        assert isinstance(module, nn.Linear)
        weight, bias = graph.weight(f"{name}.weight", module.weight.T), graph.weight(f"{name}.bias", module.bias)
        return graph.node("Linear", [states, weight, bias], name, DOMAIN)

    def rounded(self, graph: Graph, states: str, module: QuantizedLinear) -> list[str]:
        """``states`` as uint8, with step and zero; layers that read the same states share one rounding of them."""
        step = graph.constant(f"{states}.step", module.rounding.step, np.float32)
        zero = graph.constant(f"zero.{module.rounding.zero}", module.rounding.zero, np.uint8)
        rounded = f"{states}.rounded"
        if all(node.name != rounded for node in graph.nodes):
            graph.node("QuantizeLinear", [states, step, zero], rounded)
        return [rounded, step, zero]

    def norm(self, graph: Graph, states: str, module: nn.Module, name: str) -> str:
        """A LayerNorm of ``states``; nothing where the model has an identity in its place."""
        if isinstance(module, nn.Identity):
            return states
        assert isinstance(module, nn.LayerNorm)
        self._lowered.add(module)
        scale, bias = graph.weight(f"{name}.weight", module.weight), graph.weight(f"{name}.bias", module.bias)
        return graph.node("LayerNormalization", [states, scale, bias], name, axis=-1, epsilon=module.eps)

    def enter(self, graph: Graph, states: str, residual: Residual, name: str) -> str:
        """What a sub-layer reads of ``states``."""
        return self.norm(graph, states, residual.norm, f"{name}.norm") if residual.pre else states

    def leave(self, graph: Graph, states: str, change: str, residual: Residual, name: str) -> str:
        """The residual sum of ``states`` and what the sub-layer made of them."""
        total = graph.node("Add", [states, change], f"{name}.sum")
        return total if residual.pre else self.norm(graph, total, residual.norm, f"{name}.norm")

    def feed_forward(self, graph: Graph, states: str, module: FeedForward, residual: Residual, name: str) -> str:
        """A feed-forward sub-layer, its norm and its residual sum included."""
        inner = self.linear(graph, self.enter(graph, states, residual, name), module.inner, f"{name}.inner")
        operator = "Relu" if self.config.activation == "relu" else "Gelu"
        active = graph.node(operator, [inner], f"{name}.activation")
        return self.leave(graph, states, self.linear(graph, active, module.outer, f"{name}.outer"), residual, name)

    def in_fp32(self, graph: Graph, states: str, name: str) -> str:
        """``states`` as fp32: themselves, or in fp16 what a ``Cast`` called ``name`` makes of them."""
        return graph.node("Cast", [states], name, to=FLOAT) if self.half else states

    def embed(self, graph: Graph, ids: str, module: nn.Module, name: str) -> str:
        """Ids ``[…]`` to ``[…, w]``, times √width."""
        self._lowered.add(module)
        stored = "embedding" if self.config.tied_embeddings else name
        if isinstance(module, QuantizedEmbedding):
            table = graph.weight(f"{stored}.weight", module.weight)
            unit = graph.weight(f"{stored}.unit", module.unit[:, None])
            integers = graph.node("Gather", [table, ids], f"{name}.integers")
            units = graph.node("Gather", [unit, ids], f"{name}.units")
            vectors = graph.node(
                "Mul", [graph.node("Cast", [integers], f"{name}.cast", to=FLOAT), units], f"{name}.vectors"
            )
        else:
            assert isinstance(module, nn.Embedding)
            table = graph.weight(f"{stored}.weight", module.weight)
            vectors = graph.node("Gather", [table, ids], f"{name}.vectors")
        root = graph.constant("root_width", self.config.width**0.5, self.dtype)
        return graph.node("Mul", [vectors, root], f"{name}.scaled")

    def projections(
        self,
        graph: Graph,
        name: str,
        attention: MultiHeadAttention,
        queries: str,
        keys: str,
        query_shape: Shape,
        key_shape: Shape,
    ) -> list[str]:
        """Projected queries ``[*query_shape, w]``, keys and values ``[*key_shape, w]``."""
        result = []
        for part, states, shape in (
            ("query", queries, query_shape),
            ("key", keys, key_shape),
            ("value", keys, key_shape),
        ):
            projected = self.linear(graph, states, getattr(attention, part), f"{name}.{part}")
            graph.describe(projected, self.float_type, [*shape, self.config.width])
            result.append(projected)
        return result

    def quantize_cache(self, graph: Graph, states: str, module: nn.Module, name: str) -> str:
        """Projected keys or values ``[b, length, w]`` as a cache of int8 holds them."""
        unit = graph.weight(f"{name}.cache_unit", cache_unit(module))
        return graph.node("QuantizeCache", [states, unit], f"{name}.quantized", DOMAIN)

    def through_cache(self, graph: Graph, states: str, module: nn.Module, name: str, length: str) -> str:
        """Projected keys or values ``[b, length, w]`` as a cache of int8 gives them back."""
        kept = self.quantize_cache(graph, states, module, name)
        restored = graph.node("DequantizeCache", [kept, f"{name}.cache_unit"], f"{name}.restored", DOMAIN)
        graph.describe(restored, FLOAT, ["rows", length, self.config.width])
        return restored

    def encoder_layers(
        self, graph: Graph, states: str, shape: Shape, seen: list[str], inspected: list[tuple[str, list[str]]]
    ) -> str:
        """The encoder over ``states`` ``[*shape, w]``; ``seen`` tells attention which keys are there."""
        for index, layer in enumerate(self.encoder):
            name = f"encoder.{index}.self"
            read = self.enter(graph, states, layer.self_residual, name)
            projected = self.projections(graph, name, layer.self_attention, read, read, shape, shape)
            outputs = [name, f"{name}.weights", f"{name}.scores"][: 3 if graph.name == "attention" else 1]
            graph.nodes_with("SelfAttention", [*projected, *seen], name, outputs, DOMAIN, heads=self.config.heads)
            graph.describe(name, self.float_type, [*shape, self.config.width])
            inspected.append((name, outputs[1:]))
            change = self.linear(graph, name, layer.self_attention.output, f"{name}.output")
            states = self.leave(graph, states, change, layer.self_residual, name)
            states = self.feed_forward(
                graph, states, layer.feed_forward, layer.feed_forward_residual, f"encoder.{index}.feed_forward"
            )
        return self.norm(graph, states, self.model.encoder_norm, "encoder_norm")

    def projection(self, graph: Graph, states: str) -> str:
        """The logits ``[b, vocabulary]`` of the decoder's ``states`` ``[b, w]``."""
        module = self.model.projection
        self._lowered.add(module)
        width, vocabulary = self.config.width, self.config.vocabulary
        assert isinstance(module, nn.Linear | QuantizedLinear)
        table = graph.weight("embedding.weight" if self.config.tied_embeddings else "projection.weight", module.weight)
        # Transposed here, folded by the runtime at load: the embedding's lookup and this product share one stored copy.
        weight = graph.node("Transpose", [table], "projection.transposed", perm=[1, 0])
        bias = graph.constant("projection.bias", np.zeros(vocabulary), self.dtype)
        if isinstance(module, QuantizedLinear):
            inputs = [*self.rounded(graph, states, module), weight, graph.weight("projection.unit", module.unit), bias]
        else:
            inputs = [states, weight, bias]
        logits = graph.node("Linear", inputs, "projection", DOMAIN)
        graph.describe(logits, self.float_type, ["rows", vocabulary])
        graph.describe(states, self.float_type, ["rows", width])
        return logits
