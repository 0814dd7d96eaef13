"""The three graphs of a bundle, lowered module by module from the PyTorch model.

The model's modules are walked in the order of their ``forward`` and each writes its nodes: one ``Linear``, one
attention function, one LayerNormalization. Walking instead of tracing keeps a node per concept and the files free of
paths and source lines, and writes the same bytes every time; the parity gate (`export.verify`) proves that the walk
computes what ``forward`` computes, and `Lowering` refuses a model of which it left a parameter out.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from export import functions
from export.bundle import LOG_SOFTMAX, WEIGHTS
from export.functions import DOMAIN, OPSET, VENDOR, Bodies
from export.quantize import QuantizedEmbedding, QuantizedLinear
from model.attention import MultiHeadAttention
from model.layers import DecoderLayer, EncoderLayer, FeedForward, Residual
from model.transformer import Transformer

Array = NDArray[Any]
Shape = Sequence[int | str]

FLOAT, INT8, INT32, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)
ALIGNMENT = 4096
"""Offsets in the weights file, so that a runtime can map each weight from its page."""


class Weights:
    """The one file that holds every weight of every graph once, found again by content."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._offsets: dict[bytes, int] = {}

    def place(self, array: Array) -> tuple[int, int]:
        """Offset and length in bytes of ``array``'s contents, written if they were not there yet."""
        contents = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + contents).digest()
        if key not in self._offsets:
            padding = -self._size % (ALIGNMENT if len(contents) >= ALIGNMENT else 64)
            self._chunks += [b"\0" * padding, contents]
            self._offsets[key] = self._size + padding
            self._size += padding + len(contents)
        return self._offsets[key], len(contents)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_bytes(b"".join(self._chunks))


class Graph:
    """An ONNX graph under construction; values are named by their nodes."""

    def __init__(self, name: str, weights: Weights) -> None:
        self.name, self.weights = name, weights
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.known: dict[str, onnx.ValueInfoProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """Declare an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Shape) -> None:
        """Declare ``value`` an output called ``name``."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"output.{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def node(self, operator: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output, called as the node."""
        return self.nodes_with(operator, inputs, name, [name], domain, **attributes)[0]

    def nodes_with(
        self, operator: str, inputs: Sequence[str], name: str, outputs: list[str], domain: str, **attributes: Any
    ) -> list[str]:
        """Append a node with named outputs."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def describe(self, value: str, dtype: int, shape: Shape) -> None:
        """Record the type of an inner value, for whoever lists or cuts out what consumes it."""
        self.known[value] = helper.make_tensor_value_info(value, dtype, shape)

    def weight(self, name: str, tensor: Tensor | Array) -> str:
        """An initializer whose contents lie in the weights file."""
        if name not in self.initializers:
            array = tensor.detach().numpy() if isinstance(tensor, Tensor) else tensor
            proto = onnx.TensorProto(
                name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape
            )
            proto.data_location = TensorProto.EXTERNAL
            offset, length = self.weights.place(array)
            for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
                proto.external_data.add(key=key, value=str(value))
            self.initializers[name] = proto
        return name

    def constant(self, name: str, values: Any, dtype: type) -> str:
        """A small initializer that lies in the graph itself."""
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(np.array(values, dtype), name)
        return name

    def model(self, bodies: list[onnx.FunctionProto]) -> onnx.ModelProto:
        """The finished model, with those of ``bodies`` it uses."""
        graph = helper.make_graph(
            self.nodes,
            self.name,
            self.inputs,
            self.outputs,
            list(self.initializers.values()),
            value_info=list(self.known.values()),
        )
        return helper.make_model(
            graph,
            functions=functions.called(self.nodes, bodies),
            opset_imports=[
                helper.make_opsetid("", OPSET),
                helper.make_opsetid(DOMAIN, 1),
                helper.make_opsetid(VENDOR, 1),
            ],
            ir_version=11,
            producer_name="dragoman",
        )


def _cache_unit(module: nn.Module) -> Tensor:
    """Of a decoder's keys or values in int8; ValueError when they were quantised without one."""
    assert isinstance(module, QuantizedLinear)
    if module.cache_unit is None:
        raise ValueError("the decoder's keys and values have no cache unit; quantise with a whole calibration")
    return module.cache_unit


class Lowering:
    """Writes a Transformer, quantised or not, as ONNX graphs."""

    def __init__(self, model: Transformer, bodies: Bodies) -> None:
        self.model, self.config, self.bodies = model, model.config, bodies
        self.encoder = [layer for layer in model.encoder if isinstance(layer, EncoderLayer)]
        self.decoder = [layer for layer in model.decoder if isinstance(layer, DecoderLayer)]
        self.weights = Weights()
        self.quantised = isinstance(model.projection, QuantizedLinear)
        self.cache_type = INT8 if self.quantised else FLOAT
        self._lowered: set[nn.Module] = set()

    def graphs(self) -> dict[str, onnx.ModelProto]:
        """``encoder``, ``decoder`` and ``attention``; ValueError when a layer of the model was left out."""
        stepping = functions.stepping(self.bodies, self.quantised)
        inspecting = functions.inspecting(self.bodies, self.quantised)
        result = {
            "encoder": self._encoder_graph().model(stepping),
            "decoder": self._decoder_graph().model(stepping),
            "attention": self._attention_graph().model(inspecting),
        }
        forgotten = [
            name or "the model itself"
            for name, module in self.model.named_modules()
            if module not in self._lowered
            and (
                isinstance(module, QuantizedLinear | QuantizedEmbedding)
                or {own for own, _ in module.named_parameters(recurse=False)}
                - ({"source_positions", "target_positions"} if module is self.model else set())
            )
        ]
        if forgotten:
            raise ValueError(f"these layers have weights but no place in the exported graphs: {', '.join(forgotten)}")
        return result

    # The pieces.

    def _linear(self, graph: Graph, states: str, module: nn.Module, name: str) -> str:
        self._lowered.add(module)
        if isinstance(module, QuantizedLinear):
            inputs = self._rounded(graph, states, module)
            inputs += [graph.weight(f"{name}.weight", module.weight.T), graph.weight(f"{name}.unit", module.unit)]
            return graph.node("Linear", [*inputs, graph.weight(f"{name}.bias", module.bias)], name, DOMAIN)
        assert isinstance(module, nn.Linear)
        weight, bias = graph.weight(f"{name}.weight", module.weight.T), graph.weight(f"{name}.bias", module.bias)
        return graph.node("Linear", [states, weight, bias], name, DOMAIN)

    def _rounded(self, graph: Graph, states: str, module: QuantizedLinear) -> list[str]:
        """``states`` as uint8, with step and zero; layers that read the same states share one rounding of them."""
        step = graph.constant(f"{states}.step", module.rounding.step, np.float32)
        zero = graph.constant(f"zero.{module.rounding.zero}", module.rounding.zero, np.uint8)
        rounded = f"{states}.rounded"
        if all(node.name != rounded for node in graph.nodes):
            graph.node("QuantizeLinear", [states, step, zero], rounded)
        return [rounded, step, zero]

    def _norm(self, graph: Graph, states: str, module: nn.Module, name: str) -> str:
        if isinstance(module, nn.Identity):
            return states
        assert isinstance(module, nn.LayerNorm)
        self._lowered.add(module)
        scale, bias = graph.weight(f"{name}.weight", module.weight), graph.weight(f"{name}.bias", module.bias)
        return graph.node("LayerNormalization", [states, scale, bias], name, axis=-1, epsilon=module.eps)

    def _enter(self, graph: Graph, states: str, residual: Residual, name: str) -> str:
        return self._norm(graph, states, residual.norm, f"{name}.norm") if residual.pre else states

    def _leave(self, graph: Graph, states: str, change: str, residual: Residual, name: str) -> str:
        total = graph.node("Add", [states, change], f"{name}.sum")
        return total if residual.pre else self._norm(graph, total, residual.norm, f"{name}.norm")

    def _feed_forward(self, graph: Graph, states: str, module: FeedForward, residual: Residual, name: str) -> str:
        inner = self._linear(graph, self._enter(graph, states, residual, name), module.inner, f"{name}.inner")
        operator = "Relu" if self.config.activation == "relu" else "Gelu"
        active = graph.node(operator, [inner], f"{name}.activation")
        return self._leave(graph, states, self._linear(graph, active, module.outer, f"{name}.outer"), residual, name)

    def _embed(self, graph: Graph, ids: str, module: nn.Module, name: str) -> str:
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
        root = graph.constant("root_width", self.config.width**0.5, np.float32)
        return graph.node("Mul", [vectors, root], f"{name}.scaled")

    def _pack(self, graph: Graph, source: str, lengths: str) -> tuple[str, str]:
        """Which of the padded positions of ``source`` ``[b, s]`` are tokens, and back.

        Returns ``places`` ``[n, 2]`` int64, the row and column of each token, row after row; and ``spread`` ``[b, s]``
        int64, the number of the token at each position, or of the last one before it where there is none.
        """
        visible = self._padding_visibility(graph, source, lengths, 2)
        found = graph.node("NonZero", [visible], "source.found")
        places = graph.node("Transpose", [found], "source.places", perm=[1, 0])
        tokens = graph.node("Cast", [visible], "source.token_or_not", to=INT64)
        flat = graph.node("Reshape", [tokens, graph.constant("every", [-1], np.int64)], "source.flat")
        counted = graph.node("CumSum", [flat, graph.constant("no_axes", 0, np.int64)], "source.counted")
        numbers = graph.node("Sub", [counted, graph.constant("one", 1, np.int64)], "source.numbers")
        spread = graph.node("Reshape", [numbers, graph.node("Shape", [source], "source.shape")], "source.spread")
        graph.describe(places, INT64, ["tokens", 2])
        graph.describe(spread, INT64, ["rows", "source"])
        return places, spread

    def _embed_packed(self, graph: Graph, source: str, places: str) -> str:
        """Embeddings and positions ``[n, w]`` of the tokens of ``source`` ``[b, s]``, which stand at ``places``."""
        ids = graph.node("GatherND", [source, places], "source.tokens")
        vectors = self._embed(graph, ids, self.model.source_embedding, "source_embedding")
        table = graph.weight("source_positions", self.model.source_positions)
        columns = graph.node("Gather", [places, graph.constant("one", 1, np.int64)], "source.column", axis=1)
        positions = graph.node("Gather", [table, columns], "source.positions")
        return graph.node("Add", [vectors, positions], "source.embedded")

    def _embed_whole(self, graph: Graph, ids: str, side: str) -> str:
        """Embeddings and positions of whole sequences: ``side`` is "source" or "target"."""
        vectors = self._embed(graph, ids, getattr(self.model, f"{side}_embedding"), f"{side}_embedding")
        table = graph.weight(f"{side}_positions", getattr(self.model, f"{side}_positions"))
        length = graph.node("Shape", [ids], f"{side}.length", start=1, end=2)
        zero = graph.constant("zero", [0], np.int64)
        positions = graph.node("Slice", [table, zero, length], f"{side}.positions")
        return graph.node("Add", [vectors, positions], f"{side}.embedded")

    def _projections(
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
            projected = self._linear(graph, states, getattr(attention, part), f"{name}.{part}")
            graph.describe(projected, FLOAT, [*shape, self.config.width])
            result.append(projected)
        return result

    def _quantize_cache(self, graph: Graph, states: str, module: nn.Module, name: str) -> str:
        """Projected keys or values ``[b, length, w]`` as a cache of int8 holds them."""
        unit = graph.weight(f"{name}.cache_unit", _cache_unit(module))
        return graph.node("QuantizeCache", [states, unit], f"{name}.quantized", DOMAIN)

    def _through_cache(self, graph: Graph, states: str, module: nn.Module, name: str, length: str) -> str:
        """Projected keys or values ``[b, length, w]`` as a cache of int8 gives them back."""
        kept = self._quantize_cache(graph, states, module, name)
        restored = graph.node("DequantizeCache", [kept, f"{name}.cache_unit"], f"{name}.restored", DOMAIN)
        graph.describe(restored, FLOAT, ["rows", length, self.config.width])
        return restored

    def _k_best(self, graph: Graph, states: str) -> None:
        """The projection to the vocabulary, and the k best tokens of ``states`` ``[b, w]`` as outputs."""
        module = self.model.projection
        self._lowered.add(module)
        width, vocabulary = self.config.width, self.config.vocabulary
        assert isinstance(module, nn.Linear | QuantizedLinear)
        table = graph.weight("embedding.weight" if self.config.tied_embeddings else "projection.weight", module.weight)
        # Transposed here, folded by the runtime at load: the embedding's lookup and this product share one stored copy.
        weight = graph.node("Transpose", [table], "projection.transposed", perm=[1, 0])
        bias = graph.constant("projection.bias", np.zeros(vocabulary), np.float32)
        if isinstance(module, QuantizedLinear):
            inputs = [*self._rounded(graph, states, module), weight, graph.weight("projection.unit", module.unit), bias]
        else:
            inputs = [states, weight, bias]
        logits = graph.node("Linear", inputs, "projection", DOMAIN)
        graph.describe(logits, FLOAT, ["rows", vocabulary])
        graph.describe(states, FLOAT, ["rows", width])
        likely = graph.node("LogSoftmax", [logits], LOG_SOFTMAX, axis=-1)
        k = graph.input("k", INT64, [1])
        best, ids = graph.nodes_with("TopK", [likely, k], "k_best", ["k_best.values", "k_best.indices"], "", axis=-1)
        graph.output(ids, "tokens", INT64, ["rows", "k"])
        graph.output(best, "log_probabilities", FLOAT, ["rows", "k"])
        # Whoever wants far more tokens than others in the same step chooses from all of them; nobody else reads this.
        graph.outputs.append(helper.make_tensor_value_info(likely, FLOAT, ["rows", vocabulary]))
        # A token that is given (a forced prefix) has its log-probability too, however unlikely it is.
        given = graph.node("Unsqueeze", [graph.input("given", INT64, ["rows"]), "step_axis"], "given.column")
        found = graph.node("GatherElements", [likely, given], "given.found", axis=1)
        graph.output(graph.node("Squeeze", [found, "step_axis"], "given.row"), "given_log_probability", FLOAT, ["rows"])

    # The graphs.

    def _encoder_layers(
        self, graph: Graph, states: str, shape: Shape, seen: list[str], inspected: list[tuple[str, list[str]]]
    ) -> str:
        """The encoder over ``states`` ``[*shape, w]``; ``seen`` tells attention which keys are there."""
        for index, layer in enumerate(self.encoder):
            name = f"encoder.{index}.self"
            read = self._enter(graph, states, layer.self_residual, name)
            projected = self._projections(graph, name, layer.self_attention, read, read, shape, shape)
            outputs = [name, f"{name}.weights", f"{name}.scores"][: 3 if graph.name == "attention" else 1]
            graph.nodes_with("SelfAttention", [*projected, *seen], name, outputs, DOMAIN, heads=self.config.heads)
            graph.describe(name, FLOAT, [*shape, self.config.width])
            inspected.append((name, outputs[1:]))
            change = self._linear(graph, name, layer.self_attention.output, f"{name}.output")
            states = self._leave(graph, states, change, layer.self_residual, name)
            states = self._feed_forward(
                graph, states, layer.feed_forward, layer.feed_forward_residual, f"encoder.{index}.feed_forward"
            )
        return self._norm(graph, states, self.model.encoder_norm, "encoder_norm")

    def _encoder_graph(self) -> Graph:
        graph = Graph("encoder", self.weights)
        source, lengths = graph.input("source", INT64, ["rows", "source"]), graph.input("lengths", INT32, ["rows"])
        graph.describe(lengths, INT32, ["rows"])
        # Everything but attention sees the tokens of all rows side by side, so that padding costs next to nothing.
        places, spread = self._pack(graph, source, lengths)
        embedded = self._embed_packed(graph, source, places)
        memory = self._encoder_layers(graph, embedded, ["tokens"], [lengths, places, spread], [])
        padded = graph.node("Gather", [memory, spread], "memory.rows")
        graph.output(padded, "memory", FLOAT, ["rows", "source", self.config.width])
        heads, head_width = self.config.heads, self.config.head_width
        by_head = graph.constant("by_head", [0, 0, heads, head_width], np.int64)
        for index, layer in enumerate(self.decoder):
            for part in ("key", "value"):
                name = f"decoder.{index}.cross.{part}"
                projected = self._linear(graph, memory, getattr(layer.cross_attention, part), name)
                if self.quantised:
                    projected = self._quantize_cache(graph, projected, getattr(layer.cross_attention, part), name)
                rows = graph.node("Gather", [projected, spread], f"{name}.rows")
                split = graph.node("Reshape", [rows, by_head], f"{name}.split")
                cached = graph.node("Transpose", [split], f"{name}.by_head", perm=[0, 2, 1, 3])
                graph.output(cached, f"cross_{part}_{index}", self.cache_type, ["rows", heads, "source", head_width])
        return graph

    def _decoder_graph(self) -> Graph:
        graph, config = Graph("decoder", self.weights), self.config
        token, position = graph.input("token", INT64, ["rows"]), graph.input("position", INT32, ["rows"])
        lengths = graph.input("lengths", INT32, ["rows"])
        table = graph.weight("target_positions", self.model.target_positions)
        vectors = self._embed(graph, token, self.model.target_embedding, "target_embedding")
        positions = graph.node("Gather", [table, position], "target.positions")
        embedded = graph.node("Add", [vectors, positions], "target.embedded")
        states = graph.node("Unsqueeze", [embedded, graph.constant("step_axis", [1], np.int64)], "target.step")
        cache_shape: dict[str, Shape] = {
            "self": ["rows", config.heads, "capacity", config.head_width],
            "cross": ["rows", config.heads, "source", config.head_width],
        }

        def cached(
            name: str, use: str, index: int, operator: str, attention: MultiHeadAttention, queries: list[str], last: str
        ) -> str:
            """Attention over a cache that comes in as an input and goes out, in place, as an output."""
            parts = [f"{use}_{part}_{index}" for part in ("key", "value")]
            caches = [graph.input(part, self.cache_type, cache_shape[use]) for part in parts]
            by_head = (config.heads, 1, config.head_width)
            units = [
                graph.weight(f"{name}.{part}.cache_unit", _cache_unit(getattr(attention, part)).reshape(by_head))
                for part in ("key", "value")
                if self.quantised
            ]
            outputs = [name, *(f"{part}_out" for part in parts)]
            graph.nodes_with(operator, [*queries, *caches, last, *units], name, outputs, DOMAIN, heads=config.heads)
            graph.describe(name, FLOAT, ["rows", 1, config.width])
            for output in outputs[1:]:
                graph.outputs.append(helper.make_tensor_value_info(output, self.cache_type, cache_shape[use]))
            return name

        one_step: Shape = ["rows", 1]
        for index, layer in enumerate(self.decoder):
            name = f"decoder.{index}.self"
            read = self._enter(graph, states, layer.self_residual, name)
            projected = self._projections(graph, name, layer.self_attention, read, read, one_step, one_step)
            attended = cached(name, "self", index, "MaskedSelfAttention", layer.self_attention, projected, position)
            change = self._linear(graph, attended, layer.self_attention.output, f"{name}.output")
            states = self._leave(graph, states, change, layer.self_residual, name)
            name = f"decoder.{index}.cross"
            read = self._enter(graph, states, layer.cross_residual, name)
            query = self._linear(graph, read, layer.cross_attention.query, f"{name}.query")
            graph.describe(query, FLOAT, ["rows", 1, config.width])
            last = [
                graph.input(f"last_{part}_{index}", self.cache_type, ["rows", 1, config.width])
                for part in ("key", "value")
            ]
            attended = cached(name, "cross", index, "CrossAttention", layer.cross_attention, [query, *last], lengths)
            change = self._linear(graph, attended, layer.cross_attention.output, f"{name}.output")
            states = self._leave(graph, states, change, layer.cross_residual, name)
            states = self._feed_forward(
                graph, states, layer.feed_forward, layer.feed_forward_residual, f"decoder.{index}.feed_forward"
            )
        states = self._norm(graph, states, self.model.decoder_norm, "decoder_norm")
        self._k_best(graph, graph.node("Squeeze", [states, "step_axis"], "step.states"))
        return graph

    def _attention_graph(self) -> Graph:
        graph, heads = Graph("attention", self.weights), self.config.heads
        source, lengths = graph.input("source", INT64, ["rows", "source"]), graph.input("lengths", INT32, ["rows"])
        target = graph.input("target", INT64, ["rows", "target"])
        inspected: list[tuple[str, list[str]]] = []
        visible = self._padding_visibility(graph, source, lengths, 4)
        embedded = self._embed_whole(graph, source, "source")
        memory = self._encoder_layers(graph, embedded, ["rows", "source"], [visible], inspected)
        states = self._embed_whole(graph, target, "target")
        causal = self._causal_visibility(graph, target)
        for index, layer in enumerate(self.decoder):
            uses: tuple[tuple[str, str, MultiHeadAttention, Residual, str], ...] = (
                ("self", "MaskedSelfAttention", layer.self_attention, layer.self_residual, causal),
                ("cross", "CrossAttention", layer.cross_attention, layer.cross_residual, visible),
            )
            for use, operator, attention, residual, seen in uses:
                name = f"decoder.{index}.{use}"
                read = self._enter(graph, states, residual, name)
                keys, symbol = (memory, "source") if use == "cross" else (read, "target")
                shapes = ["rows", "target"], ["rows", symbol]
                query, *kept = self._projections(graph, name, attention, read, keys, *shapes)
                if self.quantised:
                    kept = [
                        self._through_cache(graph, states, getattr(attention, part), f"{name}.{part}", symbol)
                        for part, states in zip(("key", "value"), kept, strict=True)
                    ]
                outputs = [name, f"{name}.weights", f"{name}.scores"]
                graph.nodes_with(operator, [query, *kept, seen], name, outputs, DOMAIN, heads=heads)
                graph.describe(name, FLOAT, ["rows", "target", self.config.width])
                inspected.append((name, outputs[1:]))
                change = self._linear(graph, name, attention.output, f"{name}.output")
                states = self._leave(graph, states, change, residual, name)
            states = self._feed_forward(
                graph, states, layer.feed_forward, layer.feed_forward_residual, f"decoder.{index}.feed_forward"
            )
        for name, values in inspected:
            queries = "source" if name.startswith("encoder") else "target"
            keys = "target" if name.endswith("self") and queries == "target" else "source"
            for value in values:
                graph.outputs.append(helper.make_tensor_value_info(value, FLOAT, ["rows", heads, queries, keys]))
        return graph

    def _range(self, graph: Graph, ids: str, name: str) -> str:
        """``[length]`` int32: 0, 1, 2, … as long as ``ids`` ``[b, length]``."""
        graph.constant("no_axes", 0, np.int64), graph.constant("one", 1, np.int64)
        length = graph.node("Gather", [graph.node("Shape", [ids], f"{name}.shape"), "one"], f"{name}.length")
        counted = graph.node("Range", ["no_axes", length, "one"], f"{name}.counted")
        return graph.node("Cast", [counted], f"{name}.range", to=INT32)

    def _padding_visibility(self, graph: Graph, source: str, lengths: str, rank: int) -> str:
        """``[b, s]`` boolean, with as many dimensions of 1 between as make ``rank``: True on tokens."""
        axes = graph.constant("beside", range(1, rank), np.int64)
        ends = graph.node("Unsqueeze", [lengths, axes], "source.ends")
        visible = graph.node("Less", [self._range(graph, source, "source.padding"), ends], "source.visible")
        graph.describe(visible, BOOL, ["rows", *[1] * (rank - 2), "source"])
        return visible

    def _causal_visibility(self, graph: Graph, target: str) -> str:
        """``[t, t]`` boolean: a query sees itself and what stands before it."""
        positions = self._range(graph, target, "target.causal")
        queries = graph.node("Unsqueeze", [positions, graph.constant("after", [1], np.int64)], "target.queries")
        visible = graph.node("LessOrEqual", [positions, queries], "target.visible")
        graph.describe(visible, BOOL, ["target", "target"])
        return visible
