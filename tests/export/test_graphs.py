import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import Message

from export.bundle import GRAPHS, WEIGHTS
from export.exporter import export
from export.functions import DOMAIN
from export.graphs import ALIGNMENT, Lowering, Weights
from export.quantize import quantized
from export.subgraph import ATTENTION
from model import checkpoint
from model.transformer import Transformer


def graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(bundle / f"{name}.onnx", load_external_data=False) for name in GRAPHS}


def strings(message: Message) -> Iterator[str]:
    """Every text and every byte string in ``message``, at any depth."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                yield from strings(item)
            elif isinstance(item, str | bytes):
                yield item.decode("latin-1") if isinstance(item, bytes) else item


def described(message: Message) -> bool:
    """Whether anything in ``message``, at any depth, carries metadata or a doc string."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            return True
        if any(isinstance(item, Message) and described(item) for item in (value if field.is_repeated else [value])):
            return True
    return False


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_checker_accepts_every_graph(each_bundle: Path, graph: str) -> None:
    onnx.checker.check_model(each_bundle / f"{graph}.onnx")


def test_every_attention_is_one_node_of_its_name(each_bundle: Path) -> None:
    decoder = [f"decoder.{layer}.{use}" for layer in (0, 1) for use in ("self", "cross")]
    expected = {"encoder": ["encoder.0.self"], "decoder": decoder, "attention": ["encoder.0.self", *decoder]}
    for graph, model in graphs(each_bundle).items():
        assert [node.name for node in model.graph.node if node.op_type in ATTENTION] == expected[graph]
        assert not {"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"} & {
            node.op_type for node in model.graph.node
        }


def test_a_file_holds_exactly_the_functions_it_uses(each_bundle: Path) -> None:
    for model in graphs(each_bundle).values():
        used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
        assert sorted(function.name for function in model.functions) == sorted(used)
        assert {node.domain for node in model.graph.node} == {"", DOMAIN}


def test_every_node_has_a_name_of_its_own(each_bundle: Path) -> None:
    for model in graphs(each_bundle).values():
        names = [node.name for node in model.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)


def test_files_hold_no_path_no_metadata_and_no_doc_string(each_bundle: Path) -> None:
    for model in graphs(each_bundle).values():
        assert not described(model)
        assert not [text for text in strings(model) if re.search(r"/\w+/|\\|\.py\b", text)]


def stored(bundle: Path) -> dict[tuple[int, int], list[onnx.TensorProto]]:
    """Offset and length in the weights file to the initializers, of any graph, that lie there."""
    found: dict[tuple[int, int], list[onnx.TensorProto]] = {}
    for model in graphs(bundle).values():
        for tensor in model.graph.initializer:
            entry = {pair.key: pair.value for pair in tensor.external_data}
            if entry:
                assert entry["location"] == WEIGHTS
                found.setdefault((int(entry["offset"]), int(entry["length"])), []).append(tensor)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_each_weight_is_stored_once(
    make_checkpoint: Callable[..., Path], tmp_path: Path, tied: bool, positions: str
) -> None:
    model = checkpoint.load(make_checkpoint(tied_embeddings=tied, positions=positions)).model
    lowering = Lowering(model, "fused")
    for name, graph in lowering.graphs().items():
        (tmp_path / f"{name}.onnx").write_bytes(graph.SerializeToString())
    lowering.weights.write(tmp_path / WEIGHTS)
    tables = [model.source_positions] if positions == "sinusoidal" else []
    expected = sum(4 * tensor.numel() for tensor in [*model.parameters(), *tables])
    places = sorted(stored(tmp_path))
    assert sum(length for _, length in places) == expected
    assert all(start + length <= after for (start, length), (after, _) in itertools.pairwise(places))
    size = (tmp_path / WEIGHTS).stat().st_size
    assert size == sum(places[-1])
    assert size - expected < ALIGNMENT * sum(length >= ALIGNMENT for _, length in places) + 64 * len(places)


def test_an_int8_bundle_stores_the_tied_table_once_as_int8(
    bundle_of: Callable[[str, str], Path], small_checkpoint: Path
) -> None:
    model = quantized(checkpoint.load(small_checkpoint).model)
    bundle = bundle_of("int8", "fused")
    contents = (bundle / WEIGHTS).read_bytes()
    table = model.source_embedding.weight
    assert contents.count(table.numpy().tobytes()) == 1
    assert contents.count(table.T.contiguous().numpy().tobytes()) == 0
    linear = {
        tensor.name: tensor
        for tensors in stored(bundle).values()
        for tensor in tensors
        if tensor.name.endswith(".query.weight")
    }
    assert {tensor.data_type for tensor in linear.values()} == {onnx.TensorProto.INT8}


def test_weights_with_equal_contents_share_a_place_unless_their_types_differ() -> None:
    weights = Weights()
    first = weights.place(np.arange(6, dtype=np.float32))
    assert weights.place(np.arange(6, dtype=np.float32)) == first
    assert weights.place(np.zeros(4, np.int8))[0] != weights.place(np.zeros(1, np.float32))[0]
    offset, length = weights.place(np.ones(2000, np.float32))
    assert (offset % ALIGNMENT, length) == (0, 8000)


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize(
    ("place", "extra"),
    [("encoder.0", torch.nn.Linear(16, 16)), ("decoder", torch.nn.Embedding(3, 16)), ("decoder.1", Scale())],
)
def test_a_model_with_a_layer_it_does_not_know_is_refused(
    small_checkpoint: Path, place: str, extra: torch.nn.Module, quantise: bool
) -> None:
    model = checkpoint.load(small_checkpoint).model
    model.get_submodule(place).add_module("extra", extra)
    with pytest.raises(ValueError, match=re.escape(f"{place}.extra")):
        Lowering(quantized(model) if quantise else model, "fused").graphs()


def test_a_model_with_a_parameter_of_its_own_is_refused(small_checkpoint: Path) -> None:
    model: Transformer = checkpoint.load(small_checkpoint).model
    model.temperature = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="no place in the exported graphs"):
        Lowering(model, "fused").graphs()


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "post", "activation": "relu", "tied_embeddings": True, "positions": "sinusoidal"},
        {"norm": "pre", "activation": "gelu", "tied_embeddings": False, "positions": "learned"},
        {"norm": "post", "activation": "gelu", "tied_embeddings": False, "positions": "sinusoidal"},
        {"norm": "pre", "activation": "relu", "tied_embeddings": True, "positions": "learned"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_kind_of_model_exports_and_passes_the_gate(
    make_checkpoint: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    manifest = export(make_checkpoint(**changes), tmp_path / "bundle", "fp32")
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert manifest.model.model_dump().items() >= changes.items()
