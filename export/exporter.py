"""From a checkpoint to a bundle: lower, write, verify, and only then put in place."""

import copy
import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx
from onnx import helper

from export.bundle import (
    MANIFEST,
    POOLING,
    TOKENIZER,
    WEIGHTS,
    BundleError,
    CacheSpec,
    GraphSpec,
    Limits,
    Manifest,
    ParityError,
    Provenance,
    Quantisation,
    TensorSpec,
    digest,
    file_names,
    read_manifest,
)
from export.functions import Bodies
from export.graphs import graphs
from export.lowering import Lowering
from export.ort import onnxruntime
from export.parity import ParityReport
from export.pooling import pooling_graph
from export.probe_choice import choose
from export.quantize import calibrate, quantized
from export.stepper import Stepper
from export.verify import check, gate_sources
from model import checkpoint
from model.checkpoint import Checkpoint
from model.transformer import Transformer
from model.translate import search

Precision = Literal["fp32", "fp16", "int8"]


def export(
    source: Path,
    bundle: Path,
    precision: Precision = "int8",
    attention: Bodies = "fused",
    english: Sequence[str] = (),
) -> Manifest:
    """Write ``bundle`` from the checkpoint ``source``; the same checkpoint gives the same bytes.

    ``english`` sentences take the place of those that it is calibrated and compared with. Raises CheckpointError, or
    ParityError when the gate fails; then ``bundle`` is left as it was.
    """
    if bundle.exists() and not (bundle / MANIFEST).exists() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise FileExistsError(f"{bundle} exists and is not a bundle; name another folder")
    loaded = checkpoint.load(source)
    sources = gate_sources(loaded, english)
    reference = reference_for(loaded, precision, sources)
    model = copy.deepcopy(reference).half() if precision == "fp16" else reference
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundle.parent, prefix=f".{bundle.name}.") as temporary:
        folder = Path(temporary) / bundle.name
        folder.mkdir()
        (folder / TOKENIZER).write_bytes(loaded.tokenizer.serialized)
        signatures = write_graphs(model, folder, attention)
        if loaded.pooling:
            pooling = pooling_graph(loaded.pooling)
            _write(folder, POOLING, pooling)
            signatures[POOLING] = _signature(pooling)
        for name in signatures:
            onnx.checker.check_model(folder / f"{name}.onnx")
        report = check(folder, reference, loaded.model, sources, precision, loaded.pooling)
        if not report.passed:
            raise ParityError(f"the parity gate failed; no bundle was written\n{report.model_dump_json(indent=2)}")
        positions = loaded.config.model.max_positions
        manifest = Manifest(
            name=loaded.config.name,
            pairs=loaded.config.pairs,
            languages={
                language: loaded.tokenizer.language_id(language)
                for language in sorted({language for pair in loaded.config.pairs for language in pair})
            },
            model=loaded.config.model,
            precision=precision,
            attention=attention,
            limits=Limits(source_tokens=positions, target_tokens=positions),
            cache=CacheSpec.of(precision),
            quantisation=Quantisation() if precision == "int8" else None,
            files={name: digest(folder / name) for name in file_names(signatures)},
            graphs=signatures,
            provenance=Provenance(checkpoint_sha256=_checkpoint_hash(source), versions=_versions()),
            parity=report,
            probes=choose(Stepper(folder, positions), sources, precision, positions),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _put_in_place(folder, bundle)
    return manifest


def reference_for(loaded: Checkpoint, precision: str, sources: list[list[int]]) -> Transformer:
    """The PyTorch model that a bundle in ``precision`` is held to; ``sources`` are those of the gate.

    An int8 bundle is held to one that rounds as it does. An fp16 one is held to fp32, since its kernels may keep more
    digits between one another than fp16 has.
    """
    if precision != "int8":
        return loaded.model
    return quantized(loaded.model, calibrate(loaded.model, calibration(loaded, sources)))


def check_again(bundle: Path, source: Path) -> ParityReport:
    """What the gate says of a ``bundle`` that was exported from the checkpoint ``source``.

    Raises CheckpointError, and BundleError when it was exported from another one.
    """
    manifest = read_manifest(bundle)
    loaded = checkpoint.load(source)
    if manifest.provenance.checkpoint_sha256 != _checkpoint_hash(source):
        raise BundleError(bundle, [f"it was exported from another checkpoint than {source}"])
    sources = gate_sources(loaded)
    reference = reference_for(loaded, manifest.precision, sources)
    return check(bundle, reference, loaded.model, sources, manifest.precision, loaded.pooling)


def write_graphs(model: Transformer, folder: Path, attention: Bodies) -> dict[str, GraphSpec]:
    """Write the graphs of ``model`` and their weights into ``folder``; returns their signatures.

    They are int8 when ``model`` has been quantised, fp16 when its weights are, and fp32 else.
    """
    lowering = Lowering(model, attention)
    lowered = graphs(lowering)
    lowering.weights.write(folder / WEIGHTS)
    for name, graph in lowered.items():
        _write(folder, name, graph)
    return {name: _signature(graph) for name, graph in lowered.items()}


def _write(folder: Path, name: str, graph: onnx.ModelProto) -> None:
    (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))


def calibration(loaded: Checkpoint, sources: list[list[int]] | None = None) -> list[tuple[list[int], list[int]]]:
    """Source and target ids to calibrate with: ``sources`` (those of the gate) and the model's translations."""
    sources = sources or gate_sources(loaded)
    return [(sources[index], hypothesis.tokens) for index, hypothesis in search(loaded.model, sources)]


def _put_in_place(folder: Path, bundle: Path) -> None:
    """Move ``folder`` to ``bundle``; what stood there goes only once the new one is complete."""
    if bundle.exists():
        aside = folder.with_name(f"{bundle.name}.replaced")
        try:
            bundle.rename(aside)
            folder.rename(bundle)
        except BaseException:
            if aside.exists() and not bundle.exists():
                aside.rename(bundle)
            raise
        shutil.rmtree(aside)
    else:
        folder.rename(bundle)


def _signature(model: onnx.ModelProto) -> GraphSpec:
    def specs(values: "list[onnx.ValueInfoProto]") -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=value.name,
                dtype=str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                shape=tuple(
                    dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
                ),
            )
            for value in values
        )

    return GraphSpec(inputs=specs(list(model.graph.input)), outputs=specs(list(model.graph.output)))


def _checkpoint_hash(folder: Path) -> str:
    names = [checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TOKENIZER]
    names += [checkpoint.POOLING] if (folder / checkpoint.POOLING).exists() else []
    return hashlib.sha256(b"".join(digest(folder / name).sha256.encode() for name in names)).hexdigest()


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("onnx", "torch")}
    # It comes with one distribution or another.
    return dict(sorted((versions | {"onnxruntime": onnxruntime.__version__}).items()))
