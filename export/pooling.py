"""The graph of sentence vectors: learned queries attend to the encoder's memory, then a linear map.

A file of its own, with its weights in it: it runs only when a vector is asked for, shares no weight with the other
graphs, and can be fitted anew while those stay as they are.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.functions import DOMAIN, inspecting
from export.graph import FLOAT, INT32, Graph, Weights
from model.pooling import AttentionPooling

NAME = "pooling.0.cross"
"""Of the attention node."""


def pooling_graph(pooling: AttentionPooling) -> onnx.ModelProto:
    """``memory`` ``[rows, source, width]`` and ``lengths`` ``[rows]`` to ``vectors`` ``[rows, width]`` of length 1.

    ``weights`` ``[rows, 1, queries, source]`` are the attention's. All fp32, whatever the bundle's precision.
    """
    graph = Graph("pooling", Weights())
    queries, width, narrow = pooling.value.shape
    memory = graph.input("memory", FLOAT, ["rows", "source", width])
    lengths = graph.input("lengths", INT32, ["rows"])

    def weight(name: str, values: NDArray[np.float32]) -> str:
        """Kept as the checkpoint's fp16, and read as fp32: half the bytes, the same numbers."""
        return graph.node("Cast", [graph.constant(f"{name}.fp16", values, np.float16)], name, to=TensorProto.FLOAT)

    query = weight("query", pooling.query.detach().numpy()[None])
    graph.describe(query, FLOAT, [1, queries, width])
    # A row sees its tokens, not its padding: [rows, 1, 1, source].
    zero, one = graph.constant("zero", 0, np.int32), graph.constant("one", 1, np.int32)
    shape = graph.node("Shape", [memory], "source.shape", start=1, end=2)
    length = graph.node("Cast", [graph.node("Squeeze", [shape], "source.length")], "source.length_int32", to=INT32)
    places = graph.node("Range", [zero, length, one], "source.range")
    ends = graph.node("Unsqueeze", [lengths, graph.constant("beside", [1, 2, 3], np.int64)], "source.ends")
    visible = graph.node("Less", [places, ends], "source.visible")
    graph.describe(visible, TensorProto.BOOL, ["rows", 1, 1, "source"])
    outputs = [NAME, f"{NAME}.weights", f"{NAME}.scores"]
    graph.nodes_with("CrossAttention", [query, memory, memory, visible], NAME, outputs, DOMAIN, heads=1)
    graph.describe(NAME, FLOAT, ["rows", queries, width])
    for output in outputs[1:]:
        graph.describe(output, FLOAT, ["rows", 1, queries, "source"])
    apart = graph.node("Unsqueeze", [NAME, graph.constant("between", [2], np.int64)], "gathered")
    narrowed = graph.node("MatMul", [apart, weight("value", pooling.value.detach().numpy())], "narrowed")
    joined = graph.node("Reshape", [narrowed, graph.constant("joined", [0, queries * narrow], np.int64)], "joined.rows")
    matrix = weight("output.weight", pooling.output.weight.detach().numpy().T)
    bias = weight("output.bias", pooling.output.bias.detach().numpy())
    vectors = graph.node("Linear", [joined, matrix, bias], "output", DOMAIN)
    norm = graph.node("ReduceL2", [vectors, graph.constant("last", [-1], np.int64)], "norm", keepdims=1)
    graph.output(graph.node("Div", [vectors, norm], "normalised"), "vectors", FLOAT, ["rows", width])
    graph.output(outputs[1], "weights", FLOAT, ["rows", 1, queries, "source"])
    return graph.model(inspecting("standard", quantised=False))
