"""An ONNX graph under construction, and the one file that holds the weights of all."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from export import functions
from export.bundle import WEIGHTS
from export.functions import DOMAIN, OPSET, VENDOR

Array = NDArray[Any]
Shape = Sequence[int | str]

FLOAT, FLOAT16, INT8, INT32, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
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

    def declare(self, value: str, dtype: int, shape: Shape) -> None:
        """Declare ``value`` an output under its own name."""
        self.outputs.append(helper.make_tensor_value_info(value, dtype, shape))

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
