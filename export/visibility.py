"""Which keys attention may see, as nodes."""

import numpy as np

from export.graph import BOOL, INT32, Graph


def counted(graph: Graph, ids: str, name: str) -> str:
    """``[length]`` int32: 0, 1, 2, … as long as ``ids`` ``[b, length]``."""
    graph.constant("no_axes", 0, np.int64), graph.constant("one", 1, np.int64)
    length = graph.node("Gather", [graph.node("Shape", [ids], f"{name}.shape"), "one"], f"{name}.length")
    numbers = graph.node("Range", ["no_axes", length, "one"], f"{name}.counted")
    return graph.node("Cast", [numbers], f"{name}.range", to=INT32)


def padding_visibility(graph: Graph, source: str, lengths: str, rank: int) -> str:
    """``[b, s]`` boolean, with as many dimensions of 1 between as make ``rank``: True on tokens."""
    axes = graph.constant("beside", range(1, rank), np.int64)
    ends = graph.node("Unsqueeze", [lengths, axes], "source.ends")
    visible = graph.node("Less", [counted(graph, source, "source.padding"), ends], "source.visible")
    graph.describe(visible, BOOL, ["rows", *[1] * (rank - 2), "source"])
    return visible


def causal_visibility(graph: Graph, target: str) -> str:
    """``[t, t]`` boolean: a query sees itself and what stands before it."""
    positions = counted(graph, target, "target.causal")
    queries = graph.node("Unsqueeze", [positions, graph.constant("after", [1], np.int64)], "target.queries")
    visible = graph.node("LessOrEqual", [positions, queries], "target.visible")
    graph.describe(visible, BOOL, ["target", "target"])
    return visible
