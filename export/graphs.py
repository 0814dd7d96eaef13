"""The graphs of a bundle, lowered module by module from the PyTorch model."""

import onnx

from export import functions
from export.attention_graph import attention_graph
from export.bundle import ADMIT, REORDER
from export.decoder_graph import decoder_graph
from export.encoder_graph import encoder_graph
from export.lowering import Lowering
from export.row_graphs import admit_graph, reorder_graph


def graphs(lowering: Lowering) -> dict[str, onnx.ModelProto]:
    """``encoder``, ``decoder`` and ``attention``, and, unless in int8, ``admit`` and ``reorder``.

    ValueError when a layer of the model was left out.
    """
    stepping = functions.stepping(lowering.bodies, lowering.quantised, lowering.half)
    inspecting = functions.inspecting(lowering.bodies, lowering.quantised, lowering.half)
    result = {
        "encoder": encoder_graph(lowering).model(stepping),
        "decoder": decoder_graph(lowering).model(stepping),
        "attention": attention_graph(lowering).model(inspecting),
    }
    if not lowering.quantised:
        result[ADMIT] = admit_graph(lowering).model([])
        result[REORDER] = reorder_graph(lowering).model([])
    if forgotten := lowering.forgotten():
        raise ValueError(f"these layers have weights but no place in the exported graphs: {', '.join(forgotten)}")
    return result
