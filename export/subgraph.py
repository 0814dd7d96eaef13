"""Attention as one finds it in a bundle: a list of its nodes, and each as a model of its own."""

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from export.bundle import GRAPHS, POOLING
from export.functions import ATTENTION, DOMAIN, called


@dataclass(frozen=True)
class AttentionNode:
    """One attention function in one graph of a bundle."""

    graph: str
    name: str
    """Such as ``decoder.1.cross``."""
    function: str
    heads: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    """Parameter names of the function to their shapes."""

    @property
    def layer(self) -> int:
        """The layer it belongs to, from 0, in its stack."""
        return int(self.name.split(".")[1])


def graphs_of(bundle: Path) -> list[str]:
    """The graphs of a bundle that have attention, in the order of computation."""
    return [*GRAPHS, *([POOLING] if (bundle / f"{POOLING}.onnx").exists() else [])]


def _load(bundle: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle / f"{graph}.onnx", load_external_data=False)


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = model.graph
    weights = {
        weight.name: helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        for weight in graph.initializer
    }
    return weights | {value.name: value for values in (graph.input, graph.output, graph.value_info) for value in values}


def _shape(value: onnx.ValueInfoProto) -> str:
    return f"[{', '.join(dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)}]"


def _function(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.FunctionProto:
    return next(function for function in model.functions if function.name == node.op_type)


def attention_nodes(bundle: Path) -> list[AttentionNode]:
    """Every attention node of every graph, in the order of computation."""
    found = []
    for graph in graphs_of(bundle):
        model = _load(bundle, graph)
        types = _types(model)
        for node in model.graph.node:
            if node.domain == DOMAIN and node.op_type in ATTENTION:
                function = _function(model, node)
                found.append(
                    AttentionNode(
                        graph=graph,
                        name=node.name,
                        function=node.op_type,
                        heads=helper.get_node_attr_value(node, "heads"),
                        inputs={p: _shape(types[v]) for p, v in zip(function.input, node.input, strict=True)},
                        outputs={p: _shape(types[v]) for p, v in zip(function.output, node.output, strict=True)},
                    )
                )
    return found


def cut_out(bundle: Path, name: str, graph: str | None = None) -> onnx.ModelProto:
    """The attention node ``name`` as a model whose inputs and outputs carry the function's parameter names.

    ``graph`` picks among graphs that share the name; the first of `graphs_of` unless given. KeyError when there is no
    such node.
    """
    for candidate in (graph,) if graph else graphs_of(bundle):
        model = _load(bundle, candidate)
        for node in model.graph.node:
            if node.name == name and node.op_type in ATTENTION:
                return _alone(model, node)
    raise KeyError(name)


def _alone(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    types, function = _types(model), _function(model, node)

    def renamed(parameter: str, value: str) -> onnx.ValueInfoProto:
        result = onnx.ValueInfoProto()
        result.CopyFrom(types[value])
        result.name = parameter
        return result

    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.output[:]
    alone.input.extend(function.input)
    alone.output.extend(function.output)
    graph = helper.make_graph(
        [alone],
        node.name,
        [renamed(parameter, value) for parameter, value in zip(function.input, node.input, strict=True)],
        [renamed(parameter, value) for parameter, value in zip(function.output, node.output, strict=True)],
    )
    result = helper.make_model(
        graph, functions=called([node], model.functions), opset_imports=model.opset_import, ir_version=model.ir_version
    )
    onnx.checker.check_model(result)
    return result
