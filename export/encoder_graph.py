"""The encoder as a graph: source ids to the memory and to every decoder layer's keys and values of the source."""

import numpy as np

from export.graph import FLOAT, INT32, INT64, Graph
from export.lowering import Lowering
from export.visibility import padding_visibility


def encoder_graph(lowering: Lowering) -> Graph:
    """``source`` ``[rows, source]`` and ``lengths`` ``[rows]`` to ``memory`` and ``cross_key_0``, ``cross_value_0`` …

    Everything but attention sees the tokens of all rows side by side, so that padding costs next to nothing.
    """
    graph = Graph("encoder", lowering.weights)
    source, lengths = graph.input("source", INT64, ["rows", "source"]), graph.input("lengths", INT32, ["rows"])
    graph.describe(lengths, INT32, ["rows"])
    places, spread = _pack(graph, source, lengths)
    embedded = _embed(lowering, graph, source, places)
    memory = lowering.encoder_layers(graph, embedded, ["tokens"], [lengths, places, spread], [])
    padded = lowering.in_fp32(graph, graph.node("Gather", [memory, spread], "memory.rows"), "memory.fp32")
    graph.output(padded, "memory", FLOAT, ["rows", "source", lowering.config.width])
    heads, head_width = lowering.config.heads, lowering.config.head_width
    by_head = graph.constant("by_head", [0, 0, heads, head_width], np.int64)
    for index, layer in enumerate(lowering.decoder):
        for part in ("key", "value"):
            name = f"decoder.{index}.cross.{part}"
            projected = lowering.linear(graph, memory, getattr(layer.cross_attention, part), name)
            if lowering.quantised:
                projected = lowering.quantize_cache(graph, projected, getattr(layer.cross_attention, part), name)
            rows = graph.node("Gather", [projected, spread], f"{name}.rows")
            split = graph.node("Reshape", [rows, by_head], f"{name}.split")
            cached = graph.node("Transpose", [split], f"{name}.by_head", perm=[0, 2, 1, 3])
            graph.output(cached, f"cross_{part}_{index}", lowering.cache_type, ["rows", heads, "source", head_width])
    return graph


def _pack(graph: Graph, source: str, lengths: str) -> tuple[str, str]:
    """Which of the padded positions of ``source`` ``[b, s]`` are tokens, and back.

    Returns ``places`` ``[n, 2]`` int64, the row and column of each token, row after row; and ``spread`` ``[b, s]``
    int64, the number of the token at each position, or of the last one before it where there is none.
    """
    visible = padding_visibility(graph, source, lengths, 2)
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


def _embed(lowering: Lowering, graph: Graph, source: str, places: str) -> str:
    """Embeddings and positions ``[n, w]`` of the tokens of ``source`` ``[b, s]``, which stand at ``places``."""
    ids = graph.node("GatherND", [source, places], "source.tokens")
    vectors = lowering.embed(graph, ids, lowering.model.source_embedding, "source_embedding")
    table = graph.weight("source_positions", lowering.model.source_positions)
    columns = graph.node("Gather", [places, graph.constant("one", 1, np.int64)], "source.column", axis=1)
    positions = graph.node("Gather", [table, columns], "source.positions")
    return graph.node("Add", [vectors, positions], "source.embedded")
