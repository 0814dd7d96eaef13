"""What happens to rows between steps, as graphs: for devices whose memory the host does not touch.

On the CPU the server does the same in numpy, for only as many positions as a row has.
"""

import numpy as np

from export.bundle import ADMIT, REORDER
from export.graph import INT64, Graph, Shape
from export.lowering import Lowering


def admit_graph(lowering: Lowering) -> Graph:
    """Encoded sources into rows of the decoder's caches, in place.

    Of n sources: ``row`` ``[n]`` int64 where each goes, ``index`` ``[n]`` where it stands in the encoder's outputs
    (``encoded_key_0`` …), ``last`` ``[n, 1]`` where its last token is. `TensorScatter` writes all positions of the
    padded source; those behind its end are hidden, and finite.
    """
    graph, config = Graph(ADMIT, lowering.weights), lowering.config
    row, index = graph.input("row", INT64, ["sources"]), graph.input("index", INT64, ["sources"])
    last = graph.input("last", INT64, ["sources", 1])
    rows = _column(graph, row)
    one_token = graph.constant("one_token", [0, 1, -1], np.int64)
    for name, cache in _caches(lowering, "cross").items():
        source = graph.input(
            name.replace("cross", "encoded"),
            lowering.cache_type,
            ["batch", config.heads, "positions", config.head_width],
        )
        cached = graph.input(name, lowering.cache_type, cache)
        picked = graph.node("Gather", [source, index], f"{name}.picked")
        room = graph.node("Gather", [cached, row], f"{name}.room")
        filled = graph.node("TensorScatter", [room, picked], f"{name}.filled", axis=2)
        _put(graph, name, cached, rows, filled, lowering.cache_type, cache)
        # [n, heads, positions, d] to [n, positions, heads, d], of which the last token's come out as [n, 1, heads · d].
        by_token = graph.node("Transpose", [picked], f"{name}.by_token", perm=[0, 2, 1, 3])
        ends = graph.node("GatherND", [by_token, last], f"{name}.ends", batch_dims=1)
        flat = graph.node("Reshape", [ends, one_token], f"{name}.flat")
        ending = name.replace("cross", "last")
        shape: Shape = ["rows", 1, config.width]
        kept = graph.input(ending, lowering.cache_type, shape)
        _put(graph, ending, kept, rows, flat, lowering.cache_type, shape)
    return graph


def reorder_graph(lowering: Lowering) -> Graph:
    """Rows ``origin`` ``[n]`` int64 of all caches over rows ``row`` ``[n]``, in place and all at once."""
    graph = Graph(REORDER, lowering.weights)
    origin, row = graph.input("origin", INT64, ["copies"]), graph.input("row", INT64, ["copies"])
    rows = _column(graph, row)
    for use in ("self", "cross", "last"):
        for name, shape in _caches(lowering, use).items():
            cached = graph.input(name, lowering.cache_type, shape)
            moved = graph.node("Gather", [cached, origin], f"{name}.moved")
            _put(graph, name, cached, rows, moved, lowering.cache_type, shape)
    return graph


def _caches(lowering: Lowering, use: str) -> dict[str, Shape]:
    """The names and shapes of the decoder's caches for one ``use``: self, cross or last."""
    config = lowering.config
    whole: Shape = ["rows", config.heads, "capacity" if use == "self" else "source", config.head_width]
    shape: Shape = ["rows", 1, config.width] if use == "last" else whole
    return {f"{use}_{part}_{index}": shape for index in range(len(lowering.decoder)) for part in ("key", "value")}


def _column(graph: Graph, row: str) -> str:
    """``[n]`` row numbers as `ScatterND` takes them, ``[n, 1]``."""
    return graph.node("Unsqueeze", [row, graph.constant("after", [1], np.int64)], "row.column")


def _put(graph: Graph, name: str, cache: str, rows: str, values: str, dtype: int, shape: Shape) -> None:
    """Write ``values`` ``[n, …]`` over the ``rows`` of ``cache``, which goes out as ``name``_out."""
    graph.node("ScatterND", [cache, rows, values], f"{name}_out")
    graph.declare(f"{name}_out", dtype, shape)
