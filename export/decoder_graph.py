"""One decoding step as a graph: a token of every row to its k best successors, with caches written in place."""

import numpy as np
from onnx import helper

from export.bundle import LOG_SOFTMAX
from export.functions import DOMAIN
from export.graph import FLOAT, INT32, INT64, Graph, Shape
from export.lowering import Lowering, cache_unit
from model.attention import MultiHeadAttention


def decoder_graph(lowering: Lowering) -> Graph:
    """``token``, ``position`` ``[rows]`` and all caches to the caches one position further and the k best tokens.

    ``lengths`` ``[rows]`` are those of the sources; ``last_key_0``, ``last_value_0`` … hold their last tokens' keys and
    values.
    """
    graph, config = Graph("decoder", lowering.weights), lowering.config
    token, position = graph.input("token", INT64, ["rows"]), graph.input("position", INT32, ["rows"])
    lengths = graph.input("lengths", INT32, ["rows"])
    table = graph.weight("target_positions", lowering.model.target_positions)
    vectors = lowering.embed(graph, token, lowering.model.target_embedding, "target_embedding")
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
        caches = [graph.input(part, lowering.cache_type, cache_shape[use]) for part in parts]
        by_head = (config.heads, 1, config.head_width)
        units = [
            graph.weight(f"{name}.{part}.cache_unit", cache_unit(getattr(attention, part)).reshape(by_head))
            for part in ("key", "value")
            if lowering.quantised
        ]
        outputs = [name, *(f"{part}_out" for part in parts)]
        graph.nodes_with(operator, [*queries, *caches, last, *units], name, outputs, DOMAIN, heads=config.heads)
        graph.describe(name, lowering.float_type, ["rows", 1, config.width])
        for output in outputs[1:]:
            graph.outputs.append(helper.make_tensor_value_info(output, lowering.cache_type, cache_shape[use]))
        return name

    one_step: Shape = ["rows", 1]
    for index, layer in enumerate(lowering.decoder):
        name = f"decoder.{index}.self"
        read = lowering.enter(graph, states, layer.self_residual, name)
        projected = lowering.projections(graph, name, layer.self_attention, read, read, one_step, one_step)
        attended = cached(name, "self", index, "MaskedSelfAttention", layer.self_attention, projected, position)
        change = lowering.linear(graph, attended, layer.self_attention.output, f"{name}.output")
        states = lowering.leave(graph, states, change, layer.self_residual, name)
        name = f"decoder.{index}.cross"
        read = lowering.enter(graph, states, layer.cross_residual, name)
        query = lowering.linear(graph, read, layer.cross_attention.query, f"{name}.query")
        graph.describe(query, lowering.float_type, ["rows", 1, config.width])
        last = [
            graph.input(f"last_{part}_{index}", lowering.cache_type, ["rows", 1, config.width])
            for part in ("key", "value")
        ]
        attended = cached(name, "cross", index, "CrossAttention", layer.cross_attention, [query, *last], lengths)
        change = lowering.linear(graph, attended, layer.cross_attention.output, f"{name}.output")
        states = lowering.leave(graph, states, change, layer.cross_residual, name)
        states = lowering.feed_forward(
            graph, states, layer.feed_forward, layer.feed_forward_residual, f"decoder.{index}.feed_forward"
        )
    states = lowering.norm(graph, states, lowering.model.decoder_norm, "decoder_norm")
    logits = lowering.projection(graph, graph.node("Squeeze", [states, "step_axis"], "step.states"))
    # In fp16 the sum over a vocabulary would lose most of its digits.
    _k_best(graph, lowering.in_fp32(graph, logits, "logits.fp32"), config.vocabulary)
    return graph


def _k_best(graph: Graph, logits: str, vocabulary: int) -> None:
    """The k best tokens by ``logits`` ``[b, vocabulary]``, and how likely they and the given ones are, as outputs."""
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
