"""The inspection graph: whole sources and targets to the scores and weights of every attention of all three kinds."""

import numpy as np
from onnx import helper

from export.functions import DOMAIN
from export.graph import FLOAT, INT32, INT64, Graph
from export.lowering import Lowering
from export.visibility import causal_visibility, padding_visibility
from model.attention import MultiHeadAttention
from model.layers import Residual


def attention_graph(lowering: Lowering) -> Graph:
    """``source`` ``[rows, source]``, ``lengths`` ``[rows]`` and ``target`` ``[rows, target]`` to ``NAME.weights`` and
    ``NAME.scores`` ``[rows, heads, queries, keys]`` of every attention."""
    graph, heads = Graph("attention", lowering.weights), lowering.config.heads
    source, lengths = graph.input("source", INT64, ["rows", "source"]), graph.input("lengths", INT32, ["rows"])
    target = graph.input("target", INT64, ["rows", "target"])
    inspected: list[tuple[str, list[str]]] = []
    visible = padding_visibility(graph, source, lengths, 4)
    embedded = _embed(lowering, graph, source, "source")
    memory = lowering.encoder_layers(graph, embedded, ["rows", "source"], [visible], inspected)
    states = _embed(lowering, graph, target, "target")
    causal = causal_visibility(graph, target)
    for index, layer in enumerate(lowering.decoder):
        uses: tuple[tuple[str, str, MultiHeadAttention, Residual, str], ...] = (
            ("self", "MaskedSelfAttention", layer.self_attention, layer.self_residual, causal),
            ("cross", "CrossAttention", layer.cross_attention, layer.cross_residual, visible),
        )
        for use, operator, attention, residual, seen in uses:
            name = f"decoder.{index}.{use}"
            read = lowering.enter(graph, states, residual, name)
            keys, symbol = (memory, "source") if use == "cross" else (read, "target")
            shapes = ["rows", "target"], ["rows", symbol]
            query, *kept = lowering.projections(graph, name, attention, read, keys, *shapes)
            if lowering.quantised:
                kept = [
                    lowering.through_cache(graph, projected, getattr(attention, part), f"{name}.{part}", symbol)
                    for part, projected in zip(("key", "value"), kept, strict=True)
                ]
            outputs = [name, f"{name}.weights", f"{name}.scores"]
            graph.nodes_with(operator, [query, *kept, seen], name, outputs, DOMAIN, heads=heads)
            graph.describe(name, lowering.float_type, ["rows", "target", lowering.config.width])
            inspected.append((name, outputs[1:]))
            change = lowering.linear(graph, name, attention.output, f"{name}.output")
            states = lowering.leave(graph, states, change, residual, name)
        states = lowering.feed_forward(
            graph, states, layer.feed_forward, layer.feed_forward_residual, f"decoder.{index}.feed_forward"
        )
    for name, values in inspected:
        queries = "source" if name.startswith("encoder") else "target"
        keys = "target" if name.endswith("self") and queries == "target" else "source"
        for value in values:
            graph.outputs.append(helper.make_tensor_value_info(value, FLOAT, ["rows", heads, queries, keys]))
    return graph


def _embed(lowering: Lowering, graph: Graph, ids: str, side: str) -> str:
    """Embeddings and positions of whole sequences: ``side`` is "source" or "target"."""
    vectors = lowering.embed(graph, ids, getattr(lowering.model, f"{side}_embedding"), f"{side}_embedding")
    table = graph.weight(f"{side}_positions", getattr(lowering.model, f"{side}_positions"))
    length = graph.node("Shape", [ids], f"{side}.length", start=1, end=2)
    zero = graph.constant("zero", [0], np.int64)
    positions = graph.node("Slice", [table, zero, length], f"{side}.positions")
    return graph.node("Add", [vectors, positions], f"{side}.embedded")
