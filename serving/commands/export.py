"""``dragoman export``: checkpoints to bundles, and what a bundle's attention is."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serving.commands.console import errors, fail, require
from serving.commands.gate import show


def export(
    model: Annotated[
        str, typer.Argument(help="A checkpoint (a bundle with --list or --subgraph): a folder, or one that ships.")
    ],
    bundle: Annotated[Path | None, typer.Argument(help="Folder to write (a file with --subgraph).")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "int8",
    attention: Annotated[str, typer.Option(help="Bodies of the attention functions: standard or fused.")] = "fused",
    list_: Annotated[bool, typer.Option("--list", help="List a bundle's attention nodes with their shapes.")] = False,
    subgraph: Annotated[str | None, typer.Option(help="Cut one attention node out, such as decoder.1.cross.")] = None,
    graph: Annotated[str | None, typer.Option(help="Cut from encoder, decoder, attention or pooling.")] = None,
) -> None:
    """Export a checkpoint to a bundle; list a bundle's attention; cut one attention out as a model of its own."""
    from export.bundle import locate

    if list_:
        return _list_attention(locate(model))
    if bundle is None:
        fail("name the folder to write" if subgraph is None else "name the file to write")
    if subgraph is not None:
        return _cut_out(locate(model), subgraph, graph, bundle)
    for name, value, known in (
        ("precision", precision, ("fp32", "fp16", "int8")),
        ("attention", attention, ("standard", "fused")),
    ):
        if value not in known:
            fail(f"--{name} is {value!r}; it takes {', '.join(known[:-1])} or {known[-1]}")
    require("torch", "export")
    from export.bundle import ParityError
    from export.exporter import export as run
    from model import checkpoint

    try:
        with errors.status(f"exporting {model} in {precision} and comparing it with PyTorch"):
            manifest = run(checkpoint.locate(model), bundle, precision, attention)  # type: ignore[arg-type]
    except (checkpoint.CheckpointError, ParityError, OSError) as error:
        fail(str(error))
    assert manifest.parity is not None
    console = Console()
    show(manifest.parity, console)
    assert manifest.probes is not None
    count, longest = len(manifest.probes.probes), manifest.probes.longest
    console.print(
        f"{count} probes, the longest of {longest} tokens"
        if count
        else f"no probes: no sentence that was tried keeps the margin of {manifest.probes.margin} nats"
    )
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    console.print(f"{bundle}: {manifest.name}, {precision}, {attention} attention, {size:.1f} MB")


def _list_attention(bundle: Path) -> None:
    from export.bundle import BundleError, read_manifest

    require("onnx", "export")
    from export.subgraph import attention_nodes

    try:
        read_manifest(bundle)
    except BundleError as error:
        fail(str(error))
    for node in attention_nodes(bundle):
        takes, gives = (
            ", ".join(f"{name} {shape}" for name, shape in values.items()) for values in (node.inputs, node.outputs)
        )
        print(f"{node.graph}  {node.name}  {node.function}, layer {node.layer}, {node.heads} heads")
        print(f"    {takes}\n    -> {gives}")


def _cut_out(bundle: Path, name: str, graph: str | None, path: Path) -> None:
    require("onnx", "export")
    import onnx

    from export.bundle import BundleError, read_manifest
    from export.subgraph import attention_nodes, cut_out, graphs_of

    try:
        read_manifest(bundle)
        if graph not in (None, *graphs_of(bundle)):
            fail(f"--graph is {graph!r}; it takes {', '.join(graphs_of(bundle))}")
        onnx.save(cut_out(bundle, name, graph), path)
    except (BundleError, OSError) as error:
        fail(str(error))
    except KeyError:
        known = sorted({node.name for node in attention_nodes(bundle) if graph in (None, node.graph)})
        fail(f"there is no attention called {name!r}; there are {', '.join(known)}")
    print(path)
